"""The preset `best`: a line at the end of the schedule, and Muon with q, k and v apart."""

import os

import pytest
import torch
import torch._dynamo  # noqa: F401 (every optimizer does, which takes seconds: once, before forking)
import torch.distributed as dist
from helpers import TINY, free_port, lively_gpt, main_here, refusal, together, write_shards

import train_gpt2
from nanogpt.memory import Memory
from nanogpt.muon import Muon
from nanogpt.ranks import init_ranks
from nanogpt.report import read_log
from train_gpt2 import PRESETS, TrainConfig, configure_optimizer, get_lr

RUN = [*TINY, "--val-tokens", 512, "--sample-tokens", 0]


# the schedule


def test_a_line_in_the_last_share_of_the_run():
    found = [get_lr(step, 1.0, 0.2, 10, 100, 0.4) for step in (0, 9, 10, 60, 70, 80, 99, 100, 200)]
    assert found == pytest.approx([0.1, 1, 1, 1, 0.8, 0.6, 0.22, 0.2, 0.2])
    assert get_lr(50, 1.0, 0.0, 0, 100, 1.0) == pytest.approx(0.5)


@pytest.mark.parametrize("step", [0, 5, 10, 40, 99, 100])
def test_without_it_the_cosine_stays(step):
    assert get_lr(step, 1.0, 0.1, 10, 100, None) == get_lr(step, 1.0, 0.1, 10, 100)
    assert get_lr(55, 1.0, 0.1, 10, 100) == pytest.approx(0.55)


@pytest.mark.parametrize("share", ["0", "-1", "1.1", "nan"])
def test_a_share_that_is_none(share, monkeypatch, capsys):
    said = refusal(train_gpt2.main, *RUN, "--warm-down", share, monkeypatch=monkeypatch,
                   capsys=capsys)
    assert f"--warm-down {float(share)}: give a share of the run, such as 0.4" in said


# Muon


def test_q_k_and_v_are_three_matrices():
    """To the bit what Muon does with three parameters; other matrices are left whole."""
    generator = torch.Generator().manual_seed(0)
    whole = [torch.nn.Parameter(torch.randn(shape, generator=generator))
             for shape in ((24, 8), (24, 8), (32, 8), (8, 32), (8, 8))]
    parts = [torch.nn.Parameter(part.clone()) for p in whole
             for part in (p.detach().split(8) if p.shape == (24, 8) else [p.detach()])]
    optimizers = Muon(whole, 0.1, 0.5, qkv=True), Muon(parts, 0.1, 0.5)
    for _ in range(3):
        for p in whole:
            p.grad = torch.randn(p.shape, generator=generator)
        grads = [part for p in whole
                 for part in (p.grad.split(8) if p.shape == (24, 8) else [p.grad])]
        for part, grad in zip(parts, grads, strict=True):
            part.grad = grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(torch.cat([p.flatten() for p in whole]),
                               torch.cat([p.flatten() for p in parts]), atol=1e-6, rtol=0)
    one, as_three = (torch.nn.Parameter(torch.zeros(24, 8)) for _ in range(2))
    one.grad = as_three.grad = torch.randn(24, 8, generator=generator)
    Muon([one], 0.1, qkv=False).step()
    Muon([as_three], 0.1, qkv=True).step()
    assert (one - as_three).abs().max() > 1e-3


def divided(rank, world, port):
    """Of a matrix whose rows the ranks share, the update is the whole one's."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    init_ranks("cpu")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh, generator = init_device_mesh("cpu", (world,)), torch.Generator().manual_seed(0)
    whole = torch.nn.Parameter(torch.randn(24, 8, generator=generator))
    grad = torch.randn(24, 8, generator=generator)
    part, part_grad = (distribute_tensor(x, mesh, [Shard(0)], src_data_rank=None)
                       for x in (whole.detach(), grad))
    part = torch.nn.Parameter(part)
    whole.grad, part.grad = grad, part_grad
    for p in whole, part:
        Muon([p], 0.1, 0.5, qkv=True).step()
    assert torch.equal(part.full_tensor(), whole)
    dist.barrier()
    dist.destroy_process_group()


def test_on_a_divided_network():
    together(divided, 2, free_port())


def test_which_optimizer_does_so():
    net = lively_gpt()
    for kind, qkv in ("muon", False), ("muon-qkv", True):
        muon, _ = configure_optimizer(net, 0.1, 1e-3, kind).parts
        assert muon.qkv is qkv and len(muon.param_groups[0]["params"]) == 8
    sizes = [Memory(TrainConfig(optimizer=kind, B=1), net).moments()
             for kind in ("adamw", "muon", "muon-qkv")]
    assert sizes[0] > sizes[1] == sizes[2]


# the preset


def test_it_is_the_videos_run_but_for_these():
    best, video = PRESETS["best"], PRESETS["gpt2-124M"]
    assert best == train_gpt2.replace(video, optimizer="muon-qkv", warm_down=0.4, min_lr=0.0,
                                      max_lr=1.2e-3, out_dir="log/best")


def test_a_run_follows_the_line(tmp_path, monkeypatch):
    rates, step = [], train_gpt2.train_step
    monkeypatch.setattr(train_gpt2, "train_step", lambda t, lr: rates.append(lr) or step(t, lr))
    main_here(monkeypatch, *RUN, "--data", write_shards(tmp_path / "data"), "--max-steps", 8,
              "--warmup-steps", 0, "--max-lr", 1e-3, "--min-lr", 0, "--warm-down", 0.5,
              "--out-dir", tmp_path / "run")
    assert rates == pytest.approx([1e-3] * 5 + [7.5e-4, 5e-4, 2.5e-4])


def test_a_run_and_its_resume(tmp_path, monkeypatch):
    """Both ways to the same weights: schedule and optimizer depend on the step alone."""
    data = "--data", write_shards(tmp_path / "data")
    best = [*RUN, *data, "--optimizer", "muon-qkv", "--warm-down", 0.5, "--min-lr", 0]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    main_here(monkeypatch, *best, "--max-steps", 8, "--checkpoint-every", 4, "--out-dir", whole)
    main_here(monkeypatch, *best, "--max-steps", 8, "--checkpoint-every", 4, "--out-dir", halves)
    for path in sorted((halves / "checkpoint_000008").iterdir()):
        path.unlink()
    (halves / "checkpoint_000008").rmdir()
    main_here(monkeypatch, *best, "--max-steps", 8, "--resume", "--out-dir", halves)
    name = "checkpoint_000008/model.safetensors"
    assert (whole / name).read_bytes() == (halves / name).read_bytes()
    losses = dict(zip(*read_log(whole / "log.txt")["val"], strict=True))
    assert losses[8] < losses[0]
