"""Samples of one prompt read it once, and stop when all of them have ended."""

import pytest
import torch
from helpers import lively_gpt
from torch.utils.flop_counter import FlopCounterMode


def generator(seed):
    return torch.Generator().manual_seed(seed)


def test_a_shared_prompt_is_computed_once():
    """The weights multiply T positions for the prompt, and B for each new token but the last."""
    model, B, T, new = lively_gpt(), 4, 9, 5
    with FlopCounterMode(display=False) as counter:
        model.generate(torch.arange(T).expand(B, T), new)
    found = counter.get_flop_counts()["Global"][torch.ops.aten.addmm]
    assert found == 2 * 12 * model.config.n_layer * model.config.n_embd**2 * (T + B * (new - 1))


def test_each_sample_goes_its_own_way():
    """Each row of a shared prompt is continued as it would be alone."""
    model, prompt = lively_gpt(), torch.arange(5).expand(4, 5)
    drawn = model.generate(prompt, 8, generator=generator(1))
    assert len({tuple(row) for row in drawn.tolist()}) == 4
    for length in range(6, 13):  # the rows differ from here on, so nothing is shared
        logits = model(drawn[:, :length])[0][:, -1]
        top = logits.topk(50, dim=-1).indices
        assert (top == drawn[:, length : length + 1]).any(dim=1).all()
    likeliest = model.generate(drawn[:, :6], 6, temperature=0)
    for row, alone in zip(likeliest, drawn[:, :6], strict=True):
        assert torch.equal(row, model.generate(alone[None], 6, temperature=0)[0])


@pytest.mark.parametrize("rows", [1, 3])
def test_no_token_after_the_last_end_of_text(rows):
    model, idx = lively_gpt(), torch.arange(3).expand(rows, 3)
    every = model.generate(idx, 13, generator=generator(2))
    ids, counts = every[:, 3:].unique(return_counts=True)
    for eot in ids.tolist():
        firsts = [row.index(eot) if eot in row else 12 for row in every[:, 3:].tolist()]
        until = model.generate(idx, 13, generator=generator(2), eot=eot)
        assert torch.equal(until, every[:, : 3 + max(firsts) + 1])
    assert model.generate(idx, 13, generator=generator(2), eot=999).shape == every.shape
