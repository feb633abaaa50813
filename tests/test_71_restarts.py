"""Ranks that torchrun restarts find each other, not the addresses of dead ranks."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist
from helpers import ROOT, TINY, free_port, together, write_shards

from nanogpt.checkpoints import check_newest
from nanogpt.common import UserError
from nanogpt.ranks import init_ranks, sum_over_ranks
from nanogpt.report import read_log

pytestmark = pytest.mark.slow


def a_rank(rank, world, port, attempts, late):
    """Started as torchrun does: the agent's store is the same one in every attempt. attempts: as
    each rank's machine counts them."""
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # Python's own would wait for torch
        signal.alarm(15)  # a rank that looks for the dead would look for an hour
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank),
                   "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
                   "TORCHELASTIC_USE_AGENT_STORE": "True",
                   "TORCHELASTIC_RESTART_COUNT": str(attempts[rank])}
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
        together(a_rank, 2, port, [attempt, attempt], late)
    del store


def test_machines_count_attempts_differently():
    """torchrun counts on where a rank died; its other machines restart theirs without counting."""
    port = free_port()
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    for attempts in [0, 0], [0, 1], [1, 1], [1, 1]:
        together(a_rank, 2, port, attempts, None)
    del store


def test_without_torchrun_there_is_one_attempt():
    """Ranks started by hand, or by Slurm: the first rank holds the store."""
    together(by_hand, 2, free_port())


def join(rank, world, port):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank),
                   "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    return init_ranks("cpu")


def by_hand(rank, world, port):
    ranks = join(rank, world, port)
    assert (ranks.ddp_rank, ranks.ddp_world_size) == (rank, 2)
    assert sum_over_ranks(torch.tensor(float(rank + 1)), ranks).item() == 3
    dist.barrier()
    dist.destroy_process_group()


def own_disks(rank, world, port, folders, refused):
    ranks = join(rank, world, port)
    if refused:
        with pytest.raises(UserError, match="rank 2's machine has step 20 in .* and rank 0's"):
            check_newest(folders[rank], ranks)
    else:
        check_newest(folders[rank], ranks)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("steps, refused", [
    ([10, 10, 20], True), ([None, 10, 20], True), ([20, 10, 20], False), ([20, None, None], False),
    ([None] * 3, False)])
def test_rank_0_has_moved_to_another_disk(steps, refused, tmp_path):
    """It would go on from an earlier checkpoint, or begin anew, and say nothing."""
    folders = [tmp_path / str(rank) for rank in range(3)]
    for folder, step in zip(folders, steps, strict=True):
        if step:
            (folder / f"checkpoint_{step:06d}").mkdir(parents=True)
    together(own_disks, 3, free_port(), folders, refused)


def two_machines(tmp_path, script, flags, restarts):
    """Two torchruns on two of the loopback's addresses: their exit codes and all that they said."""
    port, processes = free_port(), []
    for number in range(2):
        file = open(tmp_path / f"said{number}", "w")
        processes.append(subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1",
             f"--max-restarts={restarts}", "--rdzv_backend=c10d", "--rdzv_id=1",
             f"--rdzv_endpoint=127.0.0.1:{port}", f"--rdzv_conf=is_host={1 - number}",
             f"--local_addr=127.0.0.{1 + number}", script, *map(str, flags)],
            stdout=file, stderr=file, cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}))
    codes = [process.wait(timeout=120) for process in processes]
    return codes, [(tmp_path / f"said{number}").read_text() for number in range(2)]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.2 is no address of this one")
def test_a_rank_of_the_second_machine_is_killed(tmp_path):
    """Only that machine's torchrun counts the restart. Both ranks come back and end the run."""
    script = tmp_path / "dies.py"
    script.write_text("""import os, signal, train_gpt2 as t
from nanogpt import common
lr, first = t.get_lr, os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
def rate(step, *args):
    if step == 7 and os.environ["RANK"] == "1" and first:
        os.kill(os.getpid(), signal.SIGKILL)
    return lr(step, *args)
t.get_lr = rate
if __name__ == "__main__":
    common.run(t.main)
""")
    flags = [*TINY, "--B", 4, "--total-batch-size", 256, "--max-steps", 12, "--val-tokens", 512,
             "--sample-tokens", 0, "--checkpoint-every", 3, "--resume",
             "--data", write_shards(tmp_path / "shards"), "--out-dir", tmp_path / "run"]
    codes, said = two_machines(tmp_path, script, flags, restarts=1)
    assert codes == [0, 0], said
    assert re.search(r"resumed    \| at step [36] of", said[0] + said[1]), said
    assert read_log(tmp_path / "run" / "log.txt")["train"][0] == list(range(12))
