"""next_tokens() yields what generate() collects, and reads on from the last `keep` when it is full.
"""

import pytest
import torch
from helpers import lively_gpt
from torch.utils.flop_counter import FlopCounterMode


def likeliest(logits):
    return logits.argmax(dim=-1, keepdim=True)


@torch.no_grad()
def by_hand(model, idx, n, keep):
    """The likeliest tokens, each by a pass over the whole window, which begins again when full."""
    window, new = idx[:, -keep:] if idx.size(1) > model.config.block_size else idx, []
    for _ in range(n):
        if window.size(1) > model.config.block_size:
            window = window[:, -keep:]
        new.append(likeliest(model(window)[0][:, -1]))
        window = torch.cat((window, new[-1]), dim=1)
    return torch.cat(new, dim=1)


@pytest.mark.parametrize("keep", [1, 8, 15, 16])
@pytest.mark.parametrize("length", [1, 9, 16, 17, 40])
def test_the_tokens_of_whole_passes(length, keep):
    """Block size 16: the window slides several times, from prompts below, at and past it."""
    model = lively_gpt()
    idx = torch.randint(257, (3, length), generator=torch.Generator().manual_seed(length))
    found = torch.cat([*model.next_tokens(idx, 50, likeliest, keep)], dim=1)
    assert torch.equal(found, by_hand(model, idx, 50, keep))


def test_it_is_what_generate_collects():
    model, idx = lively_gpt(), torch.arange(5)[None]
    found = torch.cat([idx, *model.next_tokens(idx, 30, likeliest)], dim=1)
    assert torch.equal(found, model.generate(idx, 30, temperature=0))


def test_a_token_can_be_used_before_the_next_is_computed():
    """And nothing is computed for tokens that nobody asks for."""
    model, passes = lively_gpt(), []
    model.lm_head.register_forward_hook(lambda *_: passes.append(1))
    tokens = model.next_tokens(torch.tensor([[1, 2]]), 10**9, likeliest)
    for n in 1, 2, 3:
        assert next(tokens).shape == (1, 1) and len(passes) == n
    assert torch.is_grad_enabled()


def test_past_the_window_a_token_costs_less_than_two_positions():
    """With keep = block_size / 2, 3,000 tokens. With all of it, each would cost block_size."""
    model, n, config = lively_gpt(), 3000, lively_gpt().config
    with FlopCounterMode(display=False) as counter:
        for _ in model.next_tokens(torch.tensor([[1]]), n, likeliest, config.block_size // 2):
            pass
    found = counter.get_flop_counts()["Global"][torch.ops.aten.addmm]
    positions = found / (2 * 12 * config.n_layer * config.n_embd**2)
    assert n < positions < 2 * n


def test_by_default_it_chooses_among_the_fifty_likeliest_at_temperature_1():
    model, idx = lively_gpt(), torch.zeros(8, 3, dtype=torch.long)
    default, told = (model.generate(idx, 12, **flags, generator=torch.Generator().manual_seed(1))
                     for flags in ({}, {"temperature": 1.0, "top_k": 50}))
    assert torch.equal(default, told)
