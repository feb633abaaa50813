"""Actions in processes of their own: none has the memory, the compiled code or the settings of
another, as if its program were alone."""

import contextlib
import importlib
import multiprocessing

from common import UserError


def serve(pipe, place, args):
    """The process: builds the action, then carries it out each time it is told to."""
    module, function = place
    try:
        action = getattr(importlib.import_module(module), function)(*args)
        while pipe.recv():
            pipe.send((action(), None))
    except (EOFError, KeyboardInterrupt):
        pass
    except Exception as error:
        pipe.send((None, (isinstance(error, UserError), f"{type(error).__name__}: {error}")))


class Apart:
    """The action that `function` of a module makes of `args`, in a process of its own."""

    def __init__(self, module, function, *args):
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=serve, args=(there, (module, function), args),
                                       daemon=True)
        self.process.start()
        there.close()

    def __call__(self):
        """What the action returns. Raises UserError or RuntimeError for what it raises."""
        with contextlib.suppress(BrokenPipeError):  # it has ended, and said why
            self.pipe.send(True)
        try:
            result, error = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise UserError("a process of the bench was killed, for want of memory perhaps: "
                            "choose smaller sizes") from None
        if error:
            raise (UserError if error[0] else RuntimeError)(error[1].partition(": ")[2])
        return result

    def end(self):
        self.process.kill()
        self.process.join()
