"""--shard optimizer: every rank keeps a part of the averages, and the weights stay DDP's."""

import math
import os

import pytest
import torch
import torch._dynamo  # noqa: F401 (every optimizer does, which takes seconds: once, before forking)
import torch.distributed as dist
from helpers import (
    TINY,
    free_port,
    lively_gpt,
    main_here,
    start,
    stream_of,
    text_tokens,
    together,
    training,
    write_shards,
)
from torch.nn.parallel import DistributedDataParallel as DDP

from nanogpt.ranks import init_ranks
from nanogpt.sharding import OwnedOptimizer, collect, find_owners
from train_gpt2 import DataLoader, configure_optimizer, train_step

STEPS, LR = 5, 1e-2


def join(rank, world, port, dtype="float32"):
    """The Ranks of a process as torchrun starts it, when all have joined."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    return init_ranks("cpu", dtype)


def train(ranks, optimizer, shard, **more):
    """A Training after STEPS steps of two micro-steps each, and the gradient norms."""
    model = lively_gpt(**more)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**15, enabled=ranks.dtype != torch.float32)
    optimizer = configure_optimizer(model, 0.1, LR, optimizer)
    if shard:
        optimizer = OwnedOptimizer(optimizer, ranks)
    loader = DataLoader(stream_of(text_tokens(5000)), 2, 16, ranks.ddp_rank, ranks.ddp_world_size)
    t = training(DDP(model), loader, 2, optimizer, scaler, ranks)
    return t, [train_step(t, LR)[1] for _ in range(STEPS)]


def n_averages(t):
    return sum(v.numel() for state in t.optimizer.state.values() for v in state.values())


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def trained_both_ways(rank, world, port, kinds, dtype, more, folder):
    """Asserts that DDP and the sharded optimizer give the same, and writes how much this rank
    keeps."""
    ranks = join(rank, world, port, dtype)
    for kind in kinds:
        whole, norms = train(ranks, kind, False, **more)
        parts, norms_of_parts = train(ranks, kind, True, **more)
        finite = [norm for norm in norms if math.isfinite(norm)]
        assert finite == [norm for norm in norms_of_parts if math.isfinite(norm)]
        assert max(finite) > 1, "nothing was clipped"
        assert (len(finite) < STEPS) == (dtype == "float16"), f"scales that do not tell: {norms}"
        assert same(whole.net.state_dict(), parts.net.state_dict())
        assert whole.scaler.state_dict() == parts.scaler.state_dict()
        weights, averages = collect(parts)  # what a checkpoint holds
        expected = collect(whole)
        if rank == 0:
            assert same(weights, expected[0]) and same(averages, expected[1])
        assert (weights == {}) == (rank > 0)
        torch.save([n_averages(parts), n_averages(whole)], f"{folder}/{kind}{rank}.pt")
    dist.barrier()
    del whole, parts
    dist.destroy_process_group()


def kept(folder, kind, world):
    """The share of all averages that the fullest rank keeps; together they must be all."""
    parts, wholes = zip(*(torch.load(folder / f"{kind}{rank}.pt") for rank in range(world)),
                        strict=True)
    assert sum(parts) == wholes[0] == wholes[-1]
    return max(parts) / wholes[0]


@pytest.mark.parametrize("world", [2, 3, 4])
def test_the_weights_are_ddps_to_the_bit(world, tmp_path):
    """With accumulation, a clipped gradient, and a matrix that two layers share."""
    together(trained_both_ways, world, free_port(), ["adamw", "muon"], "float32", {}, tmp_path)
    for kind, spread in ("adamw", 0.02), ("muon", 0.2):  # sizes are balanced; Muon keeps half
        assert kept(tmp_path, kind, world) < 1 / world + spread


def test_a_rank_may_own_nothing(tmp_path):
    """wte, wpe and the last norm's two vectors, on five ranks."""
    together(trained_both_ways, 5, free_port(), ["adamw"], "float32", dict(n_layer=0), tmp_path)
    assert torch.load(tmp_path / "adamw4.pt")[0] == 0


def test_a_scale_too_large_is_found_by_every_rank(tmp_path):
    """float16: the first steps overflow, and all ranks must skip the same ones."""
    together(trained_both_ways, 3, free_port(), ["adamw", "muon"], "float16", {}, tmp_path)


def test_the_largest_goes_to_the_rank_that_owns_least():
    params = [torch.empty(n) for n in (5, 40, 5, 30, 20, 10)]
    owners = find_owners({p: p.numel() for p in params}, 3)
    assert [owners[p] for p in params] == [1, 0, 2, 1, 2, 2]


RUN = [*TINY, "--B", 4, "--max-steps", 6, "--eval-every", 3, "--val-tokens", 512,
       "--sample-tokens", 0, "--checkpoint-every", 3, "--optimizer", "muon"]


def files(run, step):
    folder = run / f"checkpoint_{step:06d}"
    return [(folder / f"{name}.safetensors").read_bytes() for name in ("model", "state")]


def test_checkpoints_do_not_show_it(tmp_path):
    """Each way resumes the other's run, and both save the same bytes."""
    flags = [*RUN, "--data", write_shards(tmp_path / "shards"), "--out-dir"]
    for name, shard in ("plain", "none"), ("sharded", "optimizer"):
        done = start("train_gpt2.py", *flags, tmp_path / name, "--shard", shard, ranks=2)
        assert done.returncode == 0, done.stderr
        said = "sharding   | optimizer: rank 0 keeps averages for" in done.stdout
        assert said == (name == "sharded")
    expected = files(tmp_path / "plain", 6)
    assert files(tmp_path / "sharded", 6) == expected
    for name, shard in ("plain", "optimizer"), ("sharded", "none"):
        for path in (tmp_path / name / "checkpoint_000006").iterdir():
            path.unlink()
        path.parent.rmdir()
        done = start("train_gpt2.py", *flags, tmp_path / name, "--shard", shard, "--resume",
                     ranks=2)
        assert done.returncode == 0, done.stderr
        assert "resumed    | at step 3 of" in done.stdout and f"-> {shard}" in done.stdout
        assert files(tmp_path / name, 6) == expected


def test_alone_it_changes_nothing_and_says_so(tmp_path, monkeypatch, capsys):
    flags = [*RUN, "--data", write_shards(tmp_path / "shards"), "--out-dir"]
    main_here(monkeypatch, *flags, tmp_path / "plain")
    assert "sharding" not in capsys.readouterr().out
    main_here(monkeypatch, *flags, tmp_path / "alone", "--shard", "optimizer")
    assert "sharding   | --shard optimizer needs several processes (torchrun)" in (
        capsys.readouterr().out)
    assert files(tmp_path / "alone", 6) == files(tmp_path / "plain", 6)
