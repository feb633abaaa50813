"""Batches hold every example once, in as little padding as sorting gives, and change no score."""

import pytest
import torch
from helpers import bytes_encoded, four_endings, lively_gpt, one_row_at_a_time

import hellaswag


def longest(example):
    return max(map(len, example.rows))


@pytest.mark.parametrize("tokens_per_batch", [1, 500, 10**6])
def test_scores_equal_one_row_at_a_time(tokens_per_batch):
    model, examples = lively_gpt(block_size=64), four_endings()
    encoded = bytes_encoded(examples)
    by_id = {id(e): example for e, example in zip(encoded, examples, strict=True)}
    seen = 0
    for batch in hellaswag.batches(encoded, tokens_per_batch):
        sums, means = hellaswag.score(model, batch, torch.device("cpu"))
        for i, e in enumerate(batch):
            expected = one_row_at_a_time(model, by_id[id(e)])
            # sums of up to 20 losses of size 6, in fp32
            torch.testing.assert_close(sums[i].tolist(), expected[0], atol=1e-4, rtol=0)
            torch.testing.assert_close(means[i].tolist(), expected[1], atol=1e-5, rtol=0)
            seen += 1
    assert seen == 30


@pytest.mark.parametrize("tokens_per_batch", [1, 300, 1000, 10**6])
def test_batches_are_full_and_no_fuller(tokens_per_batch):
    """Padded to its longest row, a batch is within the limit (one example may exceed it alone),
    and the next example would not have fitted. Lengths rise from batch to batch."""
    encoded = bytes_encoded(four_endings(100))
    made = list(hellaswag.batches(encoded, tokens_per_batch))
    assert sorted(id(e) for batch in made for e in batch) == sorted(map(id, encoded))
    lengths = [longest(e) for batch in made for e in batch]
    assert lengths == sorted(lengths)
    for batch, after in zip(made, [*made[1:], None], strict=True):
        assert len(batch) == 1 or 4 * len(batch) * longest(batch[-1]) <= tokens_per_batch
        if after:
            assert 4 * (len(batch) + 1) * longest(after[0]) > tokens_per_batch


def test_no_examples_no_batches():
    assert list(hellaswag.batches([])) == []


def test_choices_do_not_depend_on_the_batches(monkeypatch):
    model, encoded = lively_gpt(block_size=64), bytes_encoded(four_endings(200))
    counts, batches = [], hellaswag.batches
    for tokens in 1, 700, 10**6:
        monkeypatch.setattr(hellaswag, "batches", lambda encoded, *args, tokens=tokens: batches(
            encoded, tokens, *args[1:]))
        counts.append(hellaswag.count_correct(model, encoded, torch.device("cpu")).tolist())
    assert counts[0] == counts[1] == counts[2]


def test_counting_goes_by_batches():
    """200 short examples are a few calls of the network, not 200; ranks take whole batches."""
    encoded, calls = bytes_encoded(four_endings(200)), []

    def network(idx):
        calls.append(len(idx))
        return torch.zeros(*idx.shape, 257)

    hellaswag.count_correct(network, encoded, torch.device("cpu"))
    assert calls == [4 * len(batch) for batch in hellaswag.batches(encoded)] and len(calls) < 30
    one_rank, calls[:] = list(calls), []
    for rank in 0, 1:
        hellaswag.count_correct(network, encoded, torch.device("cpu"), rank, 2)
    assert sorted(calls) == sorted(one_rank)
