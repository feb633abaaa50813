"""build makes the same branch and tags everywhere, and touches nothing else."""

import os
import subprocess
import sys
import time

import lecture_helpers as lecture
import pytest
from helpers import ROOT
from lecture_helpers import git, refs

from build_nanogpt.cli import UserError
from build_nanogpt.lecture import build, contents
from build_nanogpt.lecture import git as isolated
from build_nanogpt.lecture.series import parse_patch, read_series

BRANCH = build.BRANCH
HOSTILE = """[user]
    name = Somebody Else
    email = else@example.org
[core]
    autocrlf = true
    quotepath = false
    fileMode = false
    whitespace = tab-in-indent
    hooksPath = {folder}/hooks
    attributesFile = {folder}/attributes
[apply]
    whitespace = fix
[commit]
    gpgsign = true
[tag]
    gpgSign = true
[diff]
    noprefix = true
    mnemonicPrefix = true
[i18n]
    commitEncoding = latin1
"""
HOSTILE_ENVIRONMENT = {
    "GIT_AUTHOR_DATE": "2001-01-01T00:00:00Z", "GIT_COMMITTER_NAME": "Nobody",
    "GIT_DIR": "/nowhere", "GIT_INDEX_FILE": "/nowhere/index", "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "core.autocrlf", "GIT_CONFIG_VALUE_0": "true",
    "TZ": "Asia/Kolkata", "LC_ALL": "de_DE.UTF-8"}


@pytest.fixture
def root(tmp_path):
    return lecture.new_repository(tmp_path / "clone")


def run_build(root):
    build.main(build.Config(), root)


def refuse(root, words):
    """The build refuses in one line, and no ref moves."""
    before = refs(root)
    with pytest.raises(UserError, match=words) as said:
        run_build(root)
    assert "\n" not in str(said.value) and refs(root) == before
    return str(said.value)


def rewrite(path, old, new):
    text = path.read_bytes().decode()
    assert old in text
    path.write_bytes(text.replace(old, new).encode())


def test_branch_and_tags(root, capsys):
    run_build(root)
    assert "added: step-00 ... step-03\n" in capsys.readouterr().out
    for i, files in enumerate(lecture.small_lecture()):
        listed = git(root, "ls-tree", "-r", "--name-only", f"step-{i:02d}").split()
        assert listed == sorted(files)
        for path, text in files.items():
            assert git(root, "show", f"step-{i:02d}:{path}") == text
    assert refs(root, BRANCH)[BRANCH] == git(root, "rev-parse", "step-03^{}").strip()
    assert [line.split(None, 1) for line in git(root, "tag", "-n").splitlines()] == [
        ["step-00", "The empty file (0:00:00)"], ["step-01", "Sums (0:01:00)"],
        ["step-02", "Output (0:02:00)"], ["step-03", "Doubles (0:03:00)"]]
    assert git(root, "log", "-1", "--format=%B|%an|%cn|%aI|%P", "step-00") == (
        "step-00: The empty file\n\nOne sees the empty file.\n|build_nanogpt|build_nanogpt|"
        "2026-01-02T00:00:00+00:00|\n")
    assert git(root, "log", "-1", "--format=%cI %s", "step-02") == (
        "2026-01-02T00:02:00+00:00 step-02: Output\n")
    assert git(root, "fsck", "--strict") == ""


def test_a_step_past_the_video(root):
    path = root / "steps" / "03-twice.md"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(text.split("\n")[2], "Past the video. One sees doubles."))
    run_build(root)
    assert git(root, "tag", "-n", "-l", "step-03").split(None, 1)[1] == "Doubles (past the video)\n"


@pytest.mark.parametrize("line", ["", "Lecture 2.0, 2026-01-02.", "Lecture 1.0.0, 2026-02-30.",
                                  "A lecture: Lecture 1.0.0, 2026-01-02."])
def test_the_day_of_the_lecture(root, line):
    """The commits' dates are a version's day, which the syllabus must give."""
    syllabus = root / "steps" / "README.md"
    rewrite(syllabus, "Lecture 1.0.0, 2026-01-02.", line)
    refuse(root, "steps/README.md has no line that begins 'Lecture X.Y.Z, YYYY-MM-DD.'")
    syllabus.unlink()
    refuse(root, "steps/README.md has no line")


def test_a_later_version_moves_every_step(root):
    """git finds the newest version of a step, though the old commits are still there."""
    run_build(root)
    before = refs(root)
    git(root, "tag", "old", "lecture")
    rewrite(root / "steps" / "README.md", "1.0.0, 2026-01-02", "1.0.1, 2026-02-01")
    run_build(root)
    after = refs(root)
    assert all(after[name] != before[name] for name in before if "step-" in name)
    for i in range(4):
        assert git(root, "rev-parse", f":/^step-{i:02d}:") == git(
            root, "rev-parse", f"step-{i:02d}^{{}}")


