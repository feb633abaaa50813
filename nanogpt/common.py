"""What all programs share: errors of one line, flags, whole files, the hub."""

import contextlib
import hashlib
import logging
import os
import re
import shutil
import sys
from pathlib import Path

import tyro


class UserError(ValueError):
    """Something the user can fix. The message names the thing, its value and the way out."""


def run(main):
    """Call main(); what the user can fix becomes one line on stderr and exit status 2."""
    sys.stdout.reconfigure(errors="backslashreplace")  # samples on a terminal of another code page
    try:
        main()
    except (UserError, OSError) as error:  # OSError: the disk is full, a file may not be read
        if os.environ.get("DEBUG"):  # DEBUG=1 shows the traceback
            raise
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:  # torch.OutOfMemoryError is one; MPS and the CPU raise it plainly
        if re.search("out of memory|not enough memory|can't allocate memory", str(error)):
            print("error: out of memory: halve --B (the result stays the same), or choose a "
                  "smaller --T or network", file=sys.stderr)
        elif re.search("(closed|reset) by peer|remote process exited|Broken pipe", str(error)):
            print("error: another process of this run has ended: its own line says why",
                  file=sys.stderr)
        else:
            raise
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def parse(config, args, prog, description):
    """Parse flags; the dataclass instance `config` has the defaults, and every field is one flag.
    Returns a new instance. For a bad flag, tyro prints why on stderr and exits with status 2.

    `--compile` and `--no-compile` are short for `--compile=True` and `--compile=False`: to tyro, a
    field that may also be None (decide by the device) is not a plain on/off flag.
    """
    short = {"--compile": "--compile=True", "--no-compile": "--compile=False"}
    return tyro.cli(type(config), default=config, prog=prog, description=description,
                    args=[short.get(arg, arg) for arg in args])


@contextlib.contextmanager
def needs_network(what, way_out):
    """Turn whatever a download raises in this block into a UserError that names the way out."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"cannot get {what} ({type(error).__name__}: {reason}): {way_out}"
                        ) from error


def hub_offline(repo_id, repo_type="model"):
    """True if the hub does not answer: then load with local_files_only, from the cache.

    Asks once, without the library's retries, which take half a minute to give up.
    """
    import huggingface_hub

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        huggingface_hub.HfApi().repo_info(repo_id, repo_type=repo_type, timeout=10)
        return False
    except Exception:
        return True


def hub_file(repo_id, file, **where):
    """The local path of a file on the hub: downloaded once; without a network, from the cache.

    where: repo_type and revision, as huggingface_hub has them.
    """
    import huggingface_hub

    offline = hub_offline(repo_id, where.get("repo_type", "model"))
    return huggingface_hub.hf_hub_download(repo_id, file, local_files_only=offline, **where)


@contextlib.contextmanager
def whole(path):
    """Yield a temporary path in the same folder; rename it to `path` if the block raises nothing.

    A file or a folder appears under its name complete or not at all, even if the program or the
    machine stops: its contents are on the disk before its name is.
    """
    path = Path(path)
    temporary, old = (path.with_name(f".{path.name}.{end}") for end in ("tmp", "old"))
    remove(temporary)
    try:
        yield temporary
        for part in [*temporary.rglob("*"), temporary]:
            sync(part)
        if path.is_dir() or path.exists() and temporary.is_dir():  # it cannot be replaced directly
            remove(old)
            os.replace(path, old)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        remove(temporary)
    remove(old)


def sync(path):
    """fsync a file, or a folder's list of names: wait until it is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows has no such call for folders
    number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def remove(path):
    """Delete a file or a folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def save_file(tensors, path, metadata=None):
    """safetensors' save_file, but a full disk raises OSError, as it does everywhere else."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file as save

    try:
        save(tensors, path, metadata)
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from None


def digest(path):
    """[size in bytes, SHA-256 in hex] of a file."""
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2**20):
            sha.update(part)
        return [file.tell(), sha.hexdigest()]


def check_writable(folder):
    """Make `folder`, then write and delete a file in it. Raises UserError if that fails."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"cannot write to {folder} ({reason}): choose another folder") from None
