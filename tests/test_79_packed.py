"""HellaSwag with every context computed once: the scores of one row at a time in float64."""

import copy

import pytest
import torch
from helpers import (
    CPU,
    bytes_encoded,
    count_by_hand,
    four_endings,
    lively_gpt,
    one_row_at_a_time,
)
from torch.utils.flop_counter import FlopCounterMode

import hellaswag


@pytest.mark.parametrize("block_size", [64, 24, 8])
def test_scores_are_those_of_one_row_at_a_time(block_size):
    """With 24 or 8 positions, endings cut the context, sometimes to different lengths."""
    model, examples = lively_gpt(block_size=block_size), four_endings(12)
    encoded = bytes_encoded(examples, block_size)
    packs = [len(hellaswag.pack(example)) for example in encoded]
    assert set(packs) == ({1} if block_size == 64 else {1, 4} if block_size == 24 else {4})
    sums, means = hellaswag.score_packed(copy.deepcopy(model).double(), encoded, CPU.device)
    for row, example in enumerate(examples):
        expected = torch.tensor(one_row_at_a_time(model, example, block_size)).double()
        found = torch.stack((sums[row], means[row])).double()
        assert torch.allclose(found, expected, rtol=1e-5, atol=0)  # logits are rounded to fp32


def test_the_choices_are_the_same():
    model, examples = lively_gpt(block_size=64), four_endings(60)
    assert hasattr(model, "hidden")
    counts = hellaswag.count_correct(model, bytes_encoded(examples), CPU.device)
    assert counts.tolist() == [*count_by_hand(model, examples), 60]


def test_a_context_is_computed_once():
    """Products with weights: for the context without its last token, and for the tokens that
    predict an ending; logits only for the latter."""
    model, examples = lively_gpt(block_size=64), four_endings(5)
    encoded = bytes_encoded(examples)
    with FlopCounterMode(display=False) as counter:
        for example in encoded:  # one at a time, so that nothing is padding
            hellaswag.count_correct(model, [example], CPU.device)
    flops, c = counter.get_flop_counts()["Global"], model.config
    ends = sum(sum(example.n_ending) for example in encoded)
    contexts = sum(len(example.rows[0]) - example.n_ending[0] - 1 for example in encoded)
    assert flops[torch.ops.aten.mm] == 2 * c.n_embd * c.vocab_size * ends
    assert flops[torch.ops.aten.addmm] == 24 * c.n_layer * c.n_embd**2 * (contexts + ends)


def test_batches_hold_no_more_than_they_may():
    encoded = bytes_encoded(four_endings(60))
    found = list(hellaswag.batches(encoded, 300, hellaswag.in_packs))
    assert sorted(map(id, sum(found, []))) == sorted(map(id, encoded))
    assert all(len(batch) * max(map(hellaswag.in_packs, batch)) <= 300 for batch in found)
    assert len(found) < len(list(hellaswag.batches(encoded, 300))) / 1.5
