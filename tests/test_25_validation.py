"""Validation: the same tokens every time, for every B and any number of ranks."""

import pytest
import torch
from helpers import CPU, lively_gpt, stream_of, text_tokens

import train_gpt2
from train_gpt2 import Ranks, evaluating, validate


def by_hand(model, tokens, n_rows, T):
    """One row at a time, in float64."""
    rows = [torch.tensor(tokens[r * T : r * T + T + 1].astype("int64")) for r in range(n_rows)]
    with torch.no_grad():
        losses = [model.double()(row[None, :-1], row[None, 1:])[1].item() for row in rows]
    model.float()
    return sum(losses) / n_rows


@pytest.mark.parametrize("B", [1, 3, 4, 64])
def test_mean_over_a_fixed_number_of_tokens(B):
    model, tokens = lively_gpt(), text_tokens(1000)
    loss = validate(model, stream_of(tokens, parts=3), 20 * 16, B, 16, CPU, torch.float32)
    assert loss == pytest.approx(by_hand(model, tokens, 20, 16), abs=2e-6)


def test_a_short_stream_is_used_to_its_last_whole_row():
    model, tokens = lively_gpt(), text_tokens(16 * 7 + 1)
    for n_tokens in 16 * 7, 10**9:
        loss = validate(model, stream_of(tokens), n_tokens, 4, 16, CPU, torch.float32)
        assert loss == pytest.approx(by_hand(model, tokens, 7, 16), abs=2e-6)


@pytest.mark.parametrize("world", [2, 3, 8])
def test_ranks_share_the_rows(world, monkeypatch):
    """Each rank's sum, added up, over all rows: also where rows do not divide by ranks."""
    model, stream = lively_gpt(), stream_of(text_tokens(1000))
    sums = []
    monkeypatch.setattr(train_gpt2, "sum_over_ranks", lambda total, ranks: sums.append(total)
                        or total)
    for rank in range(world):
        validate(model, stream, 20 * 16, 4, 16, Ranks(torch.device("cpu"), False, rank, rank,
                                                      world), torch.float32)
    monkeypatch.undo()
    expected = validate(model, stream, 20 * 16, 4, 16, CPU, torch.float32)
    assert sum(sums).item() / 20 == pytest.approx(expected, abs=1e-6)


def test_modes():
    model, seen = lively_gpt(), []
    model.register_forward_hook(lambda *args: seen.append((model.training,
                                                           torch.is_grad_enabled())))
    assert model.training
    validate(model, stream_of(text_tokens(100)), 32, 2, 16, CPU, torch.float32)
    assert seen == [(False, False)]
    assert model.training and torch.is_grad_enabled()


def test_mode_is_restored_after_an_error():
    model = lively_gpt()
    with pytest.raises(RuntimeError), evaluating(model):
        raise RuntimeError
    assert model.training and torch.is_grad_enabled()
