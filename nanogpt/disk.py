"""Files and folders: written whole or not at all, and nothing deleted that is not ours."""

import contextlib
import errno
import os
import re
from pathlib import Path

from nanogpt.common import UserError


@contextlib.contextmanager
def whole(path):
    """Yield a temporary path in the same folder; rename it to `path` if the block raises nothing.

    Whatever stops the program, a file with the final name is complete.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_file(tensors, path, metadata=None):
    """safetensors' save_file, but the file may be read by whom the umask says, and a full disk
    raises OSError, as everywhere else."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file as save

    path = Path(path)
    path.touch()
    mode = path.stat().st_mode
    try:
        save(tensors, path, metadata)
    except SafetensorError as error:
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            number = int(number[1])
            raise OSError(number, os.strerror(number), str(path), number) from None
        raise OSError(f"{path}: {error}") from None
    if path.stat().st_mode != mode:  # 0600, so that nobody else of the group could read it
        path.chmod(mode & 0o777)


def check_writable(folder):
    """Make `folder`, write in it as `whole` does, and delete that. Raises UserError if it fails."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable.{os.getpid()}"
        with whole(probe) as path:
            path.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        way_out = "make room there" if full else "choose another folder"
        raise UserError(f"cannot write to {folder} ({reason}): {way_out}") from None
