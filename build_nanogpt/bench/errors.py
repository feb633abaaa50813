"""Errors of the program, as the tools say them."""

import contextlib
import re

from build_nanogpt.cli import UserError
from nanogpt import common


def no_room(error):
    """Whether memory has run out: CUDA, MPS, the CPU and cuBLAS each say so in their own words."""
    return bool(re.search("out of memory|not enough memory|can't allocate memory|ALLOC_FAILED",
                          str(error)))


@contextlib.contextmanager
def program_errors():
    """The program's UserError, and a lack of memory, leave this block as the tools' UserError."""
    try:
        yield
    except common.UserError as error:
        raise UserError(str(error)) from error
    except RuntimeError as error:
        if not no_room(error):
            raise
        raise UserError("out of memory: choose smaller sizes") from error
