"""Errors of one line, flags and whole files, for the tools: they import nothing of the lecture."""

import contextlib
import os
import sys
from pathlib import Path

import tyro


class UserError(ValueError):
    """Something the user can mend. The message names the thing, its value and the way out."""


def run(main):
    """Call main(); what the user or the system can mend becomes one line on stderr and status 2.

    DEBUG=1 in the environment shows the traceback instead.
    """
    sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (UserError, OSError) as error:
        if os.environ.get("DEBUG"):
            raise
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def parse(config, args, prog, description):
    """Read flags over the dataclass instance `config`; every field is one flag. Returns a new
    instance. tyro names what it cannot read, on stderr, and ends with exit status 2.

    `--compile` and `--no-compile` are short for `--compile=True` and `--compile=False`: to tyro, a
    field that may also be None is not a plain on/off flag.
    """
    short = {"--compile": "--compile=True", "--no-compile": "--compile=False"}
    return tyro.cli(type(config), default=config, prog=prog, description=description,
                    args=[short.get(arg, arg) for arg in args])


@contextlib.contextmanager
def whole(path):
    """Yield a temporary path in the same folder; rename it to `path` if the block raises nothing.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
