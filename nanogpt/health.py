"""Is the network well? Every block in six numbers, now and then."""

import contextlib
import json
import math
from pathlib import Path

import torch

from nanogpt.fsdp import local, trained, whole_net
from nanogpt.ranks import autocast, sum_over_ranks

TOKENS = 4096  # of a batch, at most: enough to see, and cheap
DEAD = -3.0  # below, GELU and its slope are nearly 0 (here -0.004 and -0.01): a dead neuron
KINDS = {"activations": "block's output (RMS)", "weights": "weights (RMS)",
         "gradients": "clipped gradients (RMS)", "updates": "updates (RMS)",
         "dead": "share of dead neurons", "entropy": "attention's entropy (nats)"}


def entropy(qkv, n_head):
    """Mean entropy, in nats, of the attention weights: 0 if every position attends to only one,
    the mean of log(1) ... log(T) if to all alike. qkv: what c_attn returns, (B, T, 3 C)."""
    T, total = qkv.size(1), 0.0
    future = torch.ones(T, T, device=qkv.device).triu(1).bool()
    with torch.autocast(qkv.device.type, enabled=False):  # float16 ends at 65504
        for row in qkv.float():  # one at a time: (nh, T, T) is large
            q, k, _ = row.unflatten(1, (3, n_head, -1)).permute(1, 2, 0, 3)  # (nh, T, hs) each
            log_p = (q @ k.mT * q.size(-1) ** -0.5).masked_fill(future, -1e30).log_softmax(dim=-1)
            total -= (log_p.exp() * log_p).sum(dim=-1).mean()
    return total / len(qkv)


@torch.no_grad()
def look_into(net, idx):
    """{kind: [a number for each block]} of what the network computes on idx (B, T), long."""
    found, hooks = {"activations": [], "dead": [], "entropy": []}, []

    def watch(module, kind, number):
        hooks.append(module.register_forward_hook(
            lambda module, args, out: found[kind].append(number(out))))

    for block in net.transformer.h:
        watch(block, "activations", lambda x: x.float().square().mean().sqrt())
        watch(block.mlp.c_fc, "dead", lambda x: (x < DEAD).flatten(0, 1).all(dim=0).float().mean())
        watch(block.attn.c_attn, "entropy", lambda x, n_head=block.attn.n_head: entropy(x, n_head))
    net.eval().hidden(idx)
    net.train()
    for hook in hooks:
        hook.remove()
    return {kind: torch.stack(numbers).tolist() for kind, numbers in found.items()}


def forward(t):
    """What look_into() finds in rows of the batch that the gradients come from."""
    B, T = t.loader.B, t.loader.T
    place = t.loader.position - B * T * t.ranks.ddp_world_size
    # on the thread that reads ahead, since a stream serves one thread at a time
    rows = t.loader.reader.submit(t.loader.stream.rows, place, min(B, max(1, TOKENS // T)), T)
    with autocast(t.ranks.device, t.ranks.dtype):
        return look_into(t.net, torch.from_numpy(rows.result()[0]).to(t.ranks.device))


class Health:
    """Every `config.health` updates (0: never), a note in the log about every block."""

    def __init__(self, config=None, log=None):
        self.every, self.log = config.health if config else 0, log

    @contextlib.contextmanager
    def watching(self, t):
        """Wrap the optimizer's step in this. It only looks: the update is the same to the bit."""
        divided = trained(t) is not t.net  # each rank has a part of every matrix
        if not self.every or t.step % self.every or not (t.ranks.master_process or divided):
            yield
            return
        with whole_net(t):
            found = forward(t) if t.ranks.master_process else {}
        blocks = [list(block.parameters()) for block in trained(t).transformer.h]
        old = [[local(p.detach()).clone() for p in block] for block in blocks]

        def size(kind, of):
            """found[kind]: for each block, the RMS over all its tensors of(p, its old value)."""
            squares = torch.stack([sum(of(*pair).float().square().sum() for pair in
                                       zip(*pairs, strict=True))
                                   for pairs in zip(blocks, old, strict=True)])
            squares = sum_over_ranks(squares, t.ranks) if divided else squares
            found[kind] = [(x / sum(p.numel() for p in block)) ** 0.5
                           for x, block in zip(squares.tolist(), blocks, strict=True)]

        size("weights", lambda p, was: was)
        size("gradients", lambda p, was: local(p.grad))
        yield
        size("updates", lambda p, was: local(p.detach()) - was)
        self.log.note(step=t.step, health={
            kind: [float(f"{x:.6g}") if math.isfinite(x) else None for x in found[kind]]
            for kind in KINDS if kind in found})  # JSON has no infinity


def read_health(path, size=None):
    """The notes of a log's last run, {step: {kind: [a number for each block, or None]}}. size: read
    only this many bytes."""
    found = {}
    for line in Path(path).read_bytes()[:size].decode(errors="replace").splitlines():
        facts = json.loads(line[2:]) if line.startswith("# {") else {}
        found = {} if "config" in facts else found  # a new run in the same folder
        found |= {facts["step"]: facts["health"]} if "health" in facts else {}
    return found


def draw_health(notes, axes):
    """Draw one kind on each of six matplotlib axes, the first block violet, the last yellow."""
    from matplotlib import colormaps

    for ax, (kind, title) in zip(axes.flat, KINDS.items(), strict=True):
        blocks = list(zip(*(note[kind] for note in notes.values()), strict=True))
        for i, numbers in enumerate(blocks):
            color = colormaps["viridis"](0.95 * i / max(1, len(blocks) - 1))
            ax.plot(list(notes), numbers, ".-", color=color, markersize=3, label=f"block {i}")
        ax.set(xlabel="step", title=title)
        if kind in ("activations", "gradients", "updates"):
            ax.set_yscale("log")
        elif kind == "dead":
            ax.set_ylim(0, max(0.01, ax.get_ylim()[1]))
    axes.flat[0].legend(handles=[*axes.flat[0].lines][:: max(1, len(blocks) - 1)])
