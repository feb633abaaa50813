"""GPT-2's initialisation: 0.02, residual projections smaller by sqrt(2 n_layer), biases 0."""

import math

import pytest
import torch
from helpers import small_gpt

from train_gpt2 import GPT, GPTConfig


def test_standard_deviations():
    model = small_gpt(block_size=64, n_layer=8, n_embd=128)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert torch.equal(p, torch.zeros_like(p)), name
        elif "ln_" in name:
            assert torch.equal(p, torch.ones_like(p)), name
        else:
            std = 0.02 / math.sqrt(16) if name.endswith("c_proj.weight") else 0.02
            # five standard errors of a standard deviation of n draws, std / sqrt(2 n)
            assert abs(p.std().item() - std) < 5 * std / math.sqrt(2 * p.numel()), name
            assert abs(p.mean().item()) < 5 * std / math.sqrt(p.numel()), name


def test_seed_makes_the_weights():
    first, again, other = (small_gpt(seed=s).transformer.wpe.weight for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_every_module_of_a_deep_network_is_drawn_anew():
    with torch.device("meta"):
        model = GPT(GPTConfig())
    marked = [name for name, m in model.named_modules() if hasattr(m, "adds_to_residual")]
    assert len(marked) == 24 and all(name.endswith("c_proj") for name in marked)


def test_residual_stream_does_not_grow_with_depth():
    """The sum of 2 n_layer additions has about the same size for 2 and for 32 layers."""
    def added(n_layer):
        model = small_gpt(n_layer=n_layer, n_embd=64)
        idx = torch.randint(257, (4, 16))
        x = start = model.transformer.wte(idx) + model.transformer.wpe(torch.arange(16))
        for block in model.transformer.h:
            x = block(x)
        return (x - start).std().item()

    assert added(32) == pytest.approx(added(2), rel=0.25)
