"""release tags what is checked, committed and described, and nothing else."""

import lecture_helpers as lecture
import pytest
from lecture_helpers import commit, git, refs

from build_nanogpt.check import command as check
from build_nanogpt.check import release
from build_nanogpt.cli import UserError
from build_nanogpt.lecture import build
from build_nanogpt.lecture.series import named_steps

HEAD = "# Changelog\n\n## Unreleased\n\n"


@pytest.fixture
def root(tmp_path):
    root = lecture.new_repository(tmp_path / "clone")
    build.main(build.Config(), root)
    write_changelog(root, f"## 1.0.0 - 2026-01-02\n\nlecture tip `{tip(root)}`\n")
    return root


def tip(root):
    return git(root, "rev-parse", "lecture").strip()


def write_changelog(root, text):
    (root / "CHANGELOG.md").write_bytes((HEAD + text).encode())
    commit(root, "changelog")


def merged(root):
    """main's tip has these parents."""
    return git(root, "log", "-1", "--format=%P", "main").split()


def run_release(root, version="1.0.0"):
    release.main(release.Config(version), root)


def refuse(root, words, version="1.0.0"):
    before = refs(root)
    with pytest.raises(UserError, match=words) as said:
        run_release(root, version)
    assert "\n" not in str(said.value) and refs(root) == before


def new_series(root, old, new, version="Lecture 1.0.1, 2026-01-03."):
    """Replace text in every step's program, steps/ and the top; commit."""
    trees = [{path: text.replace(old, new) if path == "train_gpt2.py" else text
              for path, text in files.items()} for files in lecture.small_lecture()]
    lecture.write_steps(root, trees, version=version)
    (root / "train_gpt2.py").write_bytes(trees[-1]["train_gpt2.py"].encode())
    commit(root, "mended")


def test_a_release(root, tmp_path, capsys):
    before = git(root, "rev-parse", "main", "main^{tree}").split()
    run_release(root)
    said = capsys.readouterr().out
    assert "4 steps checked: all are well\n" in said
    assert said.endswith(
        f"lecture-v1.0.0 is {tip(root)}, and main holds its history. Push them:\n"
        "    git push --force origin lecture 'refs/tags/step-*'\n"
        "    git push origin main lecture-v1.0.0\n")
    assert merged(root) == [before[0], tip(root)]
    assert git(root, "rev-parse", "main^{tree}").strip() == before[1]
    assert git(root, "status", "--porcelain") == ""
    assert git(root, "rev-parse", "lecture-v1.0.0^{}").strip() == tip(root)
    assert git(root, "for-each-ref", "--format=%(taggername) %(taggerdate:iso-strict) %(subject)",
               "refs/tags/lecture-v1.0.0") == (
        "build_nanogpt 2026-01-02T00:00:00+00:00 lecture 1.0.0\n")
    other = tmp_path / "other"  # another clone, not built yet, gets the same id
    git(tmp_path, "clone", "-q", "--no-tags", "--single-branch", str(root), str(other))
    run_release(other)
    assert refs(other, "refs/tags") == refs(root, "refs/tags")


@pytest.mark.parametrize("version", ["", "1.0", "v1.0.0", "1.0.0a", "01.0.0"])
def test_versions(root, version):
    refuse(root, "is not X.Y.Z", version)


def test_versions_grow_and_never_move(root):
    run_release(root)
    refuse(root, "1.0.0 is not greater than the last, lecture-v1.0.0", "1.0.0")
    refuse(root, "0.9.9 is not greater than the last, lecture-v1.0.0", "0.9.9")