def test_ids_are_the_same_for_everybody(root, tmp_path):
    run_build(root)
    folder = tmp_path / "hostile"
    (folder / "hooks").mkdir(parents=True)
    for hook in "reference-transaction", "pre-commit", "applypatch-msg", "post-index-change":
        (folder / "hooks" / hook).write_text("#!/bin/sh\nexit 1\n")
        (folder / "hooks" / hook).chmod(0o755)
    (folder / "attributes").write_text("* text eol=crlf\n*.py diff=python ident\n")
    config = HOSTILE.format(folder=folder)
    (folder / ".gitconfig").write_text(config)
    (folder / ".config" / "git").mkdir(parents=True)
    (folder / ".config" / "git" / "attributes").write_text("* text eol=crlf\n")
    other = tmp_path / "other clone"
    git(tmp_path, "clone", "-q", "-c", "core.autocrlf=true", str(root), str(other))
    for ref in refs(other, "refs/tags"):
        git(other, "update-ref", "-d", ref)
    assert b"\r\n" in (other / "steps" / "01-add.patch").read_bytes()
    with open(other / ".git" / "config", "a", encoding="utf-8") as file:
        file.write(config)
    (other / ".git" / "info").mkdir(exist_ok=True)
    (other / ".git" / "info" / "attributes").write_text("* text eol=crlf\n")
    program = ("import os; os.umask(0o077); from pathlib import Path; "
               "from build_nanogpt.lecture import build; "
               f"build.main(build.Config(), Path({str(other)!r}))")
    env = {**os.environ, **HOSTILE_ENVIRONMENT, "HOME": str(folder), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=env, cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert refs(other, "refs/tags") == refs(root, "refs/tags") != {}
    assert refs(other, BRANCH) == refs(root, BRANCH) != {}


def snapshot(root):
    state = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*")
             if path.is_file() and not set(path.relative_to(root).parts) & {"objects", "tags"}
             and "lecture" not in path.name}
    others = {name: i for name, i in refs(root).items()
              if "step-" not in name and name != BRANCH}
    return state, others, git(root, "--no-optional-locks", "status", "--porcelain")


def test_nothing_of_the_users_is_touched(root):
    git(root, "branch", "mine")
    git(root, "tag", "step-07-mine")
    (root / "train_gpt2.py").write_text("# being edited\n")
    (root / "new.txt").write_text("not tracked\n")
    git(root, "add", "new.txt")
    before = snapshot(root)
    run_build(root)
    assert snapshot(root) == before
    rewrite(root / "steps" / "01-add.md", "A little.", "A lot.")
    before = snapshot(root)
    run_build(root)
    assert snapshot(root) == before


def test_second_build_moves_nothing(root, capsys):
    run_build(root)
    before = refs(root), sorted((root / ".git" / "objects").rglob("*"))
    capsys.readouterr()
    run_build(root)
    assert "nothing moved" in capsys.readouterr().out
    assert (refs(root), sorted((root / ".git" / "objects").rglob("*"))) == before


def test_an_edit_moves_its_step_and_the_later_ones(root, capsys):
    run_build(root)
    before = refs(root)
    rewrite(root / "steps" / "02-output.patch", "12.5 ms", "13.5 ms")
    rewrite(root / "steps" / "03-twice.patch", "12.5 ms", "13.5 ms")
    run_build(root)
    assert "moved: step-02 ... step-03\n" in capsys.readouterr().out
    moved = {name for name, i in refs(root).items() if i != before[name]}
    assert moved == {BRANCH, "refs/tags/step-02", "refs/tags/step-03"}


def test_a_shorter_series_loses_its_own_tags(root, capsys):
    run_build(root)
    for path in (root / "steps").glob("03-*"):
        path.unlink()
    run_build(root)
    assert "removed, past the last step: step-03" in capsys.readouterr().out
    assert "refs/tags/step-03" not in refs(root)
    git(root, "tag", "-a", "-m", "mine", "step-09")
    run_build(root)
    assert "refs/tags/step-09" in refs(root)


@pytest.mark.parametrize("kind", [[], ["-a", "-m", "step-02: Output"]])
def test_a_foreign_tag_is_refused(root, kind):
    git(root, "tag", *kind, "step-02")
    refuse(root, "the tag step-02 is not build's own: rename it, or delete it with git tag -d")


