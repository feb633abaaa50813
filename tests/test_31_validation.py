"""Validation: the mean loss over the same tokens every time, for every B."""

import re

import pytest
import torch
from helpers import (
    CPU,
    TINY,
    lively_gpt,
    load_streams,
    start,
    stream_of,
    text_tokens,
    write_shards,
)

from nanogpt.common import UserError
from train_gpt2 import evaluating, validate


def by_hand(model, tokens, n_rows, T):
    """One row at a time, in float64."""
    rows = [torch.tensor(tokens[r * T : r * T + T + 1].astype("int64")) for r in range(n_rows)]
    with torch.no_grad():
        losses = [model.double()(row[None, :-1], row[None, 1:])[1].item() for row in rows]
    model.float()
    return sum(losses) / n_rows


@pytest.mark.parametrize("B", [1, 3, 4, 64])
def test_mean_over_a_fixed_number_of_tokens(B):
    """Every row weighs the same: also those of a last batch that is not full."""
    model, tokens = lively_gpt(), text_tokens(1000)
    loss = validate(model, stream_of(tokens, parts=3), 20 * 16, B, 16, CPU)
    assert loss == pytest.approx(by_hand(model, tokens, 20, 16), abs=2e-6)


def test_a_short_stream_is_used_to_its_last_whole_row():
    model, tokens = lively_gpt(), text_tokens(16 * 7 + 1)
    for n_tokens in 16 * 7, 10**9:
        loss = validate(model, stream_of(tokens), n_tokens, 4, 16, CPU)
        assert loss == pytest.approx(by_hand(model, tokens, 7, 16), abs=2e-6)
    loss = validate(model, stream_of(tokens[:-1]), 10**9, 4, 16, CPU)
    assert loss == pytest.approx(by_hand(model, tokens, 6, 16), abs=2e-6)  # a target was missing


def test_modes():
    model, seen = lively_gpt(), []
    model.register_forward_hook(lambda *args: seen.append((model.training,
                                                           torch.is_grad_enabled())))
    assert model.training
    validate(model, stream_of(text_tokens(100)), 32, 2, 16, CPU)
    assert seen == [(False, False)]
    assert model.training and torch.is_grad_enabled()


def test_mode_is_restored_after_an_error():
    model = lively_gpt()
    with pytest.raises(RuntimeError), evaluating(model):
        raise RuntimeError
    assert model.training and torch.is_grad_enabled()


def test_too_few_validation_tokens(tmp_path):
    """A row of 40 has 40 targets, the last of them a token further: 41 are needed."""
    folder = write_shards(tmp_path / "shards", n_train=512, n_val=40)
    load_streams(folder, "--T", "39", "--total-batch-size", "39")
    with pytest.raises(UserError, match="40 validation tokens, less than one sequence of 40"):
        load_streams(folder, "--T", "40", "--total-batch-size", "40")


def test_a_run_validates_at_the_start_every_so_often_and_at_the_end(tmp_path, monkeypatch):
    """--eval-every 2 of 3 steps: after 0, 2 and 3 updates. A line is printed before the step of
    its number, since so many updates have been made."""
    monkeypatch.chdir(tmp_path)
    write_shards(tmp_path / "shards", n_train=2000, n_val=500)
    done = start("train_gpt2.py", *TINY, "--data", "shards", "--max-steps", 3, "--eval-every", 2)
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"^step +(\d+) \| (val|loss)", done.stdout, re.M)
    assert lines == [("0", "val"), ("0", "loss"), ("1", "loss"), ("2", "val"), ("2", "loss"),
                     ("3", "val")]
