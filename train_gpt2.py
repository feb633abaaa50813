"""GPT-2 (124M), reproduced from an empty file: the network, its training, its evaluation.

Read from top to bottom: network, configuration, data, optimizer, training step, evaluation, main.
"""

from nanogpt.common import UserError, run

import sys
from dataclasses import dataclass

import torch
from torch import nn

from nanogpt.weights import TRANSPOSED, check_names, read_pretrained


# the network
#
# Shapes: B batch, T time, C = n_embd channels, nh heads of size hs = C / nh, V vocabulary.


@dataclass
class GPTConfig:
    """Sizes of the network; the defaults are GPT-2 124M's."""

    block_size: int = 1024  # longest sequence, so also the number of position embeddings
    vocab_size: int = 50257  # 50,000 merges, 256 bytes, 1 end-of-text
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768


class CausalSelfAttention(nn.Module):
    """Every position gathers information from itself and the positions before it, n_head times."""

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)  # q, k, v of all heads at once
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)


class MLP(nn.Module):
    """Each position on its own: four times as wide, GELU, and back."""

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        # OpenAI computed GELU by its tanh approximation, and the weights expect it
        self.gelu = nn.GELU(approximate="tanh")
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)


class Block(nn.Module):
    """Attention, then MLP: each reads a normalized copy of the stream and adds its result."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)


class GPT(nn.Module):
    """GPT-2. Parameters are named and shaped as in the published checkpoints."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(config.vocab_size, config.n_embd),
            wpe=nn.Embedding(config.block_size, config.n_embd),
            h=nn.ModuleList(Block(config) for _ in range(config.n_layer)),
            ln_f=nn.LayerNorm(config.n_embd),
        ))
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)

    def num_params(self):
        """Number of parameters: 163,037,184 for GPT-2 124M while it has two vocabulary matrices."""
        return sum(p.numel() for p in self.parameters())

    @classmethod
    def from_pretrained(cls, name_or_folder):
        """GPT-2's weights, from the hub by name or from a folder in transformers' layout.

        name_or_folder: gpt2 (124M), gpt2-medium (350M), gpt2-large (774M), gpt2-xl (1558M), or a
        folder with config.json and model.safetensors. Raises UserError for anything else.
        """
        sizes, tensors = read_pretrained(name_or_folder)
        model = cls(GPTConfig(**sizes))
        model.load_transformers_state(tensors, name_or_folder)
        return model

    @torch.no_grad()
    def load_transformers_state(self, tensors, source="the state dict"):
        """Copy in tensors named as in transformers. source: where they come from, for errors."""
        sd = self.state_dict()
        tensors = check_names(tensors, sd, source)
        for k in sd:
            # (in, out) there, for a Conv1D; (out, in) here, for nn.Linear
            t = tensors[k].t() if k.endswith(TRANSPOSED) else tensors[k]
            if t.shape != sd[k].shape:
                raise UserError(f"{source}: {k} has the shape {tuple(t.shape)}, and its "
                                f"config.json asks for {tuple(sd[k].shape)}")
            sd[k].copy_(t)


def main():
    args = sys.argv[1:]  # a name of PRETRAINED, or a folder with GPT-2's weights
    torch.manual_seed(1337)
    try:
        model = GPT.from_pretrained(args[0] if args else "gpt2")
    except UserError as error:
        if args:
            raise
        print(f"{error}\ngoing on with random weights")
        model = GPT(GPTConfig())
    for name, p in model.named_parameters():
        print(f"{name:36s} {str(tuple(p.shape)):14s} std {p.std():.4f}")
    print(f"{model.num_params():,} parameters")


if __name__ == "__main__":
    run(main)
