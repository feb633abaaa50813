"""All ranks begin with the same settings, and all decide alike when one has an infinite number."""

import os

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
from nanogpt.ranks import init_ranks
from train_gpt2 import DataLoader, configure_optimizer, train_step

LR = 1e-2


def one_infinite(rank, world, port, folder):
    """On rank 1, the exponent's highest bit of a weight, an average or a gradient is flipped: some
    10^36, whose square is infinite. Every rank must raise the same line, and none must wait."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    ranks, clip = init_ranks("cpu"), nn.utils.clip_grad_norm_
    for kind in "weight", "average", "gradient":
        net = lively_gpt()
        loader = DataLoader(stream_of(text_tokens(5000)), 2, 16, rank, world)
        t = training(DDP(net), loader, 1, configure_optimizer(net, 0.1, LR), None, ranks)
        train_step(t, LR)
        p = net.transformer.h[1].mlp.c_fc.weight

        def flip(x):
            if rank == 1:
                x.detach().view(-1).view(torch.int32)[7] ^= 1 << 30

        def flipped(parameters, limit, p=p):
            flip(p.grad)
            return clip(parameters, limit)

        if kind != "gradient":
            flip(p if kind == "weight" else t.optimizer.state[p]["exp_avg"])
        with pytest.raises(UserError) as error:
            nn.utils.clip_grad_norm_ = flipped if kind == "gradient" else clip
            for _ in range(3):
                train_step(t, LR)
        with open(f"{folder}/{kind}{rank}", "w") as file:
            file.write(str(error.value))
    dist.barrier()
    del t
    dist.destroy_process_group()


def test_all_end_alike_and_name_the_rank(tmp_path):
    together(one_infinite, 3, free_port(), tmp_path, timeout=60)
    for kind in "weight", "average", "gradient":
        [said] = {(tmp_path / f"{kind}{rank}").read_text() for rank in range(3)}
        assert "gradient norm nan" in said and "did not touch the weights" in said
        assert "where rank 1 of 3 differs in " in said, said


DIFFERS = f"""import os, sys
sys.path.insert(0, {str(ROOT)!r})
import train_gpt2
from nanogpt import common
rank = int(os.environ["RANK"])
if rank == 1:
    sys.argv += ["--max-lr", "5e-3"]
if rank == 2:
    sys.argv[sys.argv.index("--data") + 1] += "-2"
if __name__ == "__main__":
    common.run(train_gpt2.main)
"""


def test_other_settings_are_refused_by_name(tmp_path):
    """As when the second machine's command has another flag, or its disk other shards."""
    script = tmp_path / "run.py"
    script.write_text(DIFFERS)
    write_shards(tmp_path / "shards-2", n_train=41_000)
    done = start(script, *TINY, "--B", 4, "--total-batch-size", 4 * 32 * 3, "--max-steps", 9,
                 "--data", write_shards(tmp_path / "shards"), "--out-dir", tmp_path / "run",
                 ranks=3)
    said = ("error: rank 1 of 3 differs in --max-lr; rank 2 of 3 differs in the training shards: "
            "start all machines with the same settings and data\n")
    assert (done.returncode, done.stderr) == (2, 3 * said)
    assert not (tmp_path / "run").exists()
