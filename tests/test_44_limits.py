"""Settings that no run could have are refused by name; those at the edge are not."""

import dataclasses

import pytest
from helpers import TINY

from nanogpt.common import UserError
from train_gpt2 import check_config, parse_args


@pytest.mark.parametrize("flag, value", [
    ("B", 0), ("B", -1), ("T", 0), ("n_layer", 0), ("n_head", 0), ("n_embd", 0), ("max_steps", 0),
    ("eval_every", 0), ("checkpoint_every", 0), ("val_tokens", 0), ("warmup_steps", -1),
    ("total_batch_size", 0), ("total_batch_size", 1000), ("weight_decay", -0.1),
    ("weight_decay", float("nan")), ("min_lr", 1.0), ("min_lr", -1.0), ("max_lr", float("nan")),
    ("max_lr", float("inf")), ("hellaswag_limit", 0), ("seed", -1), ("seed", 2**63),
    ("sample_tokens", -1), ("temperature", -0.5), ("n_layer", 1001), ("n_embd", 10**30),
    ("out_dir", "")])
def test_settings_that_cannot_be(flag, value):
    """Found before the first step, not by a division by zero in the middle of the run."""
    config = parse_args([f"--{flag.replace('_', '-')}={value}"])
    with pytest.raises(UserError, match=f"--{flag.replace('_', '-')} {value}"):
        check_config(config, 1)


@pytest.mark.parametrize("changes", [
    dict(B=1, T=1, total_batch_size=1), dict(n_layer=1, n_head=1, n_embd=1), dict(max_steps=1),
    dict(warmup_steps=0), dict(weight_decay=0.0), dict(min_lr=0.0), dict(min_lr=3e-3),
    dict(max_lr=0.0, min_lr=0.0), dict(seed=0), dict(seed=2**63 - 1), dict(eval_every=1),
    dict(val_tokens=1), dict(hellaswag_limit=1), dict(hellaswag_limit=None), dict(max_steps=None),
    dict(sample_tokens=0), dict(temperature=0.0), dict(checkpoint_every=1)])
def test_settings_at_the_edge_can_be(changes):
    config = dataclasses.replace(parse_args(TINY), **changes)
    assert check_config(config, 1) == config.total_batch_size // (config.B * config.T)