def test_a_branch_with_other_work_is_refused(root, tmp_path):
    git(root, "branch", "lecture")
    refuse(root, "lecture holds commits that are not in steps/: run .* export, or delete it")
    git(root, "branch", "-D", "lecture")
    run_build(root)
    git(root, "worktree", "add", "-q", str(tmp_path / "tree"), "lecture")
    (tmp_path / "tree" / "train_gpt2.py").write_text("# mended\n")
    lecture.commit(tmp_path / "tree", "fixup! step-01: Sums")
    git(tmp_path / "tree", "switch", "-q", "--detach")
    rewrite(root / "steps" / "01-add.md", "A little.", "A lot.")
    refuse(root, "lecture holds commits that are not in steps/")


def test_a_branch_of_the_same_trees_is_taken_over(root):
    run_build(root)
    built = refs(root)
    tip = git(root, "commit-tree", "-m", "step-03: Doubles", "-p", "step-02^{}", "lecture^{tree}")
    git(root, "update-ref", BRANCH, tip.strip())
    run_build(root)
    assert refs(root) == built


def test_a_branch_that_is_checked_out_is_refused(root, tmp_path):
    run_build(root)
    tree = tmp_path / "tree"
    git(root, "worktree", "add", "-q", str(tree), "lecture")
    run_build(root)  # it need not move
    rewrite(root / "steps" / "01-add.md", "A little.", "A lot.")
    words = refuse(root, "lecture is checked out in .*tree and would have to move")
    assert f"git -C {tree} switch --detach" in words
    git(tree, "switch", "-q", "--detach")
    run_build(root)


def test_build_in_a_linked_worktree(root, tmp_path):
    tree = tmp_path / "tree"
    git(root, "worktree", "add", "-q", "--detach", str(tree))
    run_build(tree)
    made = refs(root)
    assert BRANCH in made
    run_build(root)
    assert refs(root) == made


def test_a_patch_that_does_not_apply(root):
    rewrite(root / "steps" / "02-output.patch", " def add(a, b):", " def add(a, c):")
    refuse(root, "step-02 does not apply .steps/02-output.patch.: train_gpt2.py, the hunk at line")
    (root / "steps" / "02-output.patch").write_text("nonsense\n")
    refuse(root, "step-02 does not apply .steps/02-output.patch.: No valid patches")


@pytest.mark.parametrize("old, new, words", [
    ("02-output.md", None, "steps/02-output.md is missing"),
    ("02-output.patch", None, "steps/02-output.patch is missing"),
    ("02-output.patch", "02-Output.patch", "steps/02-Output.patch: the name must be NN-slug"),
    ("02-output.patch", "2-output.patch", "steps/2-output.patch: the name must be NN-slug")])
def test_names_of_files(root, old, new, words):
    if new:
        (root / "steps" / old).rename(root / "steps" / new)
    else:
        (root / "steps" / old).unlink()
    refuse(root, words)


def test_gaps_doubles_and_no_steps(root):
    steps = root / "steps"
    for kind in "md", "patch":
        (steps / f"02-output.{kind}").rename(steps / f"05-output.{kind}")
    refuse(root, "steps/02-.*patch is missing: after 01 comes steps/03-twice")
    for kind in "md", "patch":
        (steps / f"05-output.{kind}").rename(steps / f"03-output.{kind}")
    refuse(root, "steps/02-.*patch is missing")
    for path in steps.iterdir():
        path.unlink()
    refuse(root, "no steps in ")


@pytest.mark.parametrize("old, new, words", [
    ("# step-02: Output", "# step-03: Output", "02-output.md: its first line must be '# step-02"),
    ("# step-02: Output", "Output", "02-output.md: its first line must be"),
    ("Video [0:02:00]", "See [0:02:00]", "02-output.md: the paragraph below its head must be"),
    ("Video [0:02:00]", "Video [2:00]", "02-output.md: the paragraph below its head must be")])
def test_malformed_heads(root, old, new, words):
    rewrite(root / "steps" / "02-output.md", old, new)
    refuse(root, words)


def test_a_patch_may_not_touch_the_readme(root):
    with open(root / "steps" / "02-output.patch", "a", encoding="utf-8") as file:
        file.write("diff --git a/README.md b/README.md\n--- a/README.md\n+++ b/README.md\n"
                   "@@ -1 +1 @@\n-a\n+b\n")
    refuse(root, "02-output.patch touches README.md")


