"""Ranks take disjoint rows, and together what one process would have taken."""

import pytest
import torch
from helpers import TINY, start, stream_of, write_data

from nanogpt.common import UserError
from train_gpt2 import DataLoader, check_config, parse_args
from nanogpt.ranks import Ranks, init_ranks


@pytest.mark.parametrize("world, B", [(2, 4), (4, 2), (8, 1), (2, 2), (1, 2)])
def test_tokens_of_a_step_do_not_depend_on_ranks_or_B(world, B):
    """Together the ranks' micro-batches are one process's batch, in its order, none twice."""
    T, total = 5, 40
    tokens = [256 if i % 9 == 0 else i % 250 for i in range(123)]
    one = DataLoader(stream_of(tokens), total // T, T)
    ranks = [DataLoader(stream_of(tokens), B, T, rank, world) for rank in range(world)]
    for _ in range(12):  # past the epoch's end
        x, y = one.next_batch()
        rows = []
        for _ in range(total // (B * T * world)):
            rows += [loader.next_batch() for loader in ranks]
        assert torch.equal(torch.cat([row[0] for row in rows]), x)
        assert torch.equal(torch.cat([row[1] for row in rows]), y)
        assert {loader.position for loader in ranks} == {one.position}


def test_slices_are_disjoint():
    ranks = [DataLoader(stream_of(range(250)), 2, 4, rank, 4) for rank in range(4)]
    taken = [token for loader in ranks for token in loader.next_batch()[0].flatten().tolist()]
    assert sorted(taken) == list(range(32))


def test_one_plain_process_is_rank_0_of_1(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert init_ranks("cpu") == Ranks(torch.device("cpu"), False, 0, 0, 1)


@pytest.mark.parametrize("name, number", [("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)])
def test_a_gpu_is_chosen_by_its_number(name, number, monkeypatch):
    """As torch.cuda.set_device reads its argument, which refuses a device without a number."""
    chosen = []
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr("nanogpt.ranks.find_device", torch.device)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(
        torch.cuda._utils._get_device_index(device)))
    assert init_ranks(name).device.type == "cuda" and chosen == [number]


def test_more_processes_than_gpus(monkeypatch):
    names = "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"
    for name, value in zip(names, ("6", "2", "8", "localhost", "29500"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("nanogpt.ranks.find_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="rank 2 has no GPU: torchrun --nproc_per_node=2 "):
        init_ranks("cuda")


def test_batch_must_divide_by_the_ranks_too():
    config = parse_args(["--B", "64", "--T", "1024", "--total-batch-size", "524288"])
    assert check_config(config, 8) == 1
    with pytest.raises(UserError, match="64 x 1024 x 3 = 196608: try 589824"):
        check_config(config, 3)


@pytest.mark.slow
def test_two_processes_start(tmp_path):
    done = start("train_gpt2.py", *TINY, "--max-steps", 1, "--data", write_data(tmp_path / "data"),
                 "--out-dir", tmp_path / "run", ranks=2)
    assert done.returncode == 0, done.stderr
