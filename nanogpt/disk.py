"""Files and folders: written whole or not at all, and nothing deleted that is not ours."""

import contextlib
import errno
import functools
import hashlib
import itertools
import os
import re
import shutil
from pathlib import Path

from nanogpt.common import UserError


@contextlib.contextmanager
def whole(path, ours=None):
    """Yield a temporary path in the same folder; rename it to `path` if the block raises nothing.

    A file or a folder appears under its name complete or not at all, even if the program or the
    machine stops: its contents are on the disk before its name is.

    A folder that is replaced is deleted, with `ours` by discard(). No file ever replaces a folder.
    """
    path = Path(path)
    temporary, old = (path.with_name(f".{path.name}.{end}") for end in ("tmp", "old"))
    clear = functools.partial(discard, ours=ours) if ours else remove
    clear(temporary)
    try:
        yield temporary
        for part in [*temporary.rglob("*"), temporary]:
            sync(part)
        if temporary.is_dir() and os.path.lexists(path):  # it cannot be replaced directly
            clear(old)
            os.replace(path, old)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        clear(temporary)
    clear(old)


def sync(path):
    """fsync a file, or a folder's list of names: wait until it is on the disk."""
    folder = path.is_dir()
    if folder and os.name == "nt":
        return  # Windows has no such call for folders
    number = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(number)
    except OSError as error:  # some disks (gocryptfs, CIFS) can sync files and not folders
        if not folder or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(number)


def remove(path):
    """Delete a file or a folder, if there is one. Of a link, only the link: its target stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def discard(path, ours):
    """Delete a folder's files for which ours(path) is true, and the folder if it is empty then. If
    not, it becomes leftover_N. A link's target stays. An error is printed and ends nothing."""
    try:
        if path.name[0] != ".":  # at once: half a folder must never have a checkpoint's name
            path = path.replace(path.with_name(f".{path.name}.old"))
        if path.is_symlink() or not path.exists():
            return path.unlink(missing_ok=True)
        parts = sorted(path.iterdir()) if path.is_dir() else [path]
        known = [part for part in parts if not part.is_dir() and ours(part)]
        for part in sorted(known, key=lambda part: part.name == "manifest.json"):
            part.unlink()  # the manifest last: it says which of the others are ours
        if known == parts:
            return path.rmdir()
        aside = unused(path.parent, "leftover")
        os.replace(path, aside)
        name = path.name[1:].rpartition(".")[0]
        print(f"{name} also held files that are not ours: they are in {aside}")
    except OSError as error:
        print(f"cannot delete {path} ({error.strerror})")


def unused(folder, name):
    """The first of name_1, name_2 ... that nothing in the folder has."""
    names = (Path(folder, f"{name}_{number}") for number in itertools.count(1))
    return next(path for path in names if not os.path.lexists(path))


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


def digest(path):
    """[size in bytes, SHA-256 in hex] of a file."""
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2**20):
            sha.update(part)
        return [file.tell(), sha.hexdigest()]


def check_writable(folder, *files):
    """Make `folder`, write in it as `whole` does, and delete that. Raises UserError if it fails,
    or if one of `files`, which the program will write to, is a folder."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable.{os.getpid()}"
        with whole(probe) as path:
            path.mkdir()
            (path / "file").write_bytes(b"x")
        remove(probe)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        way_out = "make room there" if full else "choose another folder"
        raise UserError(f"cannot write to {folder} ({reason}): {way_out}") from None
    for file in files:
        if (folder / file).is_dir():
            raise UserError(f"{folder / file} is a folder: move it away, or choose another folder")
