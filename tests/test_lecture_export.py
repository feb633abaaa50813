"""export writes back what was edited on the branch, that and no more."""

import lecture_helpers as lecture
import pytest
from lecture_helpers import commit, git, refs

from build_nanogpt.cli import UserError
from build_nanogpt.lecture import build, export
from build_nanogpt.lecture.series import read_series


@pytest.fixture
def root(tmp_path):
    root = lecture.new_repository(tmp_path / "clone")
    build.main(build.Config(), root)
    git(root, "worktree", "add", "-q", str(tmp_path / "tree"), "lecture")
    return root


@pytest.fixture
def tree(root):
    return root.parent / "tree"


def edit(path, old, new):
    text = path.read_bytes().decode()
    assert old in text
    path.write_bytes(text.replace(old, new).encode())


def mend(tree, number, path, old, new):
    """Leave the branch as a rebase does: the step edited, and every later one on top of it."""
    git(tree, "checkout", "-q", "--detach", f"step-{number - 1:02d}")
    for k in range(number, 4):
        git(tree, "read-tree", "-u", "--reset", f"step-{k:02d}")
        edit(tree / path, old, new)
        git(tree, "commit", "-qam", f"step-{k:02d}: {lecture.TITLES[k]}")
    git(tree, "checkout", "-q", "-B", "lecture")


def steps_on_disk(root):
    return {path.name: path.read_bytes() for path in (root / "steps").iterdir()}


def run_export(root, capsys):
    capsys.readouterr()
    export.main(export.Config(), root)
    return capsys.readouterr().out


def refuse(root, words):
    """The export refuses in one line, and writes nothing."""
    before = steps_on_disk(root), git(root, "status", "--porcelain"), refs(root)
    with pytest.raises(UserError, match=words) as said:
        export.main(export.Config(), root)
    assert "\n" not in str(said.value)
    assert (steps_on_disk(root), git(root, "status", "--porcelain"), refs(root)) == before


def test_nothing_to_write(root, capsys):
    assert run_export(root, capsys) == "nothing to write\n"
    assert git(root, "status", "--porcelain") == ""


def test_an_edited_early_step(root, tree, capsys):
    before = steps_on_disk(root)
    mend(tree, 1, "train_gpt2.py", "return a + b", "return b + a")
    said = run_export(root, capsys)
    after = steps_on_disk(root)
    assert {name for name in after if after[name] != before[name]} == {
        "01-add.patch", "02-output.patch", "03-twice.patch"}
    assert b"+    return b + a\n" in after["01-add.patch"]
    assert b"     return b + a\n" in after["02-output.patch"]
    assert said.splitlines() == [
        "step-01: its lines changed: train_gpt2.py",
        "step-02: its patch was refreshed, its lines are the same",
        "step-03: its patch was refreshed, its lines are the same",
        "written: train_gpt2.py",
        "CHANGELOG.md's part Unreleased does not name step-01",
        "next: python -m build_nanogpt check, then build"]
    assert "return b + a" in (root / "train_gpt2.py").read_text()
    assert run_export(root, capsys) == "nothing to write\n"
    trees = git(root, "log", "--format=%T", "lecture")
    git(tree, "switch", "-q", "--detach")
    build.main(build.Config(), root)  # takes the edited branch over
    assert git(root, "log", "--format=%T", "lecture") == trees
    assert refs(root)["refs/heads/lecture"] == git(root, "rev-parse", "step-03^{}").strip()
    assert run_export(root, capsys) == "nothing to write\n"


def test_patches_that_still_lead_there_are_kept(root, tree, capsys):
    """An edit far from the later steps' lines touches their patches no more than it must."""
    before = steps_on_disk(root)
    mend(tree, 1, "tests/test_01_add.py", "2 and 3", "Two and three")
    run_export(root, capsys)
    after = steps_on_disk(root)
    assert {name for name in after if after[name] != before[name]} == {"01-add.patch"}
    assert "Two and three" in (root / "tests" / "test_01_add.py").read_text()


def test_a_patch_of_other_form_is_kept(root, capsys):
    """Short ids, another author's context: as long as it leads to the branch's tree."""
    path = root / "steps" / "02-output.patch"
    path.write_bytes(b"".join(line for line in path.read_bytes().splitlines(keepends=True)
                              if not line.startswith(b"index ")))
    assert run_export(root, capsys) == "nothing to write\n"


def test_an_edited_lesson(root, tree, capsys):
    git(tree, "checkout", "-q", "lecture")
    edit(tree / "README.md", "A little.", "Much.")
    git(tree, "commit", "-qa", "--amend", "--no-edit")
    said = run_export(root, capsys)
    assert said.startswith("step-03: its lesson changed\nnext:")
    assert "Much." in (root / "steps" / "03-twice.md").read_text()
    assert git(root, "status", "--porcelain").split() == ["M", "steps/03-twice.md"]


