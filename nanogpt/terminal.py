"""The terminal that a program is started from, and may lose."""

import contextlib
import errno
import os
import signal
import stat
import sys


def end_in_silence():
    """Let Ctrl-C end a program without a traceback while it imports its packages, which takes
    seconds. Changes nothing unless Python was started with one of this project's programs."""
    frame = sys._getframe()
    while frame.f_back:
        frame = frame.f_back
    program = os.path.realpath(frame.f_code.co_filename)  # with python -c, not a file
    ours = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    if (os.path.isfile(program) and os.path.dirname(program) == ours
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler):
        signal.signal(signal.SIGINT, signal.SIG_DFL)


end_in_silence()


@contextlib.contextmanager
def interruptible():
    """Inside, Ctrl-C raises KeyboardInterrupt again, so that the program can tidy up."""
    silent = signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    if silent:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if silent:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def ctrl_c_stays():
    """Processes that are started inside, or by the function that this decorates, ignore Ctrl-C. The
    program gets it and ends them."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # they inherit it
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def end_with_main():
    """In a worker: end when the main process is killed. The queue of tasks would stay open, because
    the workers hold it too, and they would wait for ever."""
    import multiprocessing
    import threading

    main = multiprocessing.parent_process()
    threading.Thread(target=lambda: main.join() or os._exit(1), daemon=True).start()


class Stream:
    """stdout or stderr. When a write fails because the reader has left (a closed terminal, or
    `| head`), the rest goes to nobody, and the program continues."""

    def __init__(self, stream):
        self.stream, self.lost = stream or open(os.devnull, "w", encoding="utf-8"), None

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text, flush=False):
        try:
            self.stream.flush() if flush else self.stream.write(text)
        except UnicodeEncodeError:  # samples on a terminal of another code page
            self.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
        except BlockingIOError:  # another program made the pipe non-blocking, and it is full
            os.set_blocking(self.fileno(), True)
        except OSError as error:
            with contextlib.suppress(OSError):  # a notebook's stream has no number
                on_disk = stat.S_ISREG(os.fstat(self.fileno()).st_mode)
                self.lost = error if on_disk or error.errno == errno.ENOSPC else self.lost
                with open(os.devnull, "w", encoding="utf-8") as null:
                    os.dup2(null.fileno(), self.fileno())

    def flush(self):
        Stream.write(self, "", flush=True)  # wandb may have replaced self.write


@contextlib.contextmanager
def readers_may_leave():
    """Inside, printing never fails. Restores sys.stdout and sys.stderr."""
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        pass  # started with >&-: give stdout's number away before a file of the run gets it
    os.close(number)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = out, err = [Stream(stream) for stream in before]
    try:
        yield
        out.flush()
        if out.lost:
            print(f"error: standard output is incomplete ({out.lost})", file=err)
            sys.exit(2)
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before
