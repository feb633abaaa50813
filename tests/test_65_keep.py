"""Old checkpoints are deleted, but never before the new one is complete."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from helpers import TINY, main_here, refusal, write_shards

import train_gpt2
from nanogpt.checkpoints import remove_old
from nanogpt.common import UserError
from nanogpt.disk import save_file

pytestmark = pytest.mark.slow

RUN = [*TINY, "--val-tokens", 512, "--sample-tokens", 0, "--max-steps", 7, "--checkpoint-every", 1]


def steps(folder):
    return [int(path.name[-6:]) for path in sorted(folder.glob("checkpoint_*"))]


@pytest.mark.parametrize("flags, expected", [
    ([], [1, 2, 3, 4, 5, 6, 7]), (["--keep", 1], [7]), (["--keep", 3], [5, 6, 7]),
    (["--keep", 2, "--keep-every", 3], [3, 6, 7]), (["--keep", 1, "--keep-every", 2], [2, 4, 6, 7]),
    (["--keep-every", 2], [1, 2, 3, 4, 5, 6, 7]), (["--keep", 100], [1, 2, 3, 4, 5, 6, 7])])
def test_the_newest_and_the_milestones_stay(flags, expected, tmp_path, monkeypatch):
    main_here(monkeypatch, *RUN, "--data", write_shards(tmp_path / "shards"), "--out-dir",
              tmp_path / "run", *flags)
    assert steps(tmp_path / "run") == expected
    assert not list((tmp_path / "run").glob(".checkpoint*"))


def test_nothing_goes_before_the_new_one_is_whole(tmp_path, monkeypatch):
    """The disk fails while the second is being written: the first one stays."""
    saved = []

    def fails_later(tensors, path, *args, original=save_file, **more):
        saved.append(path)
        if len(saved) > 2:
            raise OSError(28, "No space left on device")
        original(tensors, path, *args, **more)

    for room in "weights", "checkpoints":
        monkeypatch.setattr(f"nanogpt.{room}.save_file", fails_later)
    with pytest.raises((OSError, UserError), match="No space"):
        main_here(monkeypatch, *RUN, "--data", write_shards(tmp_path / "shards"), "--out-dir",
                  tmp_path / "run", "--keep", 1)
    assert steps(tmp_path / "run") == [1]


def test_later_ones_do_not_count(tmp_path):
    """A damaged checkpoint that a resume passed over is newer than what the run now saves."""
    for step in 2, 4, 6, 9:
        (tmp_path / f"checkpoint_{step:06d}").mkdir()
    remove_old(tmp_path, 6, 1, None)
    assert steps(tmp_path) == [6, 9]


def test_it_loses_its_name_in_one_act(tmp_path, monkeypatch):
    """A kill while files are deleted must not leave half a folder under a checkpoint's name."""
    seen, real = [], Path.unlink
    for step in 1, 2:
        (tmp_path / f"checkpoint_{step:06d}").mkdir()
        (tmp_path / f"checkpoint_{step:06d}" / "state.json").touch()
    monkeypatch.setattr(Path, "unlink", lambda path: (seen.append(steps(tmp_path)), real(path)))
    remove_old(tmp_path, 2, 1, None)
    assert seen == [[2]] and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("flag", ["--keep", "--keep-every"])
def test_none_is_too_few(flag, tmp_path, monkeypatch, capsys):
    said = refusal(train_gpt2.main, *RUN, "--data", tmp_path, flag, 0, monkeypatch=monkeypatch,
                   capsys=capsys)
    assert f"{flag} 0: give 1 or more" in said


def test_a_link_goes_and_its_target_stays(tmp_path, monkeypatch):
    """A checkpoint was moved to another disk."""
    args = [*RUN, "--data", write_shards(tmp_path / "shards"), "--out-dir", tmp_path / "run",
            "--keep", 1]
    main_here(monkeypatch, *args, "--max-steps", 3)
    (tmp_path / "run" / "checkpoint_000003").rename(tmp_path / "big")
    (tmp_path / "run" / "checkpoint_000003").symlink_to(tmp_path / "big")
    main_here(monkeypatch, *args, "--resume")
    assert steps(tmp_path / "run") == [7]
    assert (tmp_path / "big" / "model.safetensors").is_file()
    assert not list((tmp_path / "run").glob(".checkpoint*"))


def test_what_somebody_put_into_one_stays(tmp_path, monkeypatch, capsys):
    """One line says where."""
    for step in 1, 2, 3:
        (tmp_path / f"checkpoint_{step:06d}").mkdir()
        (tmp_path / f"checkpoint_{step:06d}" / "state.json").touch()
    (tmp_path / "checkpoint_000001" / "README.md").write_text("mine")
    remove_old(tmp_path, 3, 1, None)
    assert steps(tmp_path) == [3]
    assert [path.name for path in (tmp_path / "leftover_1").iterdir()] == ["README.md"]
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and str(tmp_path / "leftover_1") in said


@pytest.mark.parametrize("call", ["replace", "unlink", "rmdir"])
def test_what_cannot_be_deleted_does_not_end_the_run(call, tmp_path, monkeypatch, capsys):
    """It is protected, or somebody else deletes it at the same moment."""
    original = getattr(os, call)

    def fails(path, *more, **how):
        if "checkpoint_000001" in str(path):
            raise OSError(errno.EACCES, "Permission denied", str(path))
        return original(path, *more, **how)

    for step in 1, 2, 3:
        (tmp_path / f"checkpoint_{step:06d}").mkdir()
        (tmp_path / f"checkpoint_{step:06d}" / "state.json").touch()
    monkeypatch.setattr(os, call, fails)
    remove_old(tmp_path, 3, 1, None)
    monkeypatch.undo()
    said = capsys.readouterr().out
    assert said.startswith("cannot delete ") and "checkpoint_000001" in said
    assert said.endswith("(Permission denied)\n") and said.count("\n") == 1
    assert steps(tmp_path) == ([1, 3] if call == "replace" else [3])


def test_one_that_is_gone_already(tmp_path, monkeypatch):
    for step in 1, 2:
        (tmp_path / f"checkpoint_{step:06d}").mkdir()
    found = [(1, tmp_path / "checkpoint_000001"), (2, tmp_path / "checkpoint_000002")]
    monkeypatch.setattr("nanogpt.checkpoints.find_checkpoints", lambda folder: found)
    shutil.rmtree(tmp_path / "checkpoint_000001")
    remove_old(tmp_path, 2, 1, None)
    assert steps(tmp_path) == [2]
