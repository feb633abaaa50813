"""--shard model: weights, gradients and averages divided among the ranks, the same numbers."""

import copy
import math
import os
import re
from unittest.mock import patch

import pytest
import torch
import torch._dynamo  # noqa: F401 (every optimizer does, which takes seconds: once, before forking)
import torch.distributed as dist
from helpers import (
    TINY,
    free_port,
    lively_gpt,
    start,
    stream_of,
    text_tokens,
    together,
    training,
    write_shards,
)
from torch.nn.parallel import DistributedDataParallel as DDP

import train_gpt2
from nanogpt.checkpoints import random_states, read_tensors, restore, save_checkpoint
from nanogpt.common import UserError
from nanogpt.fsdp import full, shard_network, whole_net
from nanogpt.guard import Spikes
from nanogpt.ranks import init_ranks
from nanogpt.report import read_log
from nanogpt.sharding import collect
from train_gpt2 import DataLoader, accumulate_gradients, configure_optimizer, train_step

LR = 1e-2


def join(rank, world, port, dtype="float32"):
    """The Ranks of a process as torchrun starts it, when all have joined."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    return init_ranks("cpu", dtype)


def prepared(ranks, sharded, kind="adamw", steps=2, **attributes):
    """A Training of a lively network on all ranks, by FSDP or by DDP."""
    net = lively_gpt()
    for name, value in attributes.items():
        setattr(net, name, value)
    model = shard_network(net, ranks, False) if sharded else DDP(net)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**15, enabled=ranks.dtype == torch.float16)
    loader = DataLoader(stream_of(text_tokens(9000)), 2, 16, ranks.ddp_rank, ranks.ddp_world_size)
    return train_gpt2.Training(net, model, configure_optimizer(model, 0.1, LR, kind), scaler,
                               loader, steps, ranks)


def gradient(model):
    return torch.cat([full(p.grad).flatten() for p in model.parameters()])


def gradients_of(rank, world, port, folder):
    """FSDP's gradient, and one process's with the whole batch, in float64 and in float32."""
    ranks = join(rank, world, port)
    t = prepared(ranks, True)
    accumulate_gradients(t)
    found = gradient(t.model)
    expected, alone = [], lively_gpt()
    for model in copy.deepcopy(alone).double(), alone:
        loader = DataLoader(stream_of(text_tokens(9000)), 4 * world, 16)
        accumulate_gradients(training(model, loader))
        expected.append(gradient(model))
    error, usual = ((g - expected[0]).norm() / expected[0].norm() for g in (found, expected[1]))
    assert usual < 1e-5 and error < 2 * usual, f"rank {rank} of {world}: {error:.1e}, {usual:.1e}"
    shares = [sum(p.to_local().numel() for p in t.model.parameters())]
    shares.append(sum(p.grad.to_local().numel() for p in t.model.parameters()))
    train_step(t, LR)
    shares += [sum(s[k].to_local().numel() for s in t.optimizer.state.values())
               for k in ("exp_avg", "exp_avg_sq")]
    total = t.net.num_params()
    assert max(shares) < total / world * 1.1 + 100, shares
    assert sum(p.untyped_storage().nbytes() for p in t.net.parameters()) < 200, "still whole"
    dist.barrier()
    del t
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3, 4])
def test_gradients_are_right_and_memory_is_divided(world, tmp_path):
    """FSDP averages by gloo's ReduceOp.AVG, which gave wrong gradients once (pytorch#162338).
    33 positions and 257 ids do not divide evenly."""
    together(gradients_of, world, free_port(), tmp_path)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def unclipped(parameters, limit, clip=torch.nn.utils.clip_grad_norm_):
    return clip(parameters, 1e9)


CASES = [dict(kind="adamw"), dict(kind="muon"), dict(kind="adamw", steps=1, recompute=True)]
if hasattr(torch.nn, "LinearCrossEntropyOptions"):
    CASES.append(dict(kind="adamw", loss_rows=7))


def against_ddp(rank, world, port, folder):
    """Four steps by DDP and by FSDP. Two ranks' gradients are equal to the bit, since a + b is
    b + a. Only the norm is not, which FSDP adds up in another order: so clipping rounds."""
    for dtype in "float32", "bfloat16", "float16":
        ranks = join(rank, world, port, dtype)
        for case in CASES if dtype == "float32" else CASES[:2]:
            for clip in unclipped, torch.nn.utils.clip_grad_norm_:
                if clip is not unclipped and dtype != "float32":
                    continue
                with patch("torch.nn.utils.clip_grad_norm_", clip):
                    ddp, fsdp = (prepared(ranks, sharded, **case) for sharded in (False, True))
                    for _ in range(4):
                        (loss, norm), (loss2, norm2) = (train_step(t, LR) for t in (ddp, fsdp))
                        assert loss2 == (loss if clip is unclipped
                                         else pytest.approx(loss, abs=2e-5)), case
                        assert norm2 == pytest.approx(norm, rel=2e-3, nan_ok=True), case
                weights, averages = collect(fsdp)
                if rank == 0 and clip is unclipped:
                    expected = collect(ddp)
                    assert same(weights, expected[0]), (dtype, case)
                    assert same(averages, expected[1]), (dtype, case)
        dist.barrier()
        del ddp, fsdp
        dist.destroy_process_group()
        port += 1


def test_two_ranks_get_ddps_bits(tmp_path):
    together(against_ddp, 2, free_port(), tmp_path)


def faults_and_checkpoints(rank, world, port, folder):
    ranks = join(rank, world, port)

    # a NaN on rank 1 alone, in the second micro-step: every rank says where
    t = prepared(ranks, True)
    train_step(t, LR)
    before = collect(t)
    net, forward, calls = t.net, type(t.net).forward, []

    def broken(self, x, y=None):
        logits, loss = forward(self, x, y)
        calls.append(1)
        return logits, loss * (math.nan if rank == 1 and len(calls) % 2 == 0 else 1)

    with patch.object(train_gpt2.GPT, "forward", broken):
        with pytest.raises(UserError, match="from the 32 tokens of rank 1 at 224 "):
            train_step(t, LR)
    assert all(same(a, b) for a, b in zip(before, collect(t), strict=True))

    # a spike is skipped
    t.optimizer.zero_grad()
    t.spikes = Spikes({"loss": [0.0, 0.1] * 64, "norm": [0.0, 0.1] * 64}, 6.0)
    train_step(t, LR)
    assert t.spikes.skipped and all(same(a, b) for a, b in zip(before, collect(t), strict=True))

    # inside whole_net, one rank alone may do anything with the network
    with whole_net(t):
        if rank == 1:
            assert net.generate(torch.zeros(1, 2, dtype=torch.long), 3).shape == (1, 5)
            assert same(dict(net.named_parameters()), dict(copy.deepcopy(net).named_parameters()))
    assert all(p.isnan().all() for p in net.parameters())

    # saved, and restored into other ways of sharding
    rng = random_states(ranks)
    t.step = 2
    save_checkpoint(folder / "c", t, train_gpt2.TrainConfig(), rng)
    dist.barrier()
    facts = {"scaler": {}, "position": t.loader.position, "step": 2, "folder": "c"}
    for sharded in True, False:
        other = prepared(ranks, sharded)
        other.max_steps = 9
        restore(other, facts, read_tensors(folder / "c") if rank == 0 else {})
        assert all(same(a, b) for a, b in zip(before, collect(other), strict=True))
        if sharded:
            parts = [v.to_local() for s in other.optimizer.state.values()
                     for k, v in s.items() if k != "step"]
            stored = sum(v.untyped_storage().nbytes() for v in parts)
            assert stored == sum(v.numel() * 4 for v in parts), "parts of whole tensors"
    dist.barrier()
    del t, other
    dist.destroy_process_group()


def test_faults_spikes_samples_and_checkpoints(tmp_path):
    together(faults_and_checkpoints, 2, free_port(), tmp_path)


def compiled_by_block(rank, world, port, folder):
    ranks, compiled = join(rank, world, port), []

    def fake(function, dynamic):
        compiled.append(function.__self__)
        return function

    net = lively_gpt()
    with patch("torch.compile", fake):
        model = shard_network(net, ranks, True)
    assert compiled == list(model.transformer.h)
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in net.named_parameters()]
    dist.barrier()
    del model
    dist.destroy_process_group()


def test_blocks_are_compiled_one_by_one_and_names_stay(tmp_path):
    together(compiled_by_block, 2, free_port(), tmp_path)


RUN = [*TINY, "--B", 4, "--max-steps", 6, "--eval-every", 3, "--val-tokens", 700, "--hellaswag",
       "heldout", "--hellaswag-limit", 9, "--checkpoint-every", 3, "--temperature", 0]


def test_a_run_prints_what_ddps_run_prints(tmp_path):
    """Three ranks with different numbers of validation batches and examples, and a sample."""
    flags = [*RUN, "--data", write_shards(tmp_path / "shards"), "--total-batch-size", 768,
             "--out-dir"]
    logs, samples = [], []
    for shard in "none", "model":
        done = start("train_gpt2.py", *flags, tmp_path / shard, "--shard", shard, ranks=3)
        assert done.returncode == 0, done.stderr
        assert ("sharding   | model: rank 0 keeps 11," in done.stdout) == (shard == "model")
        samples.append(re.findall("  sample.*", done.stdout))
        logs.append(read_log(tmp_path / shard / "log.txt"))
    for kind in "train", "val", "hella":
        (steps, values), (steps2, values2) = (log[kind] for log in logs)
        assert steps == steps2 and values == pytest.approx(values2, abs=1e-5)
    assert samples[0] == samples[1] and len(samples[0]) == 12