def test_no_repository_old_git_no_git(root, tmp_path, monkeypatch):
    lecture.write_steps(tmp_path / "archive", lecture.small_lecture())
    with pytest.raises(UserError, match="archive is not a git repository"):
        run_build(tmp_path / "archive")
    lecture.write_steps(root / "inner", lecture.small_lecture())
    with pytest.raises(UserError, match="inner is a folder within another git repository"):
        run_build(root / "inner")
    isolated.check_version.cache_clear()
    call = isolated.call
    monkeypatch.setattr(isolated, "call", lambda args, *rest: b"git version 2.25.1\n"
                        if args == ["version"] else call(args, *rest))
    with pytest.raises(UserError, match="git version 2.25.1 is too old: install git 2.32"):
        run_build(root)
    monkeypatch.setattr(isolated, "call", call)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="git is not installed"):
        run_build(root)


def test_patches_are_counted_by_their_hunks():
    patch = (b"diff --git a/x.py b/x.py\nnew file mode 100644\n--- /dev/null\n+++ b/x.py\n"
             b"@@ -0,0 +1,2 @@\n+++ b\n+diff --git a/y b/y\n"
             b"diff --git a/z b/z\n--- a/z\n+++ b/z\n@@ -1 +1 @@\n--- old\n+new\n"
             b"\\ No newline at end of file\n")
    one, two = parse_patch(patch)
    assert (one.path, one.count(b"+"), one.count(b"-")) == ("x.py", 2, 0)
    assert two.lines == (b"--- old", b"+new", b"\\ No newline at end of file")


def test_contents(root, tmp_path, capsys):
    contents.main(contents.Config(), root, tmp_path)
    said = capsys.readouterr().out.splitlines()
    assert [line.split() for line in said[:4]] == [
        ["step-00", "The", "empty", "file", "0:00:00", "+1", "-0"],
        ["step-01", "Sums", "0:01:00", "+4", "-0"], ["step-02", "Output", "0:02:00", "+4", "-0"],
        ["step-03", "Doubles", "0:03:00", "+5", "-0"]]
    assert said[4:] == ["not built yet: python -m build_nanogpt build"]
    run_build(root)
    git(root, "worktree", "add", "-q", str(tmp_path / "tree"), "step-02")
    capsys.readouterr()
    contents.main(contents.Config(), root, tmp_path / "tree")
    said = capsys.readouterr().out.splitlines()
    assert [line.endswith("<- checked out here") for line in said] == [False, False, True, False]
    (tmp_path / "foreign").mkdir()
    git(tmp_path / "foreign", "init", "-q")
    contents.main(contents.Config(), root, tmp_path / "foreign")
    assert "checked out" not in capsys.readouterr().out


def test_the_video_path(root, tmp_path, capsys):
    """One stop for each moment of the video; steps past it have none."""
    one = (root / "steps" / "01-add.md").read_text(encoding="utf-8").split("\n")[2]
    two, three = (root / "steps" / f"{name}.md" for name in ("02-output", "03-twice"))
    for path, head in (two, one), (three, "Past the video. Doubles."):
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(text.split("\n")[2], head), encoding="utf-8")
    run_build(root)
    git(root, "worktree", "add", "-q", str(tmp_path / "tree"), "step-02")
    capsys.readouterr()
    contents.main(contents.Config(video=True), root, tmp_path / "tree")
    assert capsys.readouterr().out.splitlines() == [
        "0:00:00  step-00  The empty file", "0:01:00  step-01  Sums",
        "         step-02  Output  <- checked out here",
        "2 stops; 1 step is past the video: python -m build_nanogpt steps"]


def test_a_long_lecture_is_built_in_seconds(tmp_path):
    trees, text = [], ""
    for i in range(40):
        text += f"\n\ndef f{i}():\n    return {i}\n"
        trees.append({"train_gpt2.py": text, "README.md": lecture.lesson(i % 10, f"F{i}").replace(
            f"step-{i % 10:02d}", f"step-{i:02d}", 1)})
    root = lecture.new_repository(tmp_path / "long", trees)
    start = time.perf_counter()
    run_build(root)
    assert time.perf_counter() - start < 8  # about half a second where nothing else runs
    assert len(read_series(root)) == 40 and "refs/tags/step-39" in refs(root)


def test_the_command_line(tmp_path):
    env = {"PYTHONPATH": str(ROOT), "PATH": ""}
    for args, words in ([["build"], "error: git is not installed"],
                        [["build", "x"], "Unrecognized options: x"]):
        done = subprocess.run([sys.executable, "-m", "build_nanogpt", *args], cwd=tmp_path, env=env,
                              capture_output=True, text=True)
        assert done.returncode == 2 and not done.stdout, done.stdout
        assert words in done.stderr and "Traceback" not in done.stderr
    for command in "build", "steps":
        done = subprocess.run([sys.executable, "-X", "importtime", "-m", "build_nanogpt", command,
                               "--help"], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0 and command in done.stdout
        assert " torch" not in done.stderr  # fast: a build does without it
