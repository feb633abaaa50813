"""A disk that is too small for the run's checkpoints is refused before the first step."""

from collections import namedtuple
from dataclasses import replace

import pytest
from helpers import TINY, lively_gpt, main_here, refusal, write_shards

import train_gpt2
from train_gpt2 import TrainConfig
from nanogpt.checkpoints import check_room
from nanogpt.common import UserError

Usage = namedtuple("Usage", "total used free")


def needs(monkeypatch, tmp_path, first, max_steps, **settings):
    """The least free space that check_room accepts, in checkpoints."""
    model = lively_gpt()
    for p in model.parameters():
        p.grad = p.detach().clone()
    optimizer = train_gpt2.configure_optimizer(model, 0.1, 1e-3)
    optimizer.step()
    size = sum(p.numel() * 4 for p in model.parameters()) + sum(
        value.numel() * 4 for state in optimizer.state.values() for value in state.values()
        if value.dim())
    config = replace(TrainConfig(out_dir=str(tmp_path)), **settings)
    for n in range(50):
        monkeypatch.setattr("shutil.disk_usage",
                            lambda path, n=n: Usage(0, 0, n * size))
        try:
            check_room(config, model, first, max_steps)
            return n
        except UserError as error:
            assert f"of {size / 1e6:,.1f} MB, but" in str(error)
    raise AssertionError


@pytest.mark.parametrize("first, settings, expected", [
    (0, dict(checkpoint_every=10), 10), (0, dict(checkpoint_every=30), 4),
    (50, dict(checkpoint_every=10), 5), (95, dict(checkpoint_every=10), 1),
    (0, dict(checkpoint_every=1000), 1), (100, dict(checkpoint_every=10), 0),
    (0, dict(checkpoint_every=10, keep=1), 2), (0, dict(checkpoint_every=10, keep=3), 4),
    (0, dict(checkpoint_every=10, keep=30), 10),
    (0, dict(checkpoint_every=10, keep=2, keep_every=50), 5)])
def test_what_is_to_come_is_counted(first, settings, expected, tmp_path, monkeypatch):
    """100 steps: the checkpoints that a run leaves, and one more while the oldest still exists."""
    assert needs(monkeypatch, tmp_path, first, 100, **settings) == expected


def test_a_resume_needs_no_more_than_it_will_use(tmp_path, monkeypatch):
    """With --keep 2 and two of them there, each new one takes an old one's room."""
    for step in 40, 50:
        (tmp_path / f"checkpoint_{step:06d}").mkdir()
    assert needs(monkeypatch, tmp_path, 50, 100, checkpoint_every=10, keep=2) == 1


@pytest.mark.parametrize("flags", [[], ["--resume"]])
def test_the_run_does_not_begin(flags, tmp_path, monkeypatch, capsys):
    """One line, and what is in the folder is as it was."""
    args = [*TINY, "--data", write_shards(tmp_path / "shards"), "--val-tokens", 512,
            "--sample-tokens", 0, "--checkpoint-every", 2, "--out-dir", tmp_path / "run"]
    main_here(monkeypatch, *args, "--max-steps", 2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(0, 0, 10**5))
    said = refusal(train_gpt2.main, *args, "--max-steps", 6, *flags, monkeypatch=monkeypatch,
                   capsys=capsys)
    assert f"{2 if flags else 3} checkpoints of 0.4 MB, but 0.1 MB are free" in said
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
