"""One program per folder."""

import contextlib
import warnings
from pathlib import Path

from filelock import FileLock, Timeout

from nanogpt.common import UserError


@contextlib.contextmanager
def locked(folder, program, flag, wait=False):
    """Keep a second `program` out of the folder, if its disk has locks. Raises UserError."""
    lock = FileLock(Path(folder) / ".lock")
    warnings.filterwarnings("ignore", "flock not supported")  # a file with the owner must do
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise UserError(f"another {program} is at work in {folder}: wait for its end, choose "
                            f"another {flag}, or remove {lock.lock_file} if it has ended") from None
        print(f"waiting for another program in {folder} (ended? then remove {lock.lock_file})")
        lock.acquire(timeout=-1)
    except (OSError, NotImplementedError):
        print(f"the disk of {folder} has no locks: start no second {program} there")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows refuses, and deletes it by itself
            Path(lock.lock_file).unlink()
        lock.release()
