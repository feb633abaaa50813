"""Memory of a training step: what autograd keeps, and the peak of real steps, counted by torch."""

import json
import os
import weakref

import pytest
import torch
from helpers import first_batch, free_port, stream_of, together
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train_gpt2
from nanogpt.cpu import choose_products, keeps_fp32, quicken
from nanogpt.fsdp import whole_net
from nanogpt.memory import Memory
from nanogpt.ranks import Ranks, init_ranks
from nanogpt.sharding import OwnedOptimizer

PARTS = hasattr(torch.nn, "LinearCrossEntropyOptions")  # --loss-rows needs torch 2.13


def settings(n_layer=4, n_head=4, n_embd=128, vocab_size=211, B=2, T=23, micro_steps=2, ranks=1,
             **more):
    return train_gpt2.TrainConfig(
        n_layer=n_layer, n_head=n_head, n_embd=n_embd, vocab_size=vocab_size, B=B, T=T,
        total_batch_size=B * T * micro_steps * ranks, max_steps=9, products="plain", **more)


def planned(config, ranks=1, e=4):
    with torch.device("meta"):
        return Memory(config, train_gpt2.init_model(config), ranks, e)


def kept_bytes(net, x, y, dtype):
    """Bytes that autograd keeps from forward to backward, besides weights and single numbers."""
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    shapes = {shape for p in net.parameters() for shape in (p.shape, p.t().shape) if p.dim() == 2}
    kept, held = {}, []

    def keep(t):
        held.append(t)  # or its memory would be used again
        copy = t.dtype == torch.bfloat16 and t.shape in shapes  # of a weight, made by autocast
        if t.numel() > 1 and not copy:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            net(x, y)
    return sum(size for place, size in kept.items() if place not in weights)


@pytest.mark.parametrize("more", [{}, {"recompute": True}, {"loss_rows": 16}, {"bf16": True},
                                  {"onednn": True}, {"dropout": 0.1}],
                         ids=lambda more: next(iter(more), "plain"))
def test_activations_are_what_autograd_keeps_to_the_byte(more):
    config = settings(n_layer=3, n_embd=48, **{key: value for key, value in more.items()
                                               if key not in ("bf16", "onednn")})
    net, (x, y) = train_gpt2.init_model(config), first_batch(range(200), 2, 23)
    net.recompute, net.loss_rows = config.recompute, config.loss_rows
    if net.loss_rows and not PARTS:
        pytest.skip("needs torch 2.13")
    if "onednn" in more:
        if not keeps_fp32():
            pytest.skip("oneDNN rounds on this CPU")
        quicken(net, choose_products("onednn"))
    dtype = torch.bfloat16 if "bf16" in more else torch.float32
    n, positions = 2 * 23, 8 * 23
    log_probabilities = 0 if net.loss_rows else 4 * n * 211
    next_ids = 16 * n  # the loader has read the next batch
    expected = planned(config, e=dtype.itemsize).activations() - next_ids
    assert expected + log_probabilities + positions == kept_bytes(net, x, y, dtype)


class Alive(TorchDispatchMode):
    """Counts the bytes of all tensors that live after each operator. `most` is the most."""

    def __init__(self):
        super().__init__()
        self.storages, self.most = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        done = function(*args, **(kwargs or {}))
        for x in tree_leaves((args, kwargs, done)):
            x = getattr(x, "_local_tensor", x)  # of a divided one
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                self.storages[storage._cdata] = weakref.ref(storage)
        alive = [storage for ref in self.storages.values() if (storage := ref()) is not None]
        self.storages = {storage._cdata: weakref.ref(storage) for storage in alive}
        self.most = max(self.most, sum(storage.nbytes() for storage in alive))
        return done


def train(config, ranks, n_steps=3):
    """A Training, and its steps one by one; after the last, a validation."""
    torch.manual_seed(0)
    stream = stream_of([i % 50 for i in range(4 * config.total_batch_size + 1)], config.vocab_size)
    t = train_gpt2.prepare_training(config, train_gpt2.init_model(config), stream, ranks, {})
    for step in range(n_steps):
        train_gpt2.train_step(t, 1e-3)
        if step == n_steps - 1:
            with whole_net(t):
                train_gpt2.validate(t.net, stream, 2 * config.T, config.B, config.T, ranks)
        yield t


