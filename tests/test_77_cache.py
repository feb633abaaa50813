"""With a cache of keys and values a new token costs one position, and the tokens are the same."""

import pytest
import torch
from helpers import lively_gpt
from torch.utils.flop_counter import FlopCounterMode

import train_gpt2


@torch.no_grad()
def whole_each_time(model, idx, n):
    """The likeliest next tokens, each computed from all of the last block_size tokens."""
    for _ in range(n):
        logits = model(idx[:, -model.config.block_size :])[0]
        idx = torch.cat((idx, logits[:, -1].argmax(dim=-1, keepdim=True)), dim=1)
    return idx


@pytest.mark.parametrize("length", [1, 2, 5, 15, 16, 17, 30])
def test_the_same_tokens_as_without(length):
    """Block size 16: some prompts end before it, some at it, some after."""
    model = lively_gpt()
    idx = torch.randint(257, (3, length), generator=torch.Generator().manual_seed(length))
    assert torch.equal(model.generate(idx, 25, temperature=0), whole_each_time(model, idx, 25))


def test_a_new_token_costs_one_position():
    """12 n_layer C^2 weights multiply T + new - 1 positions, and not T + (T + 1) + ..."""
    model, T, new = lively_gpt(), 6, 8
    with FlopCounterMode(display=False) as counter:
        model.generate(torch.arange(T)[None], new, temperature=0)
    found = counter.get_flop_counts()["Global"][torch.ops.aten.addmm]
    assert found == 2 * 12 * model.config.n_layer * model.config.n_embd**2 * (T + new - 1)


@torch.no_grad()
def test_each_position_as_in_one_pass():
    """In float64: the cache only changes the order in which the same numbers are added."""
    model, idx = lively_gpt().double(), torch.randint(257, (2, 16))
    caches = [train_gpt2.Cache(16) for _ in model.transformer.h]
    parts = [model.hidden(idx[:, :7], caches)]
    parts += [model.hidden(idx[:, i : i + 1], caches) for i in range(7, 16)]
    assert torch.allclose(torch.cat(parts, dim=1), model.hidden(idx), atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match="17 tokens, but the network has 16"):
        model.hidden(idx[:, :1], caches)


def test_memory_is_taken_once():
    cache = train_gpt2.Cache(5)
    k = torch.randn(2, 3, 4, 8)
    for part in k[:, :, :2], k[:, :, 2:3], k[:, :, 3:]:
        kept, twice = cache.extend(part, 2 * part)
        place = cache.kept[0].data_ptr()
        assert kept.data_ptr() == place
    assert torch.equal(kept, k) and torch.equal(twice, 2 * k)
    assert cache.kept[0].shape == (2, 3, 5, 8)


def test_several_on_a_cache_are_refused():
    """Without a mask of their own, the first would see the others."""
    cache = train_gpt2.Cache(5)
    k = torch.randn(2, 3, 4, 8)
    cache.extend(k[:, :, :1], k[:, :, :1])
    with pytest.raises(AssertionError, match="the first would see the others"):
        cache.extend(k[:, :, 1:3], k[:, :, 1:3])


def test_recomputing_does_not_change_what_is_written():
    """generate() may be called in training mode: it uses the cache there too."""
    model, idx = lively_gpt().train(), torch.arange(15).view(3, 5)
    expected = whole_each_time(model, idx, 25)
    model.recompute = True
    assert torch.equal(model.generate(idx, 25, temperature=0), expected)
