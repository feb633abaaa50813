"""The learning rate at the schedule's corners."""

import math

import pytest

from train_gpt2 import PRESETS, get_lr, parse_args

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


def test_presets_follow_gpt3():
    """GPT-3 paper, table 2.1; the decay ends at a tenth."""
    assert [PRESETS[name].max_lr for name in ("gpt2-124M", "gpt2-350M", "gpt2-774M", "gpt2-1558M")
            ] == [6e-4, 3e-4, 2.5e-4, 2e-4]
    assert PRESETS["gpt2-124M"].warmup_steps * 2**19 == pytest.approx(375e6, rel=1e-3)
    assert parse_args(["--max-lr", "1e-3"]).final_lr == pytest.approx(1e-4)
    assert parse_args(["--min-lr", "0"]).final_lr == 0
