"""Rotary and ALiBi positions against GPT-2's learned ones, with train_gpt2.py left as it is.

    python examples/positions.py                            # three kinds, three seeds
    python examples/positions.py --seeds 1 --steps 100      # a first look

Rotary (Su et al. 2021) turns queries and keys by angles that grow with their positions. ALiBi
(Press et al. 2021) lowers a score in proportion to the distance of its two tokens. Both tell
attention how far apart two tokens are, not where they are, and neither has parameters. Each network
below is GPT with one part exchanged, so the optimizer, the training step, the KV cache and
HellaSwag's packed rows work as they are. All kinds train with the laptop preset's settings, from
the same weights, on the same batches. With --steps 300 and three seeds, learned positions end at
1.73 nats per byte; rotary gains 0.36 (0.33 to 0.38), ALiBi 0.31 (0.28 to 0.33).
"""

import argparse
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without being installed
from nanogpt.common import UserError, run
from nanogpt.ranks import Ranks
from nanogpt.shards import load_data
from train_gpt2 import GPT, PRESETS, GPTConfig, get_lr, prepare_training, train_step, validate


class Positions(nn.Module):
    """Takes the place of wpe: adds nothing to the tokens, and remembers where they are."""

    def forward(self, pos):
        self.pos = pos  # (T,) or (B, T)
        return 0.0


class Relative(GPT):
    """GPT-2 without learned positions."""

    def __init__(self, config):
        super().__init__(config)
        self.transformer.wpe = Positions()

    def save_pretrained(self, folder, state_dict=None):
        raise UserError(f"{folder}: transformers' GPT-2 has learned positions, so it cannot hold "
                        f"{type(self).__name__}'s weights: use safetensors.torch.save_model")

    def load_transformers_state(self, tensors, source="the state dict"):
        raise UserError(f"{source} is a GPT-2 with learned positions: open it as GPT, or load "
                        f"{type(self).__name__}'s weights with safetensors.torch.load_model")


class RotatedLinear(nn.Linear):
    """c_attn, whose queries and keys are rotated: channels i and i + hs / 2 of a head are a point
    in the plane, turned by pos / 10000^(2 i / hs)."""

    def forward(self, x):
        q, k, v = super().forward(x).chunk(3, dim=-1)
        return torch.cat((self.rotate(q), self.rotate(k), v), dim=-1)

    def rotate(self, x):
        a, b = x.unflatten(-1, (self.n_head, -1)).chunk(2, dim=-1)  # (B, T, nh, hs / 2) each
        dtype = torch.promote_types(x.dtype, torch.float32)  # an angle of 1000 needs its digits
        i = torch.arange(a.size(-1), device=x.device, dtype=dtype)
        angles = self.positions.pos[..., None, None] * 10000 ** (-i / len(i))  # ([B,] T, 1, hs / 2)
        cos, sin = angles.cos(), angles.sin()
        turned = torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)
        return turned.flatten(-2).to(x.dtype)


class Rotary(Relative):
    """Rotary position embeddings. The cache keeps the keys rotated."""

    def __init__(self, config):
        super().__init__(config)
        if config.n_embd // config.n_head % 2:
            raise UserError(f"n_embd {config.n_embd} / n_head {config.n_head} is odd: Rotary needs "
                            "heads with an even number of channels")
        for block in self.transformer.h:
            c_attn = block.attn.c_attn
            c_attn.__class__, c_attn.n_head = RotatedLinear, config.n_head  # its weights stay
            c_attn.positions = self.transformer.wpe


class ALiBi(Relative):
    """Attention with linear biases: head i of nh adds -2^(-8 i / nh) distance to its scores."""

    def hidden(self, idx, caches=None, pos=None, mask=None):
        begin = caches[0].n if caches else 0
        T = begin + idx.size(1)
        keys = torch.arange(T, device=idx.device)[None] if pos is None else pos
        if mask is None:
            mask = torch.ones(T - begin, T, dtype=torch.bool, device=idx.device).tril(begin)
        bias = self.bias(keys[:, begin:], keys).masked_fill(~mask, float("-inf"))
        return super().hidden(idx, caches, pos, bias.to(self.lm_head.weight.dtype))

    def bias(self, queries, keys):
        """Positions (B, Tq) and (B, Tk) -> what is added to the scores: (B, nh, Tq, Tk)."""
        nh = self.config.n_head
        slopes = 2.0 ** (-8 * torch.arange(1, nh + 1, device=keys.device) / nh)
        return slopes[:, None, None] * (keys[:, None, None, :] - queries[:, None, :, None])


KINDS = {"learned": GPT, "rotary": Rotary, "ALiBi": ALiBi}


def train(kind, seed, steps):
    """Train that kind as `train_gpt2.py laptop` does. Returns validation loss, nats per byte."""
    config = replace(PRESETS["laptop"], seed=seed, max_steps=steps)
    text, val = load_data(config)
    torch.manual_seed(seed)
    net = KINDS[kind](GPTConfig(config.T, text.vocab_size, config.n_layer, config.n_head,
                                config.n_embd))
    ranks = Ranks(torch.device("cpu"))
    t = prepare_training(config, net, text, ranks, saved={})
    for step in range(steps):
        train_step(t, get_lr(step, config.max_lr, config.final_lr, config.warmup_steps, steps))
    return validate(net, val, config.val_tokens, config.B, config.T, ranks)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500)
    args = parser.parse_args()
    losses = {kind: [] for kind in KINDS}
    for seed in range(args.seeds):
        for kind, found in losses.items():
            began = time.perf_counter()
            found.append(train(kind, seed, args.steps))
            print(f"seed {seed} | {kind:7s} | val {found[-1]:.4f} | "
                  f"{time.perf_counter() - began:.0f} s", flush=True)
    for kind, found in losses.items():
        gains = [a - b for a, b in zip(losses["learned"], found, strict=True)]
        print(f"{kind:7s} | mean {statistics.mean(found):.4f} | gain over learned: mean "
              f"{statistics.mean(gains):.4f}, least {min(gains):.4f}")


if __name__ == "__main__":
    run(main)
