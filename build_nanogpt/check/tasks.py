"""The tasks of `check`: import files, run tests, run a lesson's commands."""

import shlex
import sys

from build_nanogpt.cli import UserError

CHUNK = 24  # test files per process: more share fixtures, fewer keep all cores busy
TEST_LIMIT = 300  # seconds for one test; after that it counts as hung
RUN_LIMIT = 60  # seconds for a lesson's commands
BROKEN = (3, 4)  # pytest's exit status for an internal error and for a wrong option
UNTESTED = "No test of this step fails one step earlier"
# A follower without network and GPU is imitated, also on a machine that has both.
OFFLINE = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "100",
           **{name: "http://127.0.0.1:9" for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY",
                                                      "http_proxy")},
           "PYTHONUNBUFFERED": "1"}


def count(n):
    return f"{n} test{'' if n == 1 else 's'}"


def imports_task(scripts):
    """The task that imports the program's files, given as paths."""
    return {"kind": "imports", "scripts": scripts}


def tests_task(files, maxfail=0, marks="", own=(), limit=TEST_LIMIT):
    """The task that runs test files; of a failure it tells the line in the files `own`."""
    return {"kind": "tests", "files": files, "maxfail": maxfail, "marks": marks, "own": list(own),
            "limit": limit}


def chunks(files, size=CHUNK):
    return [files[i:i + size] for i in range(0, len(files), size)]


def says_untested(step):
    return UNTESTED in " ".join(step.lesson.sections.get("Check yourself", "").split())


def arguments(line):
    """A lesson's command as a list. Raises UserError for one that does not run Python."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        raise UserError(f"its command {line!r} cannot be read ({error})") from None
    starts = {"python": [], "torchrun": ["-m", "torch.distributed.run"], "pytest": ["-m", "pytest"]}
    if not words or words[0] not in starts:
        raise UserError(f"its command {line!r} does not begin with python, torchrun or pytest")
    return [sys.executable, *starts[words[0]], *words[1:]]


def commands_task(step):
    """The task that runs a lesson. Raises UserError for a lesson that cannot be run."""
    commands = [arguments(line) for line in step.lesson.commands]
    if not commands:
        raise UserError("its lesson has no command under '## Run it'")
    nowhere = {"TIKTOKEN_CACHE_DIR": "../no-tiktoken", "HF_HOME": "../no-hub"}
    return {"kind": "commands", "commands": commands, "env": OFFLINE | nowhere,
            "limit": RUN_LIMIT}
