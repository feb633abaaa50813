"""A new run in an earlier run's folder keeps the earlier checkpoints apart from its own."""

import shutil

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
