"""The lecture in steps/: every step is well, the top is the last one, mistakes can be mended."""

import os
import re
import subprocess
import sys

import pytest
from helpers import ROOT

from build_nanogpt.build import build_series
from build_nanogpt.check import check_series, load_trees
from build_nanogpt.git import Scratch
from build_nanogpt.series import read_series

STEPS = read_series(ROOT)
LAST = STEPS[-1]
SCRIPTS = ("train_gpt2.py", "fineweb.py", "hellaswag.py")
# A change a lecturer could make: a line that is born in step-11 and stands unchanged ever since.
BORN_IN, OLD, NEW = 11, "n_layer) ** -0.5", "n_layer) ** -0.50"


@pytest.fixture(scope="module")
def results():
    """Of all steps, checked side by side. The last one's tests are those of this very folder, so
    here they need not run twice; nor do slow ones in steps after their own. A step is held against
    its own tests, each eighth also against all earlier ones: `check` does so for every step."""
    checked = check_series(STEPS, range(LAST.number), jobs=os.cpu_count() or 1, quick=True,
                           every=8)
    last = check_series(STEPS, {LAST.number}, latest_only=True, jobs=os.cpu_count() or 1)
    return {result.step.number: result for result in checked + last}


@pytest.mark.parametrize("number", range(len(STEPS)), ids=lambda number: STEPS[number].stem)
def test_step(number, results):
    assert results[number].ok, results[number].line()


def test_the_top_is_the_last_step():
    """Every file that the series touches, byte for byte."""
    trees, error = load_trees(STEPS)
    assert error is None
    for path, (_, data) in trees[-1].items():
        if path != "README.md":
            assert (ROOT / path).read_bytes() == data, path
    touched = {change.path for step in STEPS for change in step.changes}
    assert not [path for path in touched - trees[-1].keys() if (ROOT / path).exists()]


def test_steps_are_small():
    """80 changed lines of the scripts at most, 25 at the median."""
    sizes = sorted(sum(change.count(sign) for change in step.changes if change.path in SCRIPTS
                       for sign in (b"+", b"-")) for step in STEPS)
    assert sizes[-1] <= 80
    assert 15 <= (sizes[len(sizes) // 2] + sizes[(len(sizes) - 1) // 2]) / 2 <= 25


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.stem)
def test_lesson_has_its_parts(step):
    parts = step.lesson.sections
    assert list(parts) == ["What changes", "Run it", "You should see", "Check yourself",
                           "If it goes wrong"]
    assert all(text.strip() for text in parts.values())
    assert step.lesson.commands
    if step.born:
        assert any(path in parts["Check yourself"] for path in step.born)
    if step is not LAST:
        assert "**Exercise.**" in parts["Check yourself"]


def test_syllabus_lists_every_step():
    text = (ROOT / "steps" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[step-(\d+)\]\(([\w.-]+)\) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$",
                      text, re.MULTILINE)
    assert len(rows) == len(STEPS)
    for step, (number, file, title, video, _, diff) in zip(STEPS, rows, strict=True):
        assert (int(number), file) == (step.number, f"{step.stem}.md")
        assert title == step.lesson.title
        assert (step.lesson.video or "past the video") in video
        if step.number:
            link = f"../../../compare/{STEPS[step.number - 1].tag}...{step.tag}"
            assert f"({link})" in diff


def test_changelog_holds_the_tip():
    """The newest version that the changelog names is the lecture as it stands, or the Unreleased
    part says what has changed since."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    with Scratch() as scratch:
        tip = build_series(scratch, STEPS).commits[-1]
    unreleased = re.search(r"## Unreleased\n(.*?)(?=^## |\Z)", text, re.M | re.S)[1]
    assert f"lecture tip `{tip}`" in text or "step-" in unreleased


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


def test_an_erratum_is_mended_where_it_was_born(clone, tmp_path):
    """CONTRIBUTING.md's commands: one line of an early step, mended; every later step follows."""
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
    assert f"step-{BORN_IN}" in tools("check", str(BORN_IN), "--latest-only", cwd=clone)

    tools("build", cwd=clone)
    after = git("for-each-ref", "--format=%(refname:short) %(objectname)", "refs/tags", cwd=clone)
    same = {a.split()[0] for a, b in zip(before.splitlines(), after.splitlines(), strict=True)
            if a == b}
    assert same == {step.tag for step in STEPS[:BORN_IN]}  # ids before it stay
    for step in STEPS[BORN_IN:]:  # later steps carry it
        assert NEW in git("show", f"{step.tag}:train_gpt2.py", cwd=clone)
