"""One flipped bit on one rank is found, and the rank is named, before anything is saved."""

import os
import random
import re

import numpy as np
import pytest
import torch
import torch._dynamo  # noqa: F401 (every optimizer does, which takes seconds: once, before forking)
import torch.distributed as dist
from helpers import (
    ROOT,
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
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from nanogpt.common import UserError
from nanogpt.drift import CHUNK, Watch, checksum
from nanogpt.fsdp import shard_network
from nanogpt.ranks import init_ranks
from nanogpt.sharding import OwnedOptimizer
from train_gpt2 import DataLoader, configure_optimizer, train_step

EVERY, LR = 3, 1e-2
FLIPS = int(os.environ.get("FLIPS", 12))  # FLIPS=120 for the long form


def words(x):
    return x.detach().view(-1).view(torch.int32)


@pytest.mark.parametrize("n", [1, 2, 3, 768, 2 * CHUNK + 5])
def test_every_bit_counts_and_so_does_its_place(n):
    """Also of the last word, which may be half of one, and across chunks."""
    torch.manual_seed(0)
    x = torch.randn(n)
    usual, rng = checksum(x).item(), random.Random(n)
    assert checksum(x.clone()).item() == usual
    places = {0, n - 1, *(rng.randrange(n) for _ in range(3))}
    for place in places:
        for bit in range(32):
            words(x)[place] ^= 1 << bit if bit < 31 else -(2**31)
            assert checksum(x).item() != usual, f"bit {bit} of number {place}"
            words(x)[place] ^= 1 << bit if bit < 31 else -(2**31)
    assert checksum(x).item() == usual
    if n > 2:
        assert checksum(x.roll(1)).item() != usual
        x[0], x[n - 1] = x[n - 1].item(), x[0].item()
        assert checksum(x).item() != usual
    assert checksum(torch.cat((x, x))[n:]).item() == checksum(x).item(), "its place in memory"


def test_the_same_bit_of_many_words_shows():
    """A bad line of memory flips it in each word that passes. Signs are the last bits of words."""
    torch.manual_seed(0)
    x, rng = torch.randn(4096), random.Random(0)
    usual = checksum(x).item()
    for bit in range(64):
        for n in 2, 2, 2, 3, 8, 64, 2048:
            flipped, places = x.clone(), rng.sample(range(2048), n)
            flipped.view(torch.int64)[places] ^= 1 << bit if bit < 63 else -(2**63)
            assert checksum(flipped).item() != usual, f"bit {bit} of {n} words"
    a, b = torch.tensor([0.1, 0.5, 0.2, -0.5]), torch.tensor([0.1, -0.5, 0.2, 0.5])
    assert checksum(a).item() != checksum(b).item()


def join(rank, world, port):
    """The Ranks of a process as torchrun starts it, when all have joined."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    return init_ranks("cpu")


def same_everywhere(t):
    """Whether all ranks have the same bits, by bringing them together."""
    mine = torch.cat([words(x) for p in t.net.parameters()
                      for x in (p, *t.optimizer.state.get(p, {}).values())])
    every = [torch.empty_like(mine) for _ in range(t.ranks.ddp_world_size)]
    dist.all_gather(every, mine)
    return all(torch.equal(every[0], other) for other in every)


def flip(x, draw):
    """A random bit of a random number. (A gradient's or an average's last bits may leave no trace:
    added to a larger number, they are rounded away.)"""
    bits = [1 << bit for bit in range(30)] + [-(2**31)]  # bit 30 makes it infinite: that is told
    words(x)[draw.randrange(x.numel())] ^= draw.choice(bits)


def one_flip(ranks, seed, tally):
    """A run in which one rank has one flipped bit. The error must come in time and name the rank;
    if there is none, the flip must have left no trace."""
    draw = random.Random(seed)
    kind = ("weight", "average", "gradient", "data")[seed % 4]
    odd, world = draw.randrange(ranks.ddp_world_size), ranks.ddp_world_size
    at, mine = draw.randrange(1, 2 * EVERY), odd == ranks.ddp_rank
    tokens = text_tokens(5000)
    per_step = 2 * 16 * world
    if kind == "data":  # some token of step `at`, on this rank's disk
        place = at * per_step + draw.choice(np.flatnonzero(
            tokens[at * per_step : (at + 1) * per_step] < 256).tolist())
        tokens[place] ^= (1 << draw.randrange(8)) * mine
    net = lively_gpt()
    optimizer = configure_optimizer(net, 0.1, LR, draw.choice(["adamw", "muon"]))
    loader = DataLoader(stream_of(tokens), 2, 16, ranks.ddp_rank, world)
    t = training(DDP(net), loader, 1, optimizer, None, ranks, max_steps=3 * EVERY)
    watch, params = Watch(EVERY, ranks), list(net.parameters())
    p, clip = draw.choice(params), nn.utils.clip_grad_norm_

    def flipped(parameters, limit):
        if kind == "gradient" and mine and t.step == at:
            flip(p.grad, draw)
        return clip(parameters, limit)

    try:
        nn.utils.clip_grad_norm_ = flipped
        while t.step <= at + EVERY:
            if t.step == at and mine and kind in ("weight", "average"):
                values = [v for v in t.optimizer.state[p].values() if v.numel() > 1]
                flip(p if kind == "weight" else draw.choice(values), draw)
            watch.look(t, saving=False)
            train_step(t, LR)
            t.step += 1
    except UserError as error:
        named = f"rank {odd} of {world} differs" if world > 2 else "ranks 0, 1 of 2 differ "
        assert named in str(error), f"{kind} of rank {odd}, seed {seed}: {error}"
        assert "; " not in str(error).partition("steps ")[2].partition(":")[0], str(error)
        assert at <= t.step <= at + EVERY
        tally["found"] += 1
    else:
        assert kind != "data" and same_everywhere(t), f"{kind} of rank {odd}, seed {seed}: missed"
        tally["without a trace"] += 1
    finally:
        nn.utils.clip_grad_norm_ = clip


def flips(rank, world, port, seeds):
    ranks = join(rank, world, port)
    tally = {"found": 0, "without a trace": 0}
    for seed in seeds:
        one_flip(ranks, seed, tally)
    assert tally["found"] >= 0.7 * len(seeds), tally
    if rank == 0:
        print(world, "ranks:", tally)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3, 4])
def test_random_flips(world):
    n = FLIPS // 3
    together(flips, world, free_port(), range(world * 1000, world * 1000 + n))


def quiet(rank, world, port):
    """Nobody drifts: nothing is said, whatever is divided. Weights that all have are compared."""
    ranks = join(rank, world, port)
    for shard in "none", "optimizer", "model":
        for kind in "adamw", "muon":
            net = lively_gpt()
            model = shard_network(net, ranks, False) if shard == "model" else DDP(net)
            optimizer = configure_optimizer(model, 0.1, LR, kind)
            if shard == "optimizer":
                optimizer = OwnedOptimizer(optimizer, ranks)
            loader = DataLoader(stream_of(text_tokens(5000)), 2, 16, rank, world)
            t = training(net, loader, 2, optimizer, None, ranks, max_steps=9)
            t.model, watch = model, Watch(2, ranks)
            for t.step in range(6):
                watch.look(t, saving=t.step == 3)
                train_step(t, LR)
            if shard == "optimizer":
                t.step = 6
                if rank == 1:
                    flip(net.transformer.wte.weight, random.Random(0))
                with pytest.raises(UserError, match="rank 1 of 3 differs in transformer.wte"):
                    watch.look(t, saving=True)
    dist.barrier()
    del t, model
    dist.destroy_process_group()


def test_ranks_that_agree_say_nothing():
    together(quiet, 3, free_port())


RUN = [*TINY, "--B", 4, "--total-batch-size", 4 * 32 * 3, "--max-steps", 20, "--eval-every", 50,
       "--val-tokens", 512, "--sample-tokens", 0]
DRIFTS = f"""import os, sys
sys.path.insert(0, {str(ROOT)!r})
import torch, train_gpt2
from nanogpt import common
rank, step = int(os.environ["RANK"]), train_gpt2.train_step
def flipping(t, lr):
    if rank == 2 and t.step == 8:
        t.net.lm_head.weight.detach().view(torch.int32)[5, 5] ^= 1
    return step(t, lr)
train_gpt2.train_step = flipping
if __name__ == "__main__":
    common.run(train_gpt2.main)
"""


def whole_run(tmp_path, *flags):
    script = tmp_path / "run.py"
    script.write_text(DRIFTS)
    return start(script, *RUN, "--data", write_shards(tmp_path / "shards"), "--out-dir",
                 tmp_path / "run", *flags, ranks=3)


@pytest.mark.parametrize("flags, found", [
    (["--check-ranks", 4, "--checkpoint-every", 50], 12), (["--checkpoint-every", 5], 10)])
def test_a_run_ends_before_it_saves(flags, found, tmp_path):
    """Found by the next comparison, or before the next checkpoint: each rank says the same line."""
    done = whole_run(tmp_path, *flags)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 3 and len(set(lines)) == 1, done.stderr
    assert re.match(rf"error: after {found} steps rank 2 of 3 differs in transformer.wte.weight: "
                    "nothing more is saved", lines[0]), lines[0]
    names = [path.name for path in (tmp_path / "run").glob("checkpoint_*")]
    assert names == (["checkpoint_000005"] if found == 10 else [])


def test_zero_compares_nothing(tmp_path):
    done = whole_run(tmp_path, "--check-ranks", 0)
    assert done.returncode == 0, done.stderr
