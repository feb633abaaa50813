"""git in isolation: the same answers whatever the configuration, environment and hooks are."""

import functools
import os
import re
import subprocess
import tempfile
from pathlib import Path

from build_nanogpt.cli import UserError

ROOT = Path(__file__).resolve().parent.parent.parent
OLDEST = (2, 32)  # the first that knows GIT_CONFIG_GLOBAL

# The same text for the same two trees, whatever git's version or anyone's configuration says.
DIFF = ("-r", "-p", "--full-index", "--no-color", "--no-ext-diff", "--no-textconv", "--no-renames",
        "--no-relative", "--src-prefix=a/", "--dst-prefix=b/", "-U3", "--inter-hunk-context=0",
        "--diff-algorithm=histogram", "--indent-heuristic")


class GitError(UserError):
    """What git said on stderr."""


def plain_environment():
    """This process's environment without git's variables, which may point elsewhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return kept | {"LC_ALL": "C", "TZ": "UTC", "GIT_TERMINAL_PROMPT": "0"}


def isolated_environment():
    """plain_environment without the user's and the system's configuration and attributes."""
    return plain_environment() | {
        "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_ATTR_NOSYSTEM": "1",
        "GIT_NO_REPLACE_OBJECTS": "1", "GIT_NO_LAZY_FETCH": "1",
        # a branch's reflog wants a name; the commits' own names come with their text
        "GIT_COMMITTER_NAME": "build_nanogpt", "GIT_COMMITTER_EMAIL": "lecture",
        "HOME": os.devnull, "XDG_CONFIG_HOME": os.devnull}


def call(args, env, cwd, data=b""):
    """git's stdout (bytes). Raises GitError with its stderr, UserError if git is not installed."""
    try:
        done = subprocess.run(["git", *args], cwd=cwd, env=env, input=data, capture_output=True)
    except FileNotFoundError:
        raise UserError("git is not installed, or not on the PATH: install git "
                        f"{OLDEST[0]}.{OLDEST[1]} or newer") from None
    if done.returncode:
        raise GitError(done.stderr.decode(errors="replace").strip() or f"git {args} failed")
    return done.stdout


@functools.cache
def check_version():
    """Raises UserError for a git that cannot be isolated."""
    said = call(["version"], plain_environment(), None).decode()
    match = re.search(r"(\d+)\.(\d+)", said)
    if not match or (int(match[1]), int(match[2])) < OLDEST:
        raise UserError(f"{said.strip()} is too old: install git {OLDEST[0]}.{OLDEST[1]} or newer")


class Scratch:
    """A bare repository in a temporary folder; use as a context manager.

    `alternates`: an object folder whose objects can be read, too.
    """

    def __init__(self, object_format="sha1", alternates=None):
        check_version()
        self.object_format, self.alternates = object_format, alternates

    def __enter__(self):
        self.temporary = tempfile.TemporaryDirectory(prefix="build_nanogpt-")
        self.folder = Path(self.temporary.name)
        self.env = isolated_environment() | {"HOME": str(self.folder)}
        call(["init", "-q", "--bare", "--template=", "--initial-branch=lecture",
              f"--object-format={self.object_format}", "git"], self.env, self.folder)
        self.env |= {"GIT_DIR": str(self.folder / "git"),
                     "GIT_INDEX_FILE": str(self.folder / "index")}
        if self.alternates:
            listed = self.folder / "git" / "objects" / "info" / "alternates"
            listed.parent.mkdir(exist_ok=True)
            listed.write_text(f"{self.alternates}\n", encoding="utf-8")
        return self

    def __exit__(self, *exception):
        self.temporary.cleanup()

    def git(self, *args, data=b""):
        return call(args, self.env, self.folder, data)

    def line(self, *args, data=b""):
        """git's answer as one str."""
        return self.git(*args, data=data).decode().strip()


class Repository:
    """The user's repository. Raises UserError unless `root` is the top of its work tree."""

    def __init__(self, root=ROOT):
        check_version()
        self.root = Path(root)
        try:
            prefix, *facts = self.ask("rev-parse", "--path-format=absolute", "--show-prefix",
                                      "--git-dir", "--git-path", "objects",
                                      "--show-object-format").decode().splitlines()
        except GitError as error:
            way_out = (f"git config --global --add safe.directory {root}"
                       if "dubious ownership" in str(error) else "clone the project with git")
            raise UserError(f"{root} is not a git repository ({str(error).splitlines()[0]}): "
                            f"{way_out}") from None
        if prefix:
            raise UserError(f"{root} is a folder within another git repository: clone the project "
                            "with git")
        self.git_dir, self.objects, self.object_format = facts

    def ask(self, *args, cwd=None):
        """What the user's own git says in the work tree: their configuration counts."""
        return call(["--no-optional-locks", *args], plain_environment(), cwd or self.root)

    def git(self, *args, data=b""):
        """git on objects and refs, isolated, without hooks."""
        env = isolated_environment() | {"GIT_DIR": self.git_dir}
        return call(["-c", f"core.hooksPath={os.devnull}", *args], env, self.root, data)

    def changed(self, paths):
        """Those of `paths` (relative to the top) with changes that are not committed."""
        said = self.ask("--literal-pathspecs", "status", "--porcelain", "-z", "--no-renames",
                        "--untracked-files=all", "--", *paths) if paths else b""
        return [entry[3:].decode() for entry in said.split(b"\0") if entry]


def diff_patch(scratch, old, new):
    """The patch (bytes) from tree `old` to tree `new`, README.md left out."""
    return scratch.git("diff-tree", *DIFF, old, new, "--", ".", ":(top,exclude)README.md")


def empty_tree(scratch):
    return scratch.line("mktree")


def bare_tree(scratch, tree):
    """Id of `tree` without its README.md."""
    entries = scratch.git("ls-tree", "-z", tree).split(b"\0")
    kept = [entry for entry in entries if entry and not entry.endswith(b"\tREADME.md")]
    return scratch.line("mktree", "-z", data=b"".join(entry + b"\0" for entry in kept))


def list_tree(scratch, tree):
    """{path: (mode, id)} of the files in `tree`."""
    files = {}
    for entry in scratch.git("ls-tree", "-r", "-z", tree).decode().split("\0"):
        if entry:
            facts, path = entry.split("\t", 1)
            mode, _, name = facts.split()
            files[path] = (mode, name)
    return files


def read_blobs(scratch, names):
    """{id: bytes} of blobs, read by one process."""
    names = sorted(set(names))
    said, blobs, at = scratch.git("cat-file", "--batch", data="\n".join(names).encode()), {}, 0
    for name in names:
        end = said.index(b"\n", at)
        size = int(said[at:end].split()[2])
        blobs[name] = said[end + 1:end + 1 + size]
        at = end + 1 + size + 1
    return blobs
