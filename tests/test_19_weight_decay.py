"""Decay on matrices only; the fused optimizer wherever torch has one."""

import torch
from helpers import small_gpt

from train_gpt2 import GPT, GPTConfig, configure_optimizer


def test_groups_and_counts_are_gpt2s():
    """The video's figures: 50 decayed tensors, 98 others; with the padding left out of wte."""
    with torch.device("meta"):
        model = GPT(GPTConfig())
    decayed, others = configure_optimizer(model, 0.1, 6e-4).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert (len(decayed["params"]), len(others["params"])) == (50, 98)
    assert sum(p.numel() for p in decayed["params"]) == 124_318_464
    assert sum(p.numel() for p in others["params"]) == 121_344


def test_every_parameter_is_in_one_group():
    model = small_gpt()
    grouped = [id(p) for group in configure_optimizer(model, 0.1, 1e-3).param_groups
               for p in group["params"]]
    assert sorted(grouped) == sorted(map(id, model.parameters()))  # the shared matrix once


def test_vectors_are_not_pulled_to_zero():
    model = small_gpt()
    optimizer = configure_optimizer(model, 0.5, 1e-1)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    for name, p in model.named_parameters():
        factor = 0.95 if p.dim() >= 2 else 1.0
        torch.testing.assert_close(p.detach(), before[name] * factor)


def test_fused_on_this_device():
    assert configure_optimizer(small_gpt(), 0.1, 1e-3).defaults["fused"] is True
