"""Memory divided among the ranks, instead of the same on all of them: the optimizer's averages.

ZeRO, stage 1: Rajbhandari et al. 2020, arXiv 1910.02054.
"""

import torch
import torch.distributed as dist

from nanogpt.fsdp import divide_like, full, trained
from nanogpt.ranks import share, sum_over_ranks

KINDS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")  # what optimizers keep of a parameter


def find_owners(sizes, world_size):
    """{parameter: rank}. sizes: {parameter: numbers in its averages}. The largest goes first, to
    the rank that owns least so far. Every rank finds the same owners."""
    owners, owned = {}, [0] * world_size
    for p in sorted(sizes, key=sizes.get, reverse=True):
        owners[p] = owned.index(min(owned))
        owned[owners[p]] += sizes[p]
    return owners


class OwnedOptimizer:
    """An optimizer that updates, on every rank, only the parameters that the rank owns, and keeps
    averages of these alone. Then the owners send the new weights to all.

    Each update is the unsharded run's, to the bit. param_groups has all parameters: a loss scaler
    must unscale every gradient and decide alike on all ranks.
    """

    def __init__(self, optimizer, ranks):
        self.optimizer, self.ranks = optimizer, ranks
        self.state, self.param_groups = optimizer.state, optimizer.param_groups
        sizes = {p: p.numel() * (2 if "betas" in group else 1)  # AdamW keeps two averages, Muon one
                 for group in self.param_groups for p in group["params"]}
        self.owners = find_owners(sizes, ranks.ddp_world_size)
        self.zero_grad = optimizer.zero_grad

    @torch.no_grad()
    def step(self):
        for p, owner in self.owners.items():
            if owner != self.ranks.ddp_rank:
                p.grad = None  # optimizers leave out parameters without a gradient
        self.optimizer.step()
        for sending in [dist.broadcast(p.detach(), src=owner, async_op=True)
                        for p, owner in self.owners.items()]:
            sending.wait()


def collect(t):
    """Weights {NAME: tensor} and averages {KIND.NAME: tensor} of a Training, on the master's CPU;
    empty on the other ranks. All ranks must call it together."""
    weights, averages = {}, {}
    for name, p in trained(t).named_parameters():
        weight, state = full(p.detach()), find_state(p, t)
        if t.ranks.master_process:
            weights[name] = weight.to("cpu", copy=True)
            averages |= {f"{kind}.{name}": value.to("cpu", copy=True)
                         for kind, value in state.items()}
    return weights, averages


def find_state(p, t):
    """{kind: tensor}: what the optimizer keeps of a parameter; its owner sends it to all ranks."""
    state, owner = t.optimizer.state.get(p, {}), getattr(t.optimizer, "owners", {}).get(p)
    if owner is None:
        return {kind: full(value) for kind, value in state.items()}
    # only the owner knows: before the first update there is nothing, and Muon keeps less
    known = sum_over_ranks(torch.tensor([float(kind in state) for kind in KINDS]), t.ranks)
    found = {}
    for kind in [kind for kind, n in zip(KINDS, known.tolist(), strict=True) if n]:
        shape = () if kind == "step" else p.shape
        found[kind] = state.get(kind, torch.empty(shape, device=p.device))
        dist.broadcast(found[kind], src=owner)
    return found


def hand_out(tensors, name, p, t):
    """A parameter's weight, and {kind: tensor} for the optimizer, empty if another rank owns it.
    tensors: the master's, as collect() names them. All ranks must call it together."""
    names = {"weight": name} | {kind: f"{kind}.{name}" for kind in KINDS}
    found = share({what: tensors[key] for what, key in names.items() if key in tensors}, t.ranks)
    owner = getattr(t.optimizer, "owners", {}).get(p, t.ranks.ddp_rank)
    weight, state = found.pop("weight"), found if owner == t.ranks.ddp_rank else {}
    # clone: a part alone would keep the whole in memory
    return weight, {kind: divide_like(p, value).clone() for kind, value in state.items()}


def describe_sharding(config, t):
    """Rows for the table at the start of a run."""
    if config.shard == "none":
        return []
    if t.ranks.ddp_world_size == 1:
        return [("sharding", f"--shard {config.shard} needs several processes (torchrun): this one "
                             "keeps everything")]
    if config.shard == "model":
        mine = sum(p.to_local().numel() for p in t.model.parameters())
        return [("sharding", f"model: rank 0 keeps {mine:,} parameters")]
    mine = sum(p.numel() for p, owner in t.optimizer.owners.items() if owner == t.ranks.ddp_rank)
    return [("sharding", f"optimizer: rank 0 keeps averages for {mine:,} parameters")]
