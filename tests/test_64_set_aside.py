"""A new run in an earlier run's folder keeps the earlier checkpoints apart from its own."""

import shutil
from pathlib import Path

import pytest
from helpers import TINY, main_here, write_shards

pytestmark = pytest.mark.slow

RUN = [*TINY, "--val-tokens", 512, "--sample-tokens", 0, "--checkpoint-every", 2]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file()}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Start a run in the same folder again and again. Returns what it says."""
    data = write_shards(tmp_path / "shards")

    def run(max_steps, *flags):
        main_here(monkeypatch, *RUN, "--data", data, "--out-dir", tmp_path / "run", "--max-steps",
                  max_steps, *flags)
        return capsys.readouterr().out
    return run


def test_every_start_anew_sets_the_earlier_run_aside(run, tmp_path):
    """Its last checkpoint is step 4's. A resume of the second run, stopped early, must not take
    that for its own newest."""
    folder = tmp_path / "run"
    assert "set aside" not in run(4)
    saved = {name: contents(folder / name) for name in ("checkpoint_000002", "checkpoint_000004")}
    said = run(1, "--seed", 2)
    assert f"set aside 2 checkpoints of an earlier run: {folder / 'earlier_1'}" in said
    assert {path.name: contents(path) for path in (folder / "earlier_1").iterdir()} == saved
    assert [path.name for path in folder.glob("checkpoint_*")] == ["checkpoint_000001"]
    said = run(3, "--seed", 2, "--resume")
    assert "resumed    | at step 1 of" in said and "set aside" not in said
    run(1, "--seed", 3)
    assert sorted(path.name for path in (folder / "earlier_2").iterdir()) == [
        f"checkpoint_00000{step}" for step in (1, 2, 3)]
    assert {path.name: contents(path) for path in (folder / "earlier_1").iterdir()} == saved


def test_a_resume_that_finds_none_whole_keeps_the_damaged_ones(run, tmp_path):
    """They may still be useful; the new run overwrites nothing."""
    run(2)
    (tmp_path / "run" / "checkpoint_000002" / "state.json").unlink()
    before = contents(tmp_path / "run" / "checkpoint_000002")
    said = run(2, "--resume")
    assert "passed over" in said and "set aside 1 checkpoints" in said
    assert contents(tmp_path / "run" / "earlier_1" / "checkpoint_000002") == before


@pytest.mark.parametrize("flags", [[], ["--resume"]])
def test_what_was_half_written_is_cleared_away(flags, run, tmp_path):
    run(2)
    for name in ".checkpoint_000004.tmp", ".checkpoint_000002.old":
        shutil.copytree(tmp_path / "run" / "checkpoint_000002", tmp_path / "run" / name)
    run(2, *flags)
    assert not list((tmp_path / "run").glob(".checkpoint*"))


@pytest.mark.parametrize("link", ["../big", "{0}/big"])
def test_a_link_to_another_disk_is_set_aside_and_still_leads_there(link, run, tmp_path):
    """A path that begins in the folder would lead elsewhere from within earlier_2."""
    run(2)
    folder = tmp_path / "run"
    (folder / "earlier_1").symlink_to("nothing")
    (folder / "checkpoint_000002").rename(tmp_path / "big")
    (folder / "checkpoint_000002").symlink_to(link.format(tmp_path))
    before = contents(tmp_path / "big")
    run(1)
    aside = folder / "earlier_2" / "checkpoint_000002"
    assert aside.is_symlink() and aside.resolve() == (tmp_path / "big").resolve()
    assert contents(tmp_path / "big") == before and "state.json" in map(str, before)


def test_what_others_put_there_stays(run, tmp_path):
    """Names like ours, and files in what a killed run left."""
    run(2)
    folder = tmp_path / "run"
    half = shutil.copytree(folder / "checkpoint_000002", folder / ".checkpoint_000004.tmp")
    (half / ".tmpAb12Cd").write_text("safetensors was writing")
    (half / ".model.safetensors.tmp").write_text("half")
    (half / "notes.txt").write_text("mine")
    for name in ".checkpoint_notes", ".checkpoint_4.tmp", "checkpoint_x":
        (folder / name).write_text("mine")
    (folder / ".checkpoint_000006.old").symlink_to(tmp_path / "shards")
    run(2, "--resume")
    assert contents(folder / "leftover_1") == {Path("notes.txt"): b"mine"}
    for name in ".checkpoint_notes", ".checkpoint_4.tmp", "checkpoint_x":
        assert (folder / name).read_text() == "mine"
    assert not half.exists() and not (folder / ".checkpoint_000006.old").is_symlink()
    assert list((tmp_path / "shards").iterdir())
