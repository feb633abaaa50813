"""The log marks spikes above the last 128 steps; the window survives a restart."""

import json
import statistics
import time

import numpy as np
import pytest
from helpers import TINY, main_here, write_shards

import train_gpt2
from nanogpt.guard import Spikes
from nanogpt.checkpoints import Damaged, read_facts, write_checkpoint
from nanogpt.report import read_log


def looked_at(values, spikes=None):
    """For one value after the other, the z-score that Spikes reports, or None."""
    spikes, found = spikes or Spikes(), []
    for value in values:
        spikes.look(loss=value, norm=1.0)
        assert spikes.high.keys() <= {"loss"}, "a norm that never changes is never a spike"
        found.append(spikes.high.get("loss"))
    return found


def test_z_scores_equal_the_definition():
    """Mean and standard deviation of the 128 before, in exact arithmetic."""
    rng = np.random.default_rng(0)
    values = [float(x) for x in rng.normal(3.0, 0.1, size=400)]
    for step, jump in (127, 9.0), (128, 9.0), (300, 4.5), (301, 4.5), (350, 2.0):
        values[step] = jump
    found = looked_at(values)
    expected = []
    for i, value in enumerate(values):
        window = values[max(0, i - 128) : i]
        z = (value - statistics.fmean(window)) / statistics.pstdev(window) if i >= 128 else 0
        expected.append(z if z > 6 else None)
    assert [z is None for z in found] == [z is None for z in expected]
    marked = [i for i, z in enumerate(found) if z]
    assert marked == [128, 300, 301], "not before the window is full, nor what falls"
    assert [found[i] for i in marked] == pytest.approx([expected[i] for i in marked], rel=1e-9)


def test_the_window_survives_a_restart():
    values = [float(x) for x in np.random.default_rng(1).normal(3.0, 0.1, size=300)]
    values[200] = 5.0
    for cut in 50, 150, 200:
        first = Spikes()
        found = looked_at(values[:cut], first)
        saved = json.loads(json.dumps(first.seen))
        assert len(saved["loss"]) <= 128
        assert found + looked_at(values[cut:], Spikes(saved)) == looked_at(values)


def test_an_overflow_does_not_spoil_the_window():
    """float16: an infinite norm now and then; later ones are still compared with numbers."""
    spikes = Spikes()
    for step in range(140):
        spikes.look(loss=3.0 + step % 2, norm=float("inf") if step % 10 == 0 else 1.0 + step % 3)
    spikes.look(loss=30.0, norm=30.0)
    assert spikes.high.keys() == {"loss"}  # 126 norms so far
    for _ in range(20):
        spikes.look(loss=3.0, norm=1.0)
    assert np.isfinite(spikes.seen["norm"]).all()


@pytest.mark.parametrize("value", [np.inf, np.nan, -np.inf])
def test_what_is_not_finite_is_no_spike(value):
    """It is compared with nothing: float16's scaler leaves such an update out by itself."""
    spikes = Spikes(skip_above=3.0)
    for step in range(140):
        spikes.look(loss=3.0 + step % 2, norm=1.0 + step % 3)
    spikes.look(loss=3.0, norm=value)
    assert not spikes.high and not spikes.skipped


@pytest.mark.parametrize("window", [["nan"], [1.0, float("nan")], [float("inf")], 5, [None]])
def test_a_window_of_no_numbers_is_damage(window, tmp_path, monkeypatch):
    """JSON files of Python may hold NaN, and no loss would ever be a spike again."""
    monkeypatch.setattr("nanogpt.checkpoints.digest", lambda path: 0)
    facts = dict(step=5, position=0, log_size=0, scaler={}, config={}, shards=[],
                 spikes={"loss": window, "norm": []})
    (tmp_path / "state.json").write_text(json.dumps(facts))
    (tmp_path / "manifest.json").write_text(json.dumps({"state.json": 0}))
    with pytest.raises(Damaged, match=tmp_path.name):
        read_facts(5, tmp_path)


def test_the_window_that_is_saved_is_of_the_moment(tmp_path, monkeypatch):
    """A checkpoint is written late, when Spikes has already seen later steps."""
    log, write = tmp_path / "run" / "log.txt", write_checkpoint

    def late(folder, *args):
        while folder.name == "checkpoint_000002" and "\n3 train" not in log.read_text():
            time.sleep(0.01)
        write(folder, *args)

    monkeypatch.setattr("nanogpt.checkpoints.write_checkpoint", late)
    main_here(monkeypatch, *TINY, "--data", write_shards(tmp_path / "shards"), "--val-tokens", 512,
              "--sample-tokens", 0, "--max-steps", 6, "--checkpoint-every", 2, "--out-dir",
              tmp_path / "run")
    state = json.loads((tmp_path / "run" / "checkpoint_000002" / "state.json").read_text())
    assert state["spikes"]["loss"] == read_log(log)["train"][1][:2]


def test_a_spike_is_marked_in_the_log(tmp_path, monkeypatch):
    """The same marks, whether the run was restarted in between or not."""
    monkeypatch.setattr(Spikes, "WINDOW", 4)
    accumulate, position = train_gpt2.accumulate_gradients, 512 * 7

    def spiky(t):
        here = t.loader.position == position
        return accumulate(t) * (5 if here else 1)

    monkeypatch.setattr(train_gpt2, "accumulate_gradients", spiky)
    flags = [*TINY, "--data", write_shards(tmp_path / "shards"), "--val-tokens", 512,
             "--sample-tokens", 0, "--max-steps", 10, "--checkpoint-every", 6, "--out-dir"]
    main_here(monkeypatch, *flags, tmp_path / "run")
    log = (tmp_path / "run" / "log.txt").read_text().splitlines()
    notes = [json.loads(line[2:]) for line in log if "spike" in line and "config" not in line]
    assert 7 in [note["step"] for note in notes] and notes[0]["spike"]["loss"] > 6
    saved = tmp_path / "run" / "checkpoint_000010"
    for path in saved.iterdir():
        path.unlink()
    saved.rmdir()
    main_here(monkeypatch, *flags, tmp_path / "run", "--resume")
    again = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert [line for line in again if "resumed" not in line] == log
