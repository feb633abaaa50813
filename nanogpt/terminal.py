"""The terminal that a program is started from, and may lose."""

import contextlib
import os
import signal
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
