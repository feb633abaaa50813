"""--keep-best: the checkpoint with the lowest validation loss is written, and stays."""

import json

import pytest
from helpers import TINY, main_here, write_shards

import train_gpt2
from nanogpt.report import read_log

pytestmark = pytest.mark.slow
LOSSES = [5.0, 3.0, 4.0, 2.5, 2.5, 2.6, 2.7]  # of steps 0, 1, 2 ...


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs main with these validation losses; returns {step: state.json} of what is there."""
    data = write_shards(tmp_path / "data")

    def go(*flags, losses=LOSSES, steps=6):
        found = iter(losses)
        monkeypatch.setattr(train_gpt2, "validate", lambda *args, **more: next(found))
        main_here(monkeypatch, *TINY, "--data", data, "--out-dir", tmp_path / "run", "--eval-every",
                  1, "--sample-tokens", 0, "--max-steps", steps, "--checkpoint-every", 100, *flags)
        return {int(path.name[-6:]): json.loads((path / "state.json").read_text())
                for path in sorted((tmp_path / "run").glob("checkpoint_*"))}
    return go


def test_the_best_and_the_last_stay(run):
    there = run("--keep-best", "--keep", 1)
    assert list(there) == [3, 6] and there[6]["best"] == [2.5, 3]  # the first of equals


def test_all_improvements_stay_without_keep(run):
    assert list(run("--keep-best")) == [1, 3, 6]


def test_without_the_flag_nothing_more_is_written(run):
    assert list(run()) == [6]


def test_the_last_may_be_the_best(run):
    assert list(run("--keep-best", "--keep", 1, losses=[5, 4, 3, 2, 1, 0.5, 0.4])) == [6]


def test_a_resumed_run_remembers_it(run, tmp_path):
    assert list(run("--keep-best", "--keep", 1, steps=4)) == [3, 4]
    there = run("--keep-best", "--keep", 1, "--resume", losses=LOSSES[5:])
    assert list(there) == [3, 6] and there[6]["best"] == [2.5, 3]
    assert len(read_log(tmp_path / "run" / "log.txt")["val"][0]) == 7