def test_a_plain_clone_has_every_step(root, tmp_path):
    """Nothing built, no tags: the newest release's steps are found by their subjects, and main's
    history has only grown."""
    mains = [git(root, "rev-parse", "main").strip()]
    for version, text in ("1.0.0", "a + b"), ("1.0.1", "b + a"):
        if version == "1.0.1":
            new_series(root, "return a + b", "return b + a")
            build.main(build.Config(), root)
            write_changelog(root, f"## 1.0.1 - 2026-01-03\n\nlecture tip `{tip(root)}`\n"
                            "- `step-01`: the other way round\n")
        run_release(root, version)
        mains.append(git(root, "rev-parse", "main").strip())
        clone = tmp_path / version
        git(tmp_path, "clone", "-q", "--no-tags", "--single-branch", str(root), str(clone))
        assert refs(clone, "refs/tags") == {} and (clone / "CHANGELOG.md").is_file()
        listed = git(clone, "log", "--oneline")
        assert all(f"step-0{i}: {title}\n" in listed for i, title in enumerate(lecture.TITLES))
        git(clone, "checkout", "-q", ":/^step-02:")
        assert f"return {text}\n" in (clone / "train_gpt2.py").read_text()
        assert (clone / "README.md").read_text() == lecture.small_lecture()[2]["README.md"]
        for old in mains:
            git(clone, "merge-base", "--is-ancestor", old, "main")  # or it fails


def test_main_that_lost_the_history(root):
    """A rebase drops the merge; the same release puts it back and checks nothing again."""
    run_release(root)
    git(root, "reset", "-q", "--hard", "main^1")
    before = {name: i for name, i in refs(root).items() if "main" not in name}
    run_release(root)
    assert merged(root)[1] == tip(root)
    assert {name: i for name, i in refs(root).items() if "main" not in name} == before
    refuse(root, "1.0.0 is not greater than the last")


def test_the_merge_has_a_name(root, monkeypatch):
    """The user's, or the project's where they have none."""
    monkeypatch.setenv("HOME", str(root.parent))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    run_release(root)
    assert git(root, "log", "-1", "--format=%an %cn %s", "main") == (
        "build_nanogpt build_nanogpt Join the history of lecture 1.0.0\n")
    git(root, "reset", "-q", "--hard", "main^1")
    git(root, "config", "user.name", "Somebody")
    git(root, "config", "user.email", "some@example.org")
    run_release(root)
    assert git(root, "log", "-1", "--format=%an %ce", "main") == "Somebody some@example.org\n"


def test_a_release_is_made_on_main(root):
    git(root, "switch", "-q", "-c", "other")
    refuse(root, "other is checked out, and a release is made on main")
    git(root, "switch", "-q", "--detach", "main")
    refuse(root, "no branch is checked out, and a release is made on main")


def test_check_says_what_main_lacks(root, capsys):
    note = "main does not hold this lecture's history yet: python -m build_nanogpt release 1.0.0"
    config = check.Config(latest_only=True)
    check.main(config, root)
    assert capsys.readouterr().out.splitlines()[-1] == note
    run_release(root)
    capsys.readouterr()
    check.main(config, root)
    assert "main does not" not in capsys.readouterr().out
    git(root, "branch", "-q", "-m", "main", "trunk")
    check.main(config, root)
    assert "main does not" not in capsys.readouterr().out


def test_commits_of_main_that_look_like_steps(root, capsys):
    """git finds the newest commit with a step's subject, whoever made it."""
    (root / "notes.txt").write_text("mine\n")
    git(root, "add", "notes.txt")
    git(root, "commit", "-q", "-m", "step-02: a note", env={
        "GIT_COMMITTER_DATE": "2026-01-01T23:59:59Z"})
    run_release(root)  # older than the lecture
    git(root, "commit", "-q", "--allow-empty", "-m", "step-02: another", env={
        "GIT_COMMITTER_DATE": "2026-01-02T00:05:00Z"})
    capsys.readouterr()
    check.main(check.Config(latest_only=True), root)
    name = git(root, "rev-parse", "--short", "main").strip()
    assert capsys.readouterr().out.splitlines()[-1].startswith(
        f"main's commit '{name} step-02: another' is newer than that step of the lecture")
    git(root, "reset", "-q", "--hard", "main^^1")
    git(root, "update-ref", "-d", "refs/tags/lecture-v1.0.0")
    git(root, "commit", "-q", "--allow-empty", "-m", "step-02: another", env={
        "GIT_COMMITTER_DATE": "2026-01-02T00:05:00Z"})
    refuse(root, "main's commit '.* step-02: another' would be found instead of that step, since "
           "it is newer than 2026-01-02")


