"""The command `check`: steps of the lecture, or a follower's own work."""

import os
import re
import statistics
import sys
from dataclasses import dataclass
from typing import Annotated

import tyro
from tqdm import tqdm

from build_nanogpt.check.mine import check_mine
from build_nanogpt.check.steps import check_series
from build_nanogpt.cli import UserError
from build_nanogpt.lecture.build import build_series
from build_nanogpt.lecture.git import ROOT, Repository, Scratch
from build_nanogpt.lecture.main_branch import hiding, holds
from build_nanogpt.lecture.series import day_of, read_series, read_version


@dataclass(frozen=True)
class Config:
    steps: Annotated[tuple[str, ...], tyro.conf.Positional,
                     tyro.conf.arg(metavar="[STEPS ...]")] = ()
    """which steps, as in `7` or `20-31`; all if none is given"""
    run: tyro.conf.FlagCreatePairsOff[bool] = False
    """also run each lesson's commands, and compare their output with the lesson's"""
    latest_only: tyro.conf.FlagCreatePairsOff[bool] = False
    """run only each step's own tests, not those of earlier steps"""
    mine: Annotated[str, tyro.conf.arg(metavar="FILE_OR_FOLDER")] = ""
    """a file or folder of your own, to be run against the tests of one step"""
    step: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """the step for --mine; not needed if the current folder is a checkout of a step"""
    jobs: int = 0
    """how many processes to run at once; 0 = one per core"""


def read_numbers(words, steps):
    """The set of steps that `7`, `07`, `step-07`, `20-31` name. Raises UserError."""
    numbers = set()
    for word in words:
        match = re.fullmatch(r"(?:step-)?(\d+)(?:-(?:step-)?(\d+))?", word)
        if not match:
            raise UserError(f"no step {word!r}: give numbers, as in 7 or 20-31")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < len(steps):
            raise UserError(f"no step {word}: the lecture has {steps[0].tag} ... {steps[-1].tag}")
        numbers |= set(range(first, last + 1))
    return numbers


def summary(results):
    failed = [result.step.tag for result in results if not result.ok]
    if failed:
        return f"{len(failed)} of {len(results)} steps failed: {', '.join(failed)}"
    return f"{len(results)} steps checked: all are well"


def sizes(steps):
    """How many program lines the steps add: the median and the most, as a line."""
    added = [step.program_lines()[0] for step in steps]
    most = max(steps, key=lambda step: step.program_lines()[0])
    return (f"program lines that a step adds: median {statistics.median(added):g}, at most "
            f"{max(added)} ({most.tag})")


def check_aloud(steps, numbers, run, latest_only, jobs, quick=False):
    """check_series with a progress bar and one line per step. Returns True if all is well."""
    width = max(len(step.lesson.title) for step in steps)
    with tqdm(total=len(numbers or steps), disable=None, leave=False, unit="step") as bar:

        def report(result):
            tqdm.write(result.line(width))
            sys.stdout.flush()
            bar.update()

        results = check_series(steps, numbers, run, latest_only, jobs, report, quick)
    print(summary(results))
    if numbers is None:
        print(sizes(steps))
    return all(result.ok for result in results)


def note_on_main(root, steps):
    """A line if main lacks the history of the lecture as it is now, or hides a step of it; "" if
    neither, or without a main."""
    try:
        repository, (version, date) = Repository(root), read_version(root)
        with Scratch(repository.object_format) as scratch:
            tip = build_series(scratch, steps, date).commits[-1]
    except UserError:  # an unpacked archive, or a broken step, which has been reported
        return ""
    held = holds(repository, tip)
    if held is False:
        return ("main does not hold this lecture's history yet: python -m build_nanogpt release "
                f"{version}")
    hidden = hiding(repository, day_of(date)) if held else []
    if hidden:
        return (f"main's commit {hidden[0]!r} is newer than that step of the lecture: git checkout "
                "':/^step-NN:' finds it instead, so begin such subjects in another way")
    return ""


def main(config, root=ROOT):
    """Check steps of the lecture: patches, imports, tests, and that tests fail one step earlier."""
    if config.jobs < 0:
        raise UserError(f"--jobs {config.jobs}: give 1 or more")
    steps, jobs = read_series(root), config.jobs or os.cpu_count() or 1
    if config.mine:
        well = check_mine(config, steps, jobs, root)
    elif config.step is not None:
        raise UserError(f"--step {config.step} belongs to --mine; a step to check is given "
                        f"plainly: check {config.step}")
    else:
        numbers = read_numbers(config.steps, steps) or None
        well = check_aloud(steps, numbers, config.run, config.latest_only, jobs)
        note = "" if numbers else note_on_main(root, steps)
        print(note, end="\n" * bool(note))
    if not well:
        sys.exit(1)
