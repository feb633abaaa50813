"""The table of contents of the lecture, and where in it you are."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from build_nanogpt.cli import UserError
from build_nanogpt.lecture.build import STEP_TAG, read_refs
from build_nanogpt.lecture.git import ROOT, GitError, Repository
from build_nanogpt.lecture.series import read_series


@dataclass(frozen=True)
class Config:
    video: tyro.conf.FlagCreatePairsOff[bool] = False
    """only the stops of the video: each of its moments, and the step or steps at it"""


def tagged_commits(repository):
    """{commit id: tag} of the built steps."""
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


def stops(steps):
    """{video time: steps at it}, in the video's order."""
    found = {}
    for step in steps:
        if step.lesson.video:
            found.setdefault(step.lesson.video, []).append(step)
    return found


def video_path(steps, here):
    """One line a step that has a time in the video; the time begins the first line of each stop."""
    found = stops(steps)
    for time, group in found.items():
        for step in group:
            mark = "  <- checked out here" if step.tag == here else ""
            yield f"{time if step is group[0] else '':>7}  {step.tag}  {step.lesson.title}{mark}"
    past = len(steps) - sum(map(len, found.values()))
    yield (f"{len(found)} stops; {past} step{' is' if past == 1 else 's are'} past the video: "
           "python -m build_nanogpt steps")


def main(config, root=ROOT, cwd=None):
    """Print the table of contents: title, video time and changed program lines of every step."""
    steps = read_series(root)
    try:
        repository = Repository(root)
        built = tagged_commits(repository)
        here = tag_here(repository, cwd or Path.cwd())
    except UserError:  # an unpacked archive has steps/ as well
        built, here = {}, ""
    print("\n".join((video_path if config.video else table)(steps, here)))
    if {step.tag for step in steps} - set(built.values()):
        print("not built yet: python -m build_nanogpt build")
