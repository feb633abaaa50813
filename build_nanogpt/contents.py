"""The table of contents of the lecture, and where in it one stands."""

from dataclasses import dataclass
from pathlib import Path

from build_nanogpt.build import STEP_TAG, read_refs
from build_nanogpt.git import ROOT, GitError, Repository
from build_nanogpt.series import read_series
from common import UserError


@dataclass(frozen=True)
class Config:
    pass


def tagged_commits(repository):
    """{commit id: tag} of the steps that are built."""
    return {ref.commit: match[1] for name, ref in read_refs(repository).items()
            if (match := STEP_TAG.fullmatch(name))}


def tag_here(repository, cwd):
    """The tag that is checked out in `cwd`, if that is a worktree of this repository; or ""."""
    try:
        objects, head = repository.ask("rev-parse", "--path-format=absolute", "--git-path",
                                       "objects", "HEAD", cwd=cwd).decode().split("\n")[:2]
    except GitError:  # no repository, or no commit yet
        return ""
    same = Path(objects).resolve() == Path(repository.objects).resolve()
    return tagged_commits(repository).get(head, "") if same else ""


def table(steps, here):
    """One line a step: tag, title, video time, program lines, and a mark."""
    width = max(len(step.lesson.title) for step in steps)
    for step in steps:
        added, removed = step.program_lines()
        line = (f"{step.tag}  {step.lesson.title:{width}}  {step.lesson.video:>7}  "
                f"{f'+{added}':>4} {f'-{removed}':>4}")
        yield line + ("  <- checked out here" if step.tag == here else "")


def main(config, root=ROOT, cwd=None):
    """Print the table of contents: title, video time and changed program lines of every step."""
    steps = read_series(root)
    try:
        repository = Repository(root)
        built = tagged_commits(repository)
        here = tag_here(repository, cwd or Path.cwd())
    except UserError:  # an unpacked archive has steps/ as well
        built, here = {}, ""
    print("\n".join(table(steps, here)))
    if {step.tag for step in steps} - set(built.values()):
        print("not built yet: python -m build_nanogpt build")
