"""The lecture in steps/: small steps, the top is the last one, mistakes are fixed where they began.

Whether every step does what it says is for `python -m build_nanogpt check`.
"""

import os
import re
import statistics
import subprocess
import sys

import pytest
from helpers import ROOT

from build_nanogpt.lecture.build import build_series
from build_nanogpt.lecture.contents import stops
from build_nanogpt.lecture.git import Scratch
from build_nanogpt.lecture.series import SECTIONS, is_program, read_series, read_version
from build_nanogpt.lecture.trees import load_trees

STEPS = read_series(ROOT)
LAST = STEPS[-1]
# A change a lecturer could make: a line that is born in step-11 and stands unchanged ever since.
BORN_IN, OLD, NEW = 11, "n_layer) ** -0.5", "n_layer) ** -0.50"


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_top_is_the_last_step():
    """Every file that the series touches, byte for byte."""
    trees, error = load_trees(STEPS)
    assert error is None
    for path, (_, data) in trees[-1].items():
        if path != "README.md":
            assert (ROOT / path).read_bytes() == data, path
    touched = {change.path for step in STEPS for change in step.changes}
    assert not [path for path in touched - trees[-1].keys() if (ROOT / path).exists()]
    program = {path for path in touched & trees[-1].keys() if is_program(path)}
    assert program == {path.relative_to(ROOT).as_posix()
                       for path in (*ROOT.glob("*.py"), *ROOT.glob("nanogpt/**/*.py"))
                       if path.name != "conftest.py"}  # the program is the series', all of it


def test_steps_are_small():
    """A step adds 80 lines of the program at most, 120 where it begins a file."""
    added = {step.tag: step.program_lines()[0] for step in STEPS}
    begins = {step.tag for step in STEPS for change in step.changes
              if is_program(change.path) and any(mode.startswith(b"new") for mode in change.modes)}
    assert {tag: n for tag, n in added.items() if n > (120 if tag in begins else 80)} == {}
    assert 15 <= statistics.median(added.values()) <= 65


def test_the_video_comes_first_and_in_its_order():
    times = [step.lesson.video for step in STEPS]
    seconds = [sum(map(lambda n, of: int(n) * of, time.split(":"), (3600, 60, 1)))
               for time in times if time]
    assert seconds == sorted(seconds)
    assert "" not in times[:len(seconds)] and not any(times[len(seconds):])
    assert 25 <= len(stops(STEPS)) <= 30


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.stem)
def test_lesson_has_its_parts(step):
    parts = step.lesson.sections
    assert list(parts) == list(SECTIONS)
    assert all(text.strip() for text in parts.values())
    assert step.lesson.commands
    if step.born:
        assert any(path in parts["Check yourself"] for path in step.born)
    assert "**Exercise.**" in parts["Check yourself"]


def test_syllabus_lists_every_step():
    rows = re.findall(r"^\| \[step-(\d+)\]\(([\w.-]+)\) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \| "
                      r"([\d, ]*) \|$", read("steps/README.md"), re.MULTILINE)
    assert len(rows) == len(STEPS)
    for step, (number, file, title, video, summary, lines, _) in zip(STEPS, rows, strict=True):
        assert (int(number), file) == (step.number, f"{step.stem}.md")
        assert title == step.lesson.title
        link = re.search(r"Video (\[.*?\]\(.*?\))\.", step.lesson.text)
        assert video == (link[1] if link else "")
        assert summary == step.lesson.summary, step.tag
        assert lines == "+{} -{}".format(*step.program_lines()), step.tag


def test_the_changelog_is_up_to_date():
    """Its newest version is the lecture as it stands, tip and day, or the part Unreleased says what
    has changed since."""
    text = read("CHANGELOG.md")
    version, date = read_version(ROOT)
    with Scratch() as scratch:
        tip = build_series(scratch, STEPS, date).commits[-1]
    unreleased, newest = re.search(r"^## Unreleased\n(.*?)^## (.*?)(?=^## |\Z)", text, re.M | re.S
                                   ).groups()
    assert "step-" in unreleased or (
        newest.startswith(f"{version} - {date}\n") and f"lecture tip `{tip}`" in newest)


def run(*command, cwd, **env):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1", **env})
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def git(*args, cwd, **env):
    names = ("-c", "user.name=A lecturer", "-c", "user.email=lecturer@example.org")
    return run("git", *names, *args, cwd=cwd, **env)


def tools(*args, cwd):
    """python -m build_nanogpt of the clone, not of this folder."""
    return run(sys.executable, "-m", "build_nanogpt", *args, cwd=cwd, PYTHONPATH=str(cwd))


@pytest.fixture
def clone(tmp_path):
    """A clone of what would be committed now: tracked files and new ones that git does not ignore.
    """
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    folder = tmp_path / "clone"
    for name in listed.split("\0"):
        if name and not name.startswith("runs/") and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    git("init", "-q", "-b", "main", cwd=folder)
    git("add", "-A", cwd=folder)
    git("commit", "-q", "-m", "as it stands", cwd=folder)
    return folder


def test_an_erratum_is_fixed_where_it_began(clone, tmp_path):
    """CONTRIBUTING.md's commands: one line of an early step is fixed; every later step follows."""
    tools("build", cwd=clone)
    before = git("for-each-ref", "--format=%(refname:short) %(objectname)", "refs/tags", cwd=clone)
    lecture = tmp_path / "lecture"
    git("worktree", "add", "-q", lecture, "lecture", cwd=clone)
    program = lecture / "train_gpt2.py"
    assert program.read_text(encoding="utf-8").count(OLD) == 1
    program.write_text(program.read_text(encoding="utf-8").replace(OLD, NEW), encoding="utf-8")
    git("commit", "-q", "-a", "--fixup", f"step-{BORN_IN}^{{commit}}", cwd=lecture)
    git("rebase", "-q", "-i", "--autosquash", f"step-{BORN_IN - 1}", cwd=lecture,
        GIT_SEQUENCE_EDITOR="true")
    git("switch", "-q", "--detach", cwd=lecture)

    said = tools("export", cwd=clone)
    assert f"step-{BORN_IN}: its lines changed: train_gpt2.py" in said
    assert "does not name" in said or "CHANGELOG" in said  # the reminder
    changed = git("status", "--porcelain", cwd=clone).split("\n")
    assert sorted(line[3:] for line in changed if line) == [
        f"steps/{STEPS[BORN_IN].stem}.patch", "train_gpt2.py"]
    assert "all are well" in tools("check", str(BORN_IN), "--latest-only", cwd=clone)

    tools("build", cwd=clone)
    after = git("for-each-ref", "--format=%(refname:short) %(objectname)", "refs/tags", cwd=clone)
    same = {a.split()[0] for a, b in zip(before.splitlines(), after.splitlines(), strict=True)
            if a == b}
    assert same == {step.tag for step in STEPS[:BORN_IN]}  # ids before it stay
    for step in STEPS[BORN_IN:]:  # later steps carry it
        assert NEW in git("show", f"{step.tag}:train_gpt2.py", cwd=clone)


def test_the_program_knows_its_lecture():
    """--version prints what steps/README.md says; pyproject.toml takes it from there, too."""
    import nanogpt

    assert nanogpt.__version__ == read_version(ROOT)[0]
    assert 'version = {attr = "nanogpt.__version__"}' in read("pyproject.toml")
