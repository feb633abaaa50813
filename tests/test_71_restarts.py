"""Ranks that torchrun restarts find each other, not the addresses of dead ranks."""

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist
from helpers import free_port, together

from nanogpt.ranks import init_ranks, sum_over_ranks

pytestmark = pytest.mark.slow


def a_rank(rank, world, port, attempt, late):
    """Started as torchrun does: the agent's store is the same one in every attempt."""
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # Python's own would wait for torch
        signal.alarm(15)  # a rank that looks for the dead would look for an hour
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank),
                   "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
                   "TORCHELASTIC_USE_AGENT_STORE": "True",
                   "TORCHELASTIC_RESTART_COUNT": str(attempt)}
    if rank == late:
        time.sleep(1)  # the other one has looked for it by then
    ranks = init_ranks("cpu")
    assert sum_over_ranks(torch.tensor(float(rank + 1)), ranks).item() == 3
    dist.barrier()
    os._exit(0)


@pytest.mark.parametrize("late", [0, 1])
def test_a_second_attempt_finds_its_own(late):
    port = free_port()
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    for attempt in range(3):
        together(a_rank, 2, port, attempt, late)
    del store


def test_without_torchrun_there_is_one_attempt():
    """Ranks started by hand, or by Slurm: the first rank holds the store."""
    together(by_hand, 2, free_port())


def by_hand(rank, world, port):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank),
                   "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    ranks = init_ranks("cpu")
    assert (ranks.ddp_rank, ranks.ddp_world_size) == (rank, 2)
    assert sum_over_ranks(torch.tensor(float(rank + 1)), ranks).item() == 3
    dist.barrier()
    dist.destroy_process_group()