def peak_by_profiler(config):
    """The most bytes that torch's allocator had given out at once, from before the network."""
    with torch.profiler.profile(profile_memory=True) as profile:
        for t in train(config, Ranks(torch.device("cpu"))):
            del t
    now = most = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize("more", [
    {}, {"micro_steps": 1}, {"recompute": True}, {"recompute": True, "micro_steps": 1},
    {"optimizer": "muon"}, {"optimizer": "muon", "B": 1, "micro_steps": 1}, {"dropout": 0.1},
    {"loss_rows": 50, "vocab_size": 8009, "n_embd": 64}, {"vocab_size": 8009, "n_embd": 64},
    {"vocab_size": 8009, "B": 1, "T": 16}, {"vocab_size": 8009, "B": 1, "T": 16, "micro_steps": 1},
], ids=str)
def test_the_peak_is_that_of_real_steps(more):
    if "loss_rows" in more and not PARTS:
        pytest.skip("needs torch 2.13")
    config = settings(**{"B": 8, "T": 64, "micro_steps": 3, "vocab_size": 1009} | more)
    assert planned(config).peak() == pytest.approx(peak_by_profiler(config), rel=0.03)


def count_on_a_rank(rank, world, port, path, cases):
    """A process: the most bytes alive in a step, for each case, as JSON in path.rank."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank),
                      LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    ranks, found = init_ranks("cpu"), []
    for more in cases:
        with Alive() as alive:
            for t in train(settings(ranks=world, **more), ranks):
                last, alive.most = alive.most, 0
                del t
        found.append(last)
    path.with_suffix(f".{rank}").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_the_peak_of_a_rank_is_that_of_real_ranks(world, tmp_path):
    """DDP, moments by owner, and all divided: with few activations, and with many."""
    few, many = {"B": 1, "T": 16}, {"B": 8, "T": 64}
    shards = ("none", "optimizer", "model") if world == 2 else ("model",)
    cases = [{**few, "shard": shard, "micro_steps": micro_steps} for shard in shards
             for micro_steps in (1, 2)]
    cases += [{**many, "shard": shard} for shard in shards]
    cases += [{**few, "shard": "model", "vocab_size": 8009}]
    cases += [{**few, "shard": "model", "optimizer": "muon"}] * (world == 2)
    # many blocks, one micro-step: a validation, with whole weights, needs most
    cases += [{**few, "shard": "model", "n_layer": 12, "micro_steps": 1}]
    together(count_on_a_rank, world, free_port(), tmp_path / "most", cases)
    for case, *counted in zip(cases, *(json.loads((tmp_path / f"most.{rank}").read_text())
                                       for rank in range(world)), strict=True):
        memory = planned(settings(ranks=world, **case), world)
        rel = 0.05 if world == 2 else 0.08  # rows that do not divide evenly are padded
        assert memory.peak() == pytest.approx(max(counted), rel=rel), case


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("world", [2, 3, 8])
def test_moments_are_those_of_the_rank_that_owns_most(world, kind):
    """GPT-2's: Muon keeps one average of a block's matrix, AdamW two of everything else."""
    sizes = dict(n_layer=12, n_head=12, n_embd=768, vocab_size=50257, optimizer=kind)
    with torch.device("meta"):
        net = train_gpt2.init_model(settings(**sizes))
    ranks = Ranks(torch.device("cpu"), ddp_world_size=world)
    optimizer = OwnedOptimizer(train_gpt2.configure_optimizer(net, 0.1, 1e-3, kind), ranks)
    matrices = {p for p in net.transformer.h.parameters() if p.dim() == 2 and kind == "muon"}
    owned = [0] * world
    for p, owner in optimizer.owners.items():
        owned[owner] += 4 * p.numel() * (1 if p in matrices else 2)
    memory = planned(settings(**sizes, shard="optimizer", ranks=world), world)
    assert memory.moments() == pytest.approx(max(owned), rel=0.03)


def test_what_ranks_share():
    """DDP's buckets are as large as the gradients. An owner has a share of the moments, but wte is
    never cut; of a divided network each rank has a share of everything."""
    def parts(ranks, shard):
        return planned(settings(shard=shard, ranks=ranks, micro_steps=1), ranks).parts()

    P, wte = parts(1, "none")["weights"], 4 * 211 * 128
    assert [parts(ranks, "none")["exchange"] for ranks in (1, 2, 50)] == [0, P, P]
    assert parts(2, "none")["moments"] == 2 * P == 2 * parts(2, "optimizer")["moments"]
    assert parts(50, "optimizer")["moments"] == 2 * wte
    for name, whole in ("weights", P), ("gradients", P), ("moments", 2 * P):
        assert parts(50, "model")[name] == pytest.approx(whole / 50)
        assert parts(1, "model")[name] == whole, "one process keeps everything"
