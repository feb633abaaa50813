"""What all programs share: one-line errors, flags, whole files, the hub."""

from nanogpt import __version__, terminal  # first: Ctrl-C ends in silence from here on

import contextlib
import difflib
import logging
import os
import platform
import re
import shlex
import sys

import tyro


class UserError(ValueError):
    """Something the user can fix. The message names the thing, its value and the way out."""


@terminal.readers_may_leave()
@terminal.interruptible()
def run(main):
    """Call main(); what the user can fix becomes one line on stderr and exit status 2."""
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
        elif found := re.search(r"(Timed out waiting|(Read error|writev) \[).*", str(error)):
            print(f"error: another rank does not answer ({found[0].partition('. ')[0]}): it, its "
                  "machine or the network is down. Go on with --resume", file=sys.stderr)
        else:
            say_where_to_report(error)
            raise
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        say_where_to_report(error)
        raise


def say_where_to_report(error):
    """Have the traceback of a mistake in the program end with what to do about it."""
    if hasattr(error, "add_note"):  # since Python 3.11
        error.add_note("This is a bug: please report it as an issue, with the command, these lines "
                       "and what --version prints.")


def versions():
    """What a report needs: the versions of the lecture, Python, torch and the system; devices."""
    import torch

    cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    devices = ", ".join(cards) or f"CPU ({torch.backends.cpu.get_cpu_capability()})"
    return (f"lecture {__version__}, Python {platform.python_version()}, torch "
            f"{torch.__version__}, {platform.platform()}, {devices}")


def parse(config, args, prog, description):
    """Parse flags; the dataclass instance `config` has the defaults, and every field is one flag.
    Returns a new instance. For a bad flag, tyro prints why on stderr and exits with status 2.

    `--compile` and `--no-compile` are short for `--compile=True` and `--compile=False`: to tyro, a
    field that may also be None (decide by the device) is not a plain on/off flag.
    """
    if "--version" in args:
        print(versions())
        sys.exit()
    short = {"--compile": "--compile=True", "--no-compile": "--compile=False"}
    return tyro.cli(type(config), default=config, prog=prog, description=description,
                    args=[short.get(arg, arg) for arg in args])


# for a text whose default --help shows as it is, and not as a shell would have to quote it
PLAIN = tyro.conf.arg(help_behavior_hint=lambda s: f"(default: {' '.join(shlex.split(s))})")


def did_you_mean(word, words):
    """" (did you mean WORD?)", with the one of `words` that is most like `word`, or ""."""
    found = difflib.get_close_matches(word, words, n=1, cutoff=0.7)
    return f" (did you mean {found[0]}?)" if found else ""


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
