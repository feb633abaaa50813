"""Variants in separate processes: none shares memory, compiled code or settings with another."""

import contextlib
import importlib
import multiprocessing
import os

from build_nanogpt.bench.errors import program_errors
from build_nanogpt.cli import UserError


def serve(pipe, place, args):
    """The process: makes the variant, then calls those of its methods that it is told to."""
    module, name = place
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # its helpers would take turns too
    try:
        with program_errors():
            variant = getattr(importlib.import_module(module), name)(*args)
            while method := pipe.recv():
                pipe.send((getattr(variant, method)(), None))
    except (EOFError, KeyboardInterrupt):
        pass
    except Exception as error:
        pipe.send((None, (isinstance(error, UserError), f"{type(error).__name__}: {error}")))


class Apart:
    """An object in its own process: what the class or function `name` of a module makes of `args`.
    A call calls one of its methods there."""

    def __init__(self, module, name, *args):
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=serve, args=(there, (module, name), args),
                                       daemon=True)
        self.process.start()
        there.close()

    def __call__(self, method="whole"):
        """What the method returns. Raises UserError or RuntimeError for what it raises."""
        with contextlib.suppress(BrokenPipeError):  # it has ended, and said why
            self.pipe.send(method)
        try:
            result, error = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise UserError("a process of the bench was killed, perhaps because memory ran out: "
                            "choose smaller sizes") from None
        if error:
            raise (UserError if error[0] else RuntimeError)(error[1].partition(": ")[2])
        return result

    def end(self):
        self.pipe.close()  # which ends it, unless it is busy; killed, it would leave semaphores
        self.process.join(10)
        self.process.kill()
        self.process.join()