def add_step(tree, readme=True, test="tests/test_04_three_times.py"):
    edit(tree / "train_gpt2.py", "def twice(a):", "def thrice(a):\n    return 3 * a\n\n\n"
         "def twice(a):")
    (tree / test).write_bytes(b"from train_gpt2 import thrice\n\n\ndef test_it():\n"
                              b"    assert thrice(2) == 6\n")
    if readme:
        (tree / "README.md").write_bytes(lecture.lesson(4, "Three times").encode())
    commit(tree, "step-04: Three times")


def test_a_new_step_at_the_end(root, tree, capsys):
    add_step(tree)
    (tree / "tests" / "test_02_output.py").unlink()
    git(tree, "commit", "-qa", "--amend", "--no-edit")
    said = run_export(root, capsys).splitlines()
    assert said == ["step-04: new: steps/04-three-times",
                    "written: tests/test_04_three_times.py, train_gpt2.py",
                    "removed: tests/test_02_output.py",
                    "CHANGELOG.md's part Unreleased does not name step-04",
                    "next: python -m build_nanogpt check, then build"]
    assert [step.tag for step in read_series(root)][-1] == "step-04"
    assert not (root / "tests" / "test_02_output.py").exists()
    assert (root / "README.md").read_text() == "# adds\n"  # the project's own stays
    edit(root / "CHANGELOG.md", "## Unreleased\n", "## Unreleased\n\n- `step-04` is new.\n")
    assert export.unnamed(root, ["step-04", "step-03"]) == ["step-03"]


def test_new_steps_that_are_not_whole(root, tree):
    add_step(tree, readme=False)
    refuse(root, "commit .{10} 'step-04: Three times' has no lesson of its own")
    git(tree, "rm", "-q", "README.md")
    git(tree, "commit", "-qa", "--amend", "--no-edit")
    refuse(root, "has no lesson of its own")
    git(tree, "reset", "-q", "--hard", "HEAD~")
    add_step(tree, test="tests/test_others.py")
    refuse(root, "adds no tests/test_04_slug.py")
    git(tree, "reset", "-q", "--hard", "HEAD~")
    (tree / "README.md").write_bytes(lecture.lesson(4, "Nothing").encode())
    commit(tree, "step-04: Nothing")
    refuse(root, "changes no file but its lesson")


def test_branches_that_are_no_lecture(root, tree):
    edit(tree / "train_gpt2.py", "a + b", "b + a")
    git(tree, "commit", "-qam", "fixup! step-01: Sums")
    refuse(root, "'fixup! step-01: Sums' is not a step: finish with git rebase -i --autosquash")
    git(tree, "commit", "-q", "--amend", "-m", "step-07: Seven")
    refuse(root, "'step-07: Seven' is where step-04 belongs")
    git(tree, "reset", "-q", "--hard", "step-02")
    refuse(root, "lecture ends with step-02, steps/ with step-03: delete steps/03-twice")
    git(tree, "reset", "-q", "--hard", "step-03")
    merge = git(tree, "commit-tree", "-p", "step-03^{}", "-p", "step-00^{}", "-m", "step-04: Both",
                "HEAD^{tree}")
    git(tree, "reset", "-q", "--hard", merge.strip())
    refuse(root, "'step-04: Both' is a merge: rebase")
    git(tree, "switch", "-q", "--detach")
    git(root, "branch", "-D", "lecture")
    refuse(root, "there is no branch lecture: python -m build_nanogpt build")


def test_a_lesson_with_a_wrong_head(root, tree):
    edit(tree / "README.md", "# step-03: Doubles", "# Doubles")
    git(tree, "commit", "-qa", "--amend", "--no-edit")
    refuse(root, "steps/03-twice.md: its first line must be '# step-03: Title'")


def test_a_file_that_patches_cannot_hold(root, tree):
    (tree / "picture.png").write_bytes(b"\x89PNG\0\0\1")
    git(tree, "add", "picture.png")
    git(tree, "commit", "-qa", "--amend", "--no-edit")
    refuse(root, "step-03 does not apply .steps/03-twice.patch.: .*binary patch")


@pytest.mark.parametrize("path", ["train_gpt2.py", "steps/01-add.patch"])
def test_changes_that_are_not_committed_are_kept(root, tree, path):
    mend(tree, 1, "train_gpt2.py", "return a + b", "return b + a")
    with open(root / path, "a", encoding="utf-8") as file:
        file.write("\n")
    refuse(root, f"{path} has changes that are not committed and would be overwritten")


def test_other_changes_do_not_matter(root, tree, capsys):
    mend(tree, 1, "train_gpt2.py", "return a + b", "return b + a")
    (root / "notes.txt").write_text("mine\n")
    edit(root / "CHANGELOG.md", "Unreleased\n", "Unreleased\n\n`step-01` adds the other way.\n")
    assert "does not name" not in run_export(root, capsys)
    assert (root / "notes.txt").read_text() == "mine\n"
