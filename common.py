"""What the scripts share and what is not about GPT-2. The program to read is train_gpt2.py."""

import contextlib
import hashlib
import io
import logging
import os
import re
import shutil
import sys
from pathlib import Path

import tiktoken
import tyro

# -----------------------------------------------------------------------------
# errors and the command line


class UserError(ValueError):
    """Something the user can mend. The message names the thing, its value and the way out."""


def run(main):
    """Call main(); what the user or the system can mend becomes one line on stderr and status 2."""
    sys.stdout.reconfigure(errors="backslashreplace")  # samples on a terminal of another code page
    try:
        main()
    except (UserError, OSError) as error:  # OSError: the disk is full, a file may not be read
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
    """Read flags over the dataclass instance `config`; every field is one flag.

    `--compile` and `--no-compile` are short for `--compile=True` and `--compile=False`: a field
    that may also be None (decide by the device) is no plain on/off flag to tyro.
    Returns a new instance. Raises UserError for a flag or a value that cannot be read.
    """
    short = {"--compile": "--compile=True", "--no-compile": "--compile=False"}
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(type(config), default=config, prog=prog, description=description,
                            args=[short.get(arg, arg) for arg in args])
    except SystemExit as stop:
        if stop.code == 0:  # --help
            raise
    # tyro draws a box: a title, the error, a rule, hints. The error alone makes the one line.
    lines = [line.strip("│ ") for line in said.getvalue().splitlines()[1:]]
    error = lines[: next((i for i, line in enumerate(lines) if line.startswith("──")), len(lines))]
    raise UserError(" ".join(error).strip() + f" (flags: {prog} --help)")


# -----------------------------------------------------------------------------
# devices


def find_device(name="auto"):
    """torch.device for 'auto' (cuda, else mps, else cpu), 'cuda', 'cuda:1', 'mps' or 'cpu'.

    Raises UserError for a device that is unknown or not there.
    """
    import torch  # here, since what only handles text does without it

    if name == "auto":
        if torch.cuda.is_available():
            name = "cuda"
        else:
            name = "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: choose auto, cuda, mps or cpu") from None
    usable = {
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if not usable.get(device.type, False):
        raise UserError(f"--device {name}: this machine or this torch has none, use --device cpu")
    return device


# -----------------------------------------------------------------------------
# tokenizers

# name -> number of ids; a network's vocab_size tells which of the two it was trained with
TOKENIZERS = {"gpt2": 50257, "bytes": 257}


def tokenizer_name(vocab_size):
    """'gpt2' or 'bytes', by the number of ids. Raises UserError for any other number."""
    for name, n_vocab in TOKENIZERS.items():
        if n_vocab == vocab_size:
            return name
    raise UserError(
        f"a vocabulary of {vocab_size} ids belongs to no known tokenizer: "
        "50257 is gpt2's, 257 is bytes'"
    )


def get_tokenizer(name):
    """A tiktoken.Encoding: GPT-2's 50,257 ids, or 256 bytes and end-of-text.

    GPT-2's vocabulary is downloaded once and kept where TIKTOKEN_CACHE_DIR says, or in the
    system's temporary folder. Raises UserError when it is neither there nor to be had.
    """
    if name == "bytes":
        ranks = {bytes([i]): i for i in range(256)}
        special = {"<|endoftext|>": 256}
        # every character is a piece of its own, so no piece is ever long and nothing is merged
        return tiktoken.Encoding("bytes", pat_str="(?s:.)", mergeable_ranks=ranks,
                                 special_tokens=special)
    with needs_network("GPT-2's vocabulary", "go online once, set TIKTOKEN_CACHE_DIR to a folder "
                       "that holds it, or run the byte-level preset: train_gpt2.py laptop"):
        return tiktoken.get_encoding(name)


# -----------------------------------------------------------------------------
# the hub


@contextlib.contextmanager
def needs_network(what, way_out):
    """Whatever a download raises leaves this block as a UserError that names the way out."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot get {what} ({type(error).__name__}): {way_out}") from error


def hub_offline(repo_id, repo_type="model"):
    """True if the hub does not answer: then load with local_files_only, from what is cached.

    One question without the library's retries, which take half a minute to give up.
    """
    import huggingface_hub

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        huggingface_hub.HfApi().repo_info(repo_id, repo_type=repo_type, timeout=10)
        return False
    except Exception:
        return True


# -----------------------------------------------------------------------------
# files


@contextlib.contextmanager
def whole(path):
    """Yield a temporary path beside `path`, renamed to it when the block ends well.

    A file or a folder appears under its name whole or not at all, whatever stops the program, or
    the machine: what was written is on the disk before the name is.
    """
    path = Path(path)
    temporary, old = (path.with_name(f".{path.name}.{end}") for end in ("tmp", "old"))
    remove(temporary)
    try:
        yield temporary
        for part in [*temporary.rglob("*"), temporary]:
            sync(part)
        if path.is_dir() or path.exists() and temporary.is_dir():  # it cannot be replaced at once
            remove(old)
            os.replace(path, old)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        remove(temporary)
    remove(old)


def sync(path):
    """Have the system write a file, or a folder's list of names, from its memory to the disk."""
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
    """safetensors' save_file. A disk that is full is an OSError here, as it is everywhere else."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file as save

    try:
        save(tensors, path, metadata)
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from None


def digest(path):
    """[bytes, SHA-256] of a file."""
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2**20):
            sha.update(part)
        return [file.tell(), sha.hexdigest()]


def check_writable(folder):
    """Make `folder`, and write and delete a file in it. Raises UserError if that fails."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"cannot write to {folder} ({reason}): choose another folder") from None
