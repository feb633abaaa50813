"""The learning rate at the schedule's corners."""

import math
import re

import pytest
from helpers import TINY, lively_gpt, stream_of, text_tokens, update, write_data

import train_gpt2
from train_gpt2 import DataLoader, configure_optimizer, get_lr, parse_args

VIDEO = dict(max_lr=6e-4, min_lr=6e-5, warmup_steps=715, max_steps=19073)


@pytest.mark.parametrize("step, lr", [
    (0, 6e-4 / 715),  # above 0: the first update is not wasted
    (356, 6e-4 * 357 / 715),
    (714, 6e-4),
    (715, 6e-4),
    (715 + (19073 - 715) // 2, (6e-4 + 6e-5) / 2),  # half-way down the cosine
    (19073, 6e-5),
    (10**6, 6e-5),
])
def test_corners(step, lr):
    assert get_lr(step, **VIDEO) == pytest.approx(lr, rel=1e-12)


def test_falls_all_the_way_and_never_jumps():
    rates = [get_lr(step, **VIDEO) for step in range(715, 19074)]
    assert all(a >= b for a, b in zip(rates, rates[1:], strict=False))
    steepest = math.pi / 2 * (6e-4 - 6e-5) / (19073 - 715)
    assert max(a - b for a, b in zip(rates, rates[1:], strict=False)) <= steepest * 1.0001


def test_no_warmup_and_nothing_but_warmup():
    assert get_lr(0, 1.0, 0.1, 0, 10) == 1.0
    assert get_lr(9, 1.0, 0.1, 10, 10) == 1.0
    assert get_lr(10, 1.0, 0.1, 10, 10) == 0.1


def test_the_decay_ends_at_a_tenth_unless_told():
    assert parse_args(["--max-lr", "1e-3", "--min-lr", "None"]).final_lr == pytest.approx(1e-4)
    assert parse_args(["--min-lr", "0"]).final_lr == 0


def test_the_loop_follows_the_schedule(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train_gpt2.py", *TINY, "--max-steps", "7", "--warmup-steps",
                                     "3", "--data", str(write_data(tmp_path / "data"))])
    train_gpt2.main()
    printed = re.findall(r"step +(\d+) \| loss .* \| lr ([\d.e-]+) \|", capsys.readouterr().out)
    assert printed == [(str(step), f"{get_lr(step, 3e-3, 3e-4, 3, 7):.2e}") for step in range(7)]


def test_a_step_takes_its_rate():
    """The size of AdamW's first update is the learning rate, whatever the optimizer began with."""
    model = lively_gpt()
    before = model.transformer.wpe.weight.detach().clone()
    optimizer = configure_optimizer(model, 0.0, 1.0)
    update(model, DataLoader(stream_of(text_tokens(5000)), 4, 16), optimizer, 1e-4)
    moved = (model.transformer.wpe.weight.detach() - before).abs()
    assert moved.max().item() == pytest.approx(1e-4, rel=1e-2)
