"""The network's parameters are named and shaped as in the checkpoints."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from train_gpt2 import GPT, GPTConfig

# stored as (in, out) where nn.Linear has (out, in)
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("sizes", [
    dict(block_size=1024, vocab_size=50257, n_layer=12, n_head=12, n_embd=768),
    dict(block_size=1024, vocab_size=50257, n_layer=48, n_head=25, n_embd=1600),
    dict(block_size=32, vocab_size=257, n_layer=2, n_head=4, n_embd=64),
])
def test_names_and_shapes_are_transformers(sizes):
    """state_dict() must list the names and shapes of transformers' GPT2LMHeadModel."""
    with torch.device("meta"):  # shapes without memory
        ours = shapes(GPT(GPTConfig(**sizes)))
        theirs = shapes(GPT2LMHeadModel(GPT2Config(
            n_positions=sizes["block_size"], **{k: v for k, v in sizes.items()
                                                if k != "block_size"})))
    theirs = {k: v[::-1] if k.endswith(CONV1D) else v for k, v in theirs.items()}
    assert ours == theirs


def test_defaults_are_gpt2_124M():
    assert GPTConfig() == GPTConfig(1024, 50257, 12, 12, 768)
