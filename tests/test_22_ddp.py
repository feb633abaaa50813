"""Two gloo processes train the network that one would have trained."""

import copy
import os
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from helpers import (
    TINY,
    free_port,
    lively_gpt,
    start,
    stream_of,
    text_tokens,
    together,
    training,
    write_data,
)
from torch.nn.parallel import DistributedDataParallel as DDP

from nanogpt.common import UserError
from nanogpt.ranks import Ranks, init_ranks, one_rank_first, sum_over_ranks
from train_gpt2 import DataLoader, accumulate_gradients


def flat_gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def join(rank, world, port):
    """The Ranks of a process as torchrun starts it, when all have joined."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    return init_ranks("cpu")


def one_rank(rank, world, port, folder):
    """What torchrun starts: joins the others, makes one gradient of 4 micro-steps, writes it."""
    ranks = join(rank, world, port)
    raw_model = lively_gpt()
    model = DDP(raw_model)
    loader = DataLoader(stream_of(text_tokens(5000)), 2, 16, rank, world)
    local = copy.deepcopy(raw_model)  # what this rank alone would get, to show they differ
    loss = accumulate_gradients(training(model, loader, 4, ranks=ranks))
    loader.position = 0
    accumulate_gradients(training(local, loader, 4))
    torch.save({"loss": loss, "grad": flat_gradient(raw_model), "local": flat_gradient(local),
                "world": sum_over_ranks(torch.ones(1), ranks)}, f"{folder}/{rank}.pt")
    # in this order, or torch may wait for gloo's threads, and these for Python's lock, for ever
    torch.distributed.barrier()
    del model
    torch.distributed.destroy_process_group()


def take_turns(rank, world, port, folder):
    """Rank 0 is slow; the others must find its file, and write theirs after it."""
    ranks = join(rank, world, port)
    path = Path(folder) / "downloaded"
    with one_rank_first(ranks):
        if not path.exists():  # what a download into a cache does
            sum(i * i for i in range(10**7))
            path.touch()
            (Path(folder) / f"by {rank}").touch()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_one_rank_downloads_and_the_others_wait(tmp_path):
    together(take_turns, 2, free_port(), str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["by 0", "downloaded"]


def fail_first(rank, world, port, folder):
    """Rank 0 fails in the block, and lives on until the other has ended: nothing but what it tells
    it can end its waiting."""
    ranks, said = join(rank, world, port), Path(folder) / f"said by {rank}"
    try:
        with one_rank_first(ranks):
            (Path(folder) / f"begun by {rank}").touch()
            raise UserError("no network")
    except UserError as error:
        said.write_text(str(error))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def two_machines(rank, world, port, folder):
    """Both ranks are the first of their machine. Rank 0 fails in the block."""
    ranks, said = replace(join(rank, world, port), ddp_local_rank=0), Path(folder) / f"{rank}"
    try:
        with one_rank_first(ranks):
            if rank == 0:
                raise UserError("no network")
        said.write_text("went on")
    except UserError as error:
        said.write_text(str(error))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_another_machine_does_not_go_on_alone(tmp_path):
    together(two_machines, 2, free_port(), str(tmp_path), timeout=30)
    assert (tmp_path / "0").read_text() == "no network"
    assert "another process of this run has ended" in (tmp_path / "1").read_text()


def test_nobody_waits_for_a_rank_that_failed(tmp_path):
    """Each ends with an error of its own, within seconds; the other does not try the same again."""
    together(fail_first, 2, free_port(), str(tmp_path), timeout=30)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "begun by 0": "", "said by 0": "no network",
        "said by 1": "another process of this run has ended: its own line says why"}


def test_two_processes_and_four_micro_steps_equal_one_process(tmp_path):
    together(one_rank, 2, free_port(), str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))

    model = lively_gpt()
    loader = DataLoader(stream_of(text_tokens(5000)), 16, 16)
    loss = accumulate_gradients(training(model, loader))
    expected = flat_gradient(model)
    assert first["world"] == 2
    assert torch.equal(first["grad"], second["grad"]), "the ranks went apart"
    torch.testing.assert_close(first["grad"], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(first["loss"], loss, atol=1e-6, rtol=0)
    # without synchronisation the ranks' gradients would be these
    assert (first["local"] - second["local"]).abs().max() > 1e-3


def test_gradients_are_synchronised_once_and_it_is_said_before_the_forward_pass():
    said = []

    class Watched(torch.nn.Module):
        require_backward_grad_sync = None

        def __init__(self):
            super().__init__()
            self.model = lively_gpt()

        def forward(self, x, y):
            said.append(self.require_backward_grad_sync)
            return self.model(x, y)

    loader = DataLoader(stream_of(text_tokens(5000)), 2, 16)
    with patch("torch.distributed.all_reduce"):
        accumulate_gradients(training(Watched(), loader, 4,
                                      ranks=Ranks(torch.device("cpu"), ddp=True)))
    assert said == [False, False, False, True]


def test_rank_0_alone_is_the_master():
    cpu = torch.device("cpu")
    assert Ranks(cpu).master_process and Ranks(cpu, True, 0, 0, 4).master_process
    assert not Ranks(cpu, True, 1, 1, 4).master_process


@pytest.mark.slow
def test_two_processes_print_what_one_prints(tmp_path):
    """The loop under two ranks: one of them speaks, and its losses are one process's."""
    flags, said = [*TINY, "--max-steps", 3, "--data", write_data(tmp_path / "data")], {}
    for ranks in None, 2:
        done = start("train_gpt2.py", *flags, "--out-dir", tmp_path / str(ranks), ranks=ranks)
        assert done.returncode == 0, done.stderr
        said[ranks] = [line.split(" | ")[1] for line in done.stdout.splitlines() if "loss" in line]
    assert len(said[None]) == len(said[2]) == 3
    for one, two in zip(said[None], said[2], strict=True):
        assert float(one.split()[1]) == pytest.approx(float(two.split()[1]), abs=2e-4)


def no_such_card(rank, world, port):
    """In a process of its own, which torch leaves its threads to."""
    os.environ["GLOO_SOCKET_IFNAME"] = "nosuch"
    with pytest.raises(UserError, match="cannot meet the others.*MASTER_ADDR.*GLOO_SOCKET_IFNAME"):
        join(rank, world, port)


def test_a_network_card_that_is_not_there():
    together(no_such_card, 1, free_port())


def started_by_srun(rank, world, port):
    """Slurm's names, and what its user has to add."""
    os.environ.update(SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank), MASTER_ADDR="127.0.0.1",
                      SLURM_STEP_NUM_TASKS=str(world), MASTER_PORT=str(port))
    ranks = init_ranks("cpu")
    assert (ranks.ddp_rank, ranks.ddp_world_size) == (rank, world)
    assert sum_over_ranks(torch.ones(1), ranks).item() == world
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_of_another_launcher_meet():
    together(started_by_srun, 2, free_port())