def test_what_is_not_committed(root):
    for path in "CHANGELOG.md", "train_gpt2.py", "steps/01-add.md":
        with open(root / path, "a", encoding="utf-8") as file:
            file.write("\n")
        refuse(root, f"{path} has changes that are not committed")
        git(root, "checkout", "-q", path)
    (root / "notes.txt").write_text("mine\n")
    run_release(root)


def test_the_top_is_the_last_step(root):
    with open(root / "train_gpt2.py", "a", encoding="utf-8") as file:
        file.write("# more\n")
    commit(root, "more")
    refuse(root, "train_gpt2.py is not the last step's")


def test_the_changelog(root):
    right = tip(root)
    for text, words in [
            ("", "no heading '## 1.0.0 - YYYY-MM-DD'"),
            (f"## 1.0.0\n\nlecture tip `{right}`\n", "no heading"),
            (f"## 1.0.0 - 2026-02-30\n\nlecture tip `{right}`\n", "there is no day 2026-02-30"),
            (f"## 1.0.0 - 2026-01-02\n\n## 0.9.0 - 2026-01-01\n\nlecture tip `{right}`\n",
             f"does not hold the line: lecture tip `{right}`"),
            (f"## 1.0.0 - 2026-01-02\n\nlecture tip `{'0' * 40}`\n", "does not hold the line"),
            (f"## 1.0.0 - 2026-01-03\n\nlecture tip `{right}`\n",
             "says 'Lecture 1.0.0, 2026-01-02.' and CHANGELOG.md '1.0.0 - 2026-01-03': they must")]:
        write_changelog(root, text)
        refuse(root, words)
    write_changelog(root, f"## [1.0.0] - 2026-01-02\n\nlecture tip `{right}`\n")
    run_release(root)


def test_the_changelogs_ways_to_name_steps():
    text = "- step-04, 0:33:31: x\n- `step-27` (30, 41), 3:10:21\n- step-85 to step-87: y; step-100"
    assert named_steps(text) == {f"step-{n}" for n in ("04", 27, 30, 41, 85, 86, 87, 100)}
    assert named_steps("steps 5 to 7, step-1x") == set()


def test_changed_steps_are_named(root):
    run_release(root)
    new_series(root, "return a + b", "return b + a")
    build.main(build.Config(), root)
    part = f"## 1.0.1 - 2026-01-03\n\nlecture tip `{tip(root)}`\n"
    write_changelog(root, part)
    refuse(root, "part 1.0.1 does not name step-01, whose lines changed", "1.0.1")
    write_changelog(root, f"{part}- `step-01`: the other way round\n")
    run_release(root, "1.0.1")
    assert {"refs/tags/lecture-v1.0.0", "refs/tags/lecture-v1.0.1"} <= refs(root).keys()
    assert git(root, "rev-parse", "lecture-v1.0.1^{}").strip() == tip(root)


def test_releases_of_one_day(root):
    """Their steps would have the same dates: which of them is newer?"""
    run_release(root)
    new_series(root, "return a + b", "return b + a", "Lecture 1.0.1, 2026-01-02.")
    build.main(build.Config(), root)
    write_changelog(root, f"## 1.0.1 - 2026-01-02\n\nlecture tip `{tip(root)}`\n`step-01`\n")
    refuse(root, "the day 2026-01-02 is not later than that of the last release, lecture-v1.0.0",
           "1.0.1")


def test_a_failing_check(root, capsys):
    new_series(root, "return a + b", "return a - b", "Lecture 1.0.0, 2026-01-02.")
    build.main(build.Config(), root)
    write_changelog(root, f"## 1.0.0 - 2026-01-02\n\nlecture tip `{tip(root)}`\n")
    refuse(root, "nothing is released: steps failed the check")
    assert "3 of 4 steps failed: step-01, step-02, step-03" in capsys.readouterr().out


def test_a_branch_with_other_work(root, monkeypatch):
    """It is refused before the check, which takes minutes."""
    monkeypatch.setattr(release, "check_aloud", None)
    git(root, "branch", "-f", "lecture", "main")
    refuse(root, "lecture holds commits that are not in steps/")
