"""The lessons' pictures: python steps/figures.py draws steps/figures/*.png with the program itself.

A lesson names its picture by its path on the main branch, since a step's tree holds text alone.
"""

import math
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from train_gpt2 import GPT, GPTConfig, get_lr  # noqa: E402

OUT = ROOT / "steps" / "figures"


def save(figure, name):
    OUT.mkdir(exist_ok=True)
    figure.savefig(OUT / name, dpi=100, metadata={"Software": None})


def draw_mask():
    """step-03: scores of twelve tokens, masked, and as weights: a row looks back, and sums to 1."""
    torch.manual_seed(0)
    T, hs = 12, 16
    q, k = torch.randn(2, T, hs)
    scores = q @ k.T / math.sqrt(hs)
    masked = scores.masked_fill(~torch.ones(T, T, dtype=torch.bool).tril(), float("-inf"))
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, values, title in zip(
            figure.subplots(1, 3), (scores, masked, masked.softmax(dim=-1)),
            ("q k$^T$ / sqrt(hs)", "the future at minus infinity", "after softmax: rows sum to 1"),
            strict=True):
        axes.imshow(values, cmap="viridis")
        axes.set(title=title, xlabel="looks at", ylabel="position", xticks=range(0, T, 2))
    save(figure, "03-mask.png")


@torch.no_grad()
def stream_sizes(n_layer, scaled):
    """Standard deviation of the residual stream after each block, over random tokens."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=64, vocab_size=257, n_layer=n_layer, n_head=4, n_embd=256))
    if not scaled:
        for name, p in model.named_parameters():
            if name.endswith("c_proj.weight"):
                p.mul_(math.sqrt(2 * n_layer))
    x = model.transformer.wte(torch.randint(257, (4, 64)))
    x = x + model.transformer.wpe(torch.arange(64))
    sizes = [x.std().item()]
    for block in model.transformer.h:
        x = block(x)
        sizes.append(x.std().item())
    return sizes


def draw_residual():
    """step-11: what the scaling of the residual projections is for."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    for n_layer, color in (12, "C0"), (48, "C1"):
        axes.plot(stream_sizes(n_layer, True), color=color, label=f"{n_layer} layers, scaled")
        axes.plot(stream_sizes(n_layer, False), color=color, linestyle="--",
                  label=f"{n_layer} layers, not scaled")
    axes.set(xlabel="after block", ylabel="standard deviation",
             title="The residual stream before any training, 256 channels")
    axes.legend()
    save(figure, "11-residual.png")


def draw_schedule():
    """step-18: the video's learning rate over its 19,073 steps."""
    figure = Figure(figsize=(7, 3.0), layout="constrained")
    axes = figure.subplots()
    steps = range(0, 19073, 20)
    axes.plot(steps, [get_lr(step, 6e-4, 6e-5, 715, 19073) for step in steps])
    axes.axvline(715, color="gray", linestyle=":", label="warm-up ends at 715")
    axes.axhline(6e-5, color="gray", linestyle="--", label="a tenth remains")
    axes.set(xlabel="step", ylabel="learning rate", title="Warm-up, then half a cosine", ylim=0)
    axes.legend()
    save(figure, "18-schedule.png")


if __name__ == "__main__":
    for draw in draw_mask, draw_residual, draw_schedule:
        draw()
