"""In the loop every rank scores its share; together they count what one rank counts."""

import pytest
import torch
from helpers import CPU, lively_gpt
from test_27_hellaswag import ENC, examples

import hellaswag
import train_gpt2
from train_gpt2 import Ranks, evaluate_hellaswag


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_all_ranks_equal_one_rank(world):
    model = lively_gpt(block_size=64)
    encoded = hellaswag.encode(examples(), ENC, 64)
    expected = hellaswag.count_correct(model, encoded, torch.device("cpu"))
    shares = [hellaswag.count_correct(model, encoded, torch.device("cpu"), rank, world)
              for rank in range(world)]
    assert torch.equal(sum(shares), expected)


def test_choices_do_not_depend_on_the_batches(monkeypatch):
    model, encoded = lively_gpt(block_size=64), hellaswag.encode(examples(200), ENC, 64)
    counts = []
    for tokens in 1, 700, 10**6:
        monkeypatch.setattr(hellaswag.batches, "__defaults__", (tokens,))
        counts.append(hellaswag.count_correct(model, encoded, torch.device("cpu")).tolist())
    assert counts[0] == counts[1] == counts[2]


def test_accuracy_and_its_standard_error(monkeypatch):
    model, encoded = lively_gpt(block_size=64), hellaswag.encode(examples(), ENC, 64)
    _, norm, n = hellaswag.count_correct(model, encoded, torch.device("cpu")).tolist()
    acc, error = evaluate_hellaswag(model, encoded, CPU, torch.float32)
    assert acc == pytest.approx(norm / n)
    assert error == pytest.approx((acc * (1 - acc) / 30) ** 0.5)
    # two ranks: their sums are added before anything is divided
    both = [hellaswag.count_correct(model, encoded, torch.device("cpu"), r, 2) for r in range(2)]
    monkeypatch.setattr(train_gpt2, "sum_over_ranks", lambda counts, ranks: sum(both))
    ranks = Ranks(torch.device("cpu"), False, 0, 0, 2)
    assert evaluate_hellaswag(model, encoded, ranks, torch.float32)[0] == pytest.approx(norm / n)


def test_modes_are_restored():
    model, seen = lively_gpt(block_size=64), set()
    model.register_forward_hook(lambda *args: seen.add((model.training, torch.is_grad_enabled())))
    evaluate_hellaswag(model, hellaswag.encode(examples(), ENC, 64), CPU, torch.float32)
    assert seen == {(False, False)} and model.training
