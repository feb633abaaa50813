"""torchrun itself: told to stop, with a rank killed, and as two machines that find each other."""

import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
from helpers import ROOT, TINY, free_port, start, write_shards

from train_gpt2 import read_log

RUN = [*TINY, "--eval-every", 20, "--val-tokens", 512, "--sample-tokens", 0, "--max-steps", 60,
       "--checkpoint-every", 10, "--resume"]


def torchrun(folder, *launch):
    """torchrun in the background, what it says in a file."""
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, launch),
               ROOT / "train_gpt2.py", *map(str, RUN), "--data", folder / "shards", "--out-dir",
               folder / "run"]
    with open(folder / "said.txt", "a") as said:
        return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=said,
                                stderr=said)


def wait_for_step(step, folder, process):
    log = folder / "run" / "log.txt"
    while not (log.exists() and f"\n{step} train" in log.read_text()):
        assert process.poll() is None, (folder / "said.txt").read_text()
        time.sleep(0.005)


@pytest.fixture
def folder(tmp_path):
    """Shards, and the log that every test must end with: of two ranks, never stopped."""
    data = write_shards(tmp_path / "shards")
    flags = [*RUN, "--data", data, "--out-dir", tmp_path / "unbroken"]
    assert start("train_gpt2.py", *flags, ranks=2).returncode == 0
    yield tmp_path
    log, expected = (read_log(tmp_path / name / "log.txt") for name in ("run", "unbroken"))
    for kind in "train", "val":
        assert log[kind] == expected[kind], "the log is not complete, or another one"


def test_told_to_stop_it_saves_and_the_same_command_goes_on(folder):
    """SIGTERM to torchrun, as when a machine is taken away. Its own status is 1, whatever its
    processes do; they save within one step and end well."""
    process = torchrun(folder, "--standalone", "--nproc_per_node=2")
    wait_for_step(23, folder, process)
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    said = (folder / "said.txt").read_text()
    assert "stopped by SIGTERM at step" in said and "Unable to shutdown" not in said
    step = max(int(path.name[-6:]) for path in (folder / "run").glob("checkpoint_*"))
    assert f"{step - 1} train" in (folder / "run" / "log.txt").read_text()
    assert f"\n{step} train" not in (folder / "run" / "log.txt").read_text()
    process = torchrun(folder, "--standalone", "--nproc_per_node=2")
    assert process.wait(60) == 0
    assert f"resumed    | at step {step} of" in (folder / "said.txt").read_text()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_comes_back_with_nobody_watching(rank, folder):
    """--max-restarts: all ranks end, start again and go on from the last checkpoint."""
    process = torchrun(folder, "--standalone", "--nproc_per_node=2", "--max-restarts=3")
    wait_for_step(33, folder, process)
    ranks = {worker.environ()["RANK"]: worker for worker in psutil.Process(process.pid).children(
        recursive=True) if "RANK" in worker.environ()}
    ranks[str(rank)].kill()
    assert process.wait(120) == 0, (folder / "said.txt").read_text()
    # the newest that was whole: that of step 30 may have been on its way to the disk
    assert re.search(r"resumed    \| at step [123]0 of", (folder / "said.txt").read_text())


def test_two_machines(folder):
    """Two agents that meet by rendezvous, a process each; both ranks are local rank 0."""
    port = free_port()
    processes = [torchrun(folder, "--nnodes=2", "--nproc_per_node=1", f"--node_rank={node}",
                          "--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}",
                          "--rdzv_id=1") for node in range(2)]
    for process in processes:
        assert process.wait(120) == 0, (folder / "said.txt").read_text()
    assert "x 2 ranks x" in (folder / "said.txt").read_text()
