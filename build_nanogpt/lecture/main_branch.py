"""The lecture's history on the branch main, so that a plain clone has every step."""

import re

from build_nanogpt.cli import UserError
from build_nanogpt.lecture.git import GitError

MAIN = "refs/heads/main"
NOBODY = ("-c", "user.name=build_nanogpt", "-c", "user.email=lecture@build-nanogpt.invalid")


def check_main(repository):
    """Raises UserError unless main is checked out and all that git tracks is committed."""
    try:
        head = repository.ask("symbolic-ref", "-q", "HEAD").decode().strip()
    except GitError:
        head = "no branch"
    if head != MAIN:
        raise UserError(f"{head.removeprefix('refs/heads/')} is checked out, and a release is made "
                        "on main: git switch main")
    changed = repository.ask("status", "--porcelain", "-z", "--no-renames",
                             "--untracked-files=no").decode().split("\0")[0]
    if changed:
        raise UserError(f"{changed[3:]} has changes that are not committed: commit them first")


def holds(repository, commit):
    """Whether main's history has this commit; None if there is no main."""
    if not repository.git("for-each-ref", MAIN):
        return None
    try:
        repository.git("merge-base", "--is-ancestor", commit, MAIN)
    except GitError:  # not an ancestor, or no such commit here
        return False
    return True


def hiding(repository, day):
    """Commits of main itself, since `day` (seconds since 1970), that git would take for a step:
    ':/^step-07:' finds the newest commit with such a subject. As lines: id and subject."""
    said = repository.git("log", "--first-parent", "--format=%ct %h %s", MAIN)
    commits = [line.split(" ", 1) for line in said.decode(errors="replace").splitlines()]
    return [commit for date, commit in commits
            if int(date) >= day and re.match(r"\w+ step-\d+:", commit)]


def identity(repository):
    """Options of git that give the merge a name where the user has none."""
    try:
        for key in "user.name", "user.email":
            repository.ask("config", "--get", key)
    except GitError:
        return NOBODY
    return ()


def join(repository, tip, version):
    """Merge the lecture's tip into main without changing a file. Nothing to do if main has it."""
    if holds(repository, tip):
        return
    old, tree = repository.ask("rev-parse", f"{MAIN}^{{commit}}", f"{MAIN}^{{tree}}"
                               ).decode().split()
    message = (f"Join the history of lecture {version}\n\nThe tree stays main's. In a plain clone, "
               "git checkout ':/^step-07:' finds the\nnewest version of a step.")
    merge = repository.ask(*identity(repository), "commit-tree", "-p", old, "-p", tip, "-m",
                           message, tree).decode().strip()
    repository.git("update-ref", "-m", f"build_nanogpt release {version}", MAIN, merge, old)
