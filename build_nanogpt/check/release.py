"""A version of the lecture: the tag lecture-vX.Y.Z, which never moves, and its history on main."""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from build_nanogpt.check.command import check_aloud
from build_nanogpt.cli import UserError
from build_nanogpt.lecture.build import (
    build_series,
    describe,
    fast_import,
    import_tag,
    plan,
    publish,
    read_refs,
)
from build_nanogpt.lecture.export import differs, top_files
from build_nanogpt.lecture.git import ROOT, Repository, Scratch, bare_tree, diff_patch, empty_tree
from build_nanogpt.lecture.main_branch import check_main, hiding, holds, join
from build_nanogpt.lecture.series import (
    day_of,
    named_steps,
    parse_patch,
    read_series,
    read_version,
    tag_of,
)
from build_nanogpt.lecture.trees import load_trees

RELEASE = re.compile(r"refs/tags/lecture-v(\d+)\.(\d+)\.(\d+)")


@dataclass(frozen=True)
class Config:
    version: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="X.Y.Z")] = ""
    """MAJOR: steps renumbered, other result; MINOR: other numbers, new steps; PATCH: errata"""


# -----------------------------------------------------------------------------
# the version and its day


def last_release(repository):
    """((X, Y, Z), commit) of the greatest release; None if there is none."""
    found = [(tuple(map(int, match.groups())), ref.commit)
             for name, ref in read_refs(repository).items() if (match := RELEASE.fullmatch(name))]
    return max(found, default=None)


def check_version(version, last):
    """Raises UserError unless `version` is X.Y.Z and greater than the last."""
    match = re.fullmatch(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)", version)
    if not match:
        raise UserError(f"the version {version!r} is not X.Y.Z, as in release 1.0.0")
    if last and tuple(map(int, match.groups())) <= last[0]:
        raise UserError(f"the version {version} is not greater than the last, "
                        f"lecture-v{'.'.join(map(str, last[0]))}, and releases never move")


def check_day(repository, version, date, last, syllabus):
    """Raises UserError unless the syllabus gives the same version and day, and the day is later
    than the last release's: git finds the newest version of a step by its date."""
    if syllabus != (version, date):
        raise UserError(f"steps/README.md says 'Lecture {', '.join(syllabus)}.' and CHANGELOG.md "
                        f"'{version} - {date}': they must agree")
    when = last and int(repository.git("log", "-1", "--format=%ct", last[1]))
    if last and day_of(date) <= when:
        raise UserError(f"the day {date} is not later than that of the last release, "
                        f"lecture-v{'.'.join(map(str, last[0]))}: git could not tell which of two "
                        "steps is the newer one")
    hidden = hiding(repository, day_of(date))
    if hidden:
        raise UserError(f"main's commit {hidden[0]!r} would be found instead of that step, since "
                        f"it is newer than {date}: give the lecture a later day")


# -----------------------------------------------------------------------------
# the changelog


def changelog_part(root, version):
    """(text, YYYY-MM-DD) of a version in CHANGELOG.md. Raises UserError if it has none."""
    path = Path(root) / "CHANGELOG.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    name = re.escape(version)
    head = rf"^## (?:\[{name}\]|{name}) - (\d{{4}}-\d\d-\d\d) *$"
    match = re.search(rf"{head}(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if not match:
        raise UserError(f"CHANGELOG.md has no heading '## {version} - YYYY-MM-DD': write it")
    if day_of(match[1]) is None:
        raise UserError(f"CHANGELOG.md, version {version}: there is no day {match[1]}")
    return match[2], match[1]


def step_changes(scratch, trees):
    """What each step does to each file, from the ids of all steps' trees."""
    bare = [empty_tree(scratch), *(bare_tree(scratch, tree) for tree in trees)]
    return [parse_patch(diff_patch(scratch, old, new))
            for old, new in zip(bare, bare[1:], strict=False)]


def changed_steps(scratch, repository, last, trees):
    """Tags of the steps whose lines differ from the last release's."""
    if last is None:
        return []
    said = repository.git("log", "--reverse", "--first-parent", "--format=%T", last[1])
    before, after = (step_changes(scratch, t) for t in (said.decode().split(), trees))
    n = max(len(before), len(after))
    before, after = (changes + [None] * (n - len(changes)) for changes in (before, after))
    return [tag_of(i) for i in range(n) if before[i] != after[i]]


def check_changelog(version, part, tip, changed):
    """Raises UserError unless the changelog's part holds the tip and names the changed steps."""
    if f"lecture tip `{tip}`" not in part:
        raise UserError(f"CHANGELOG.md's part {version} does not hold the line: lecture tip "
                        f"`{tip}`")
    missing = [tag for tag in changed if tag not in named_steps(part)]
    if missing:
        raise UserError(f"CHANGELOG.md's part {version} does not name {', '.join(missing)}, whose "
                        "lines changed since the last release: say what changed")


# -----------------------------------------------------------------------------
# the release


def check_clean(repository, top):
    """Raises UserError for what is not committed, or a top-level file that is not the last step's.
    """
    changed = repository.changed(["steps", "CHANGELOG.md", *top])
    if changed:
        raise UserError(f"{changed[0]} has changes that are not committed: commit them first")
    for path, (mode, data) in top.items():
        if differs(repository.root / path, mode, data):
            raise UserError(f"{path} is not the last step's: fix the step (edit the branch "
                            "lecture, then export), or the file")


def check_and_tag(repository, steps, version, last):
    """Check everything, build, and tag the lecture's tip. Returns the tip. Raises UserError."""
    part, date = changelog_part(repository.root, version)
    check_day(repository, version, date, last, read_version(repository.root))
    with Scratch(repository.object_format, repository.objects) as scratch:
        built = build_series(scratch, steps, date)
        trees, error = load_trees(steps)
        if error:
            raise error
        check_clean(repository, top_files(trees[-1]))
        tip = built.commits[-1]
        check_changelog(version, part, tip,
                        changed_steps(scratch, repository, last, built.trees))
        plan(repository, built)  # what it refuses, it refuses before the long check
        if not check_aloud(steps, None, False, False, os.cpu_count() or 1, quick=True):
            raise UserError("nothing is released: steps failed the check")
        tag = import_tag(f"lecture-v{version}", tip, day_of(date), f"lecture {version}")
        built = replace(built, refs=fast_import(scratch, tag))
        changes = publish(scratch, repository, built)
    print(describe(changes, built))
    return tip


def main(config, root=ROOT):
    """Check everything, build, tag the lecture's tip as lecture-vX.Y.Z, and join its history to
    main: a merge that changes no file."""
    version, repository, steps = config.version, Repository(root), read_series(root)
    check_main(repository)
    name, last = f"lecture-v{version}", last_release(repository)
    if last and name == f"lecture-v{'.'.join(map(str, last[0]))}" and not holds(
            repository, last[1]):
        tip = last[1]  # released before, but main has lost its history, in a rebase for instance
    else:
        check_version(version, last)
        tip = check_and_tag(repository, steps, version, last)
    join(repository, tip, version)
    print(f"{name} is {tip}, and main holds its history. Push them:\n"
          "    git push --force origin lecture 'refs/tags/step-*'\n"
          f"    git push origin main {name}")
