"""torchrun itself: told to stop, with ranks killed, and as two machines that find each other."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
from helpers import ROOT, TINY, free_port, start, write_shards

from nanogpt.report import read_log

RUN = [*TINY, "--eval-every", 20, "--val-tokens", 512, "--sample-tokens", 0, "--max-steps", 80,
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


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A folder with shards/, and the log of a run of two ranks that nobody stopped."""
    folder = tmp_path_factory.mktemp("unbroken")
    flags = [*RUN, "--data", write_shards(folder / "shards"), "--out-dir", folder / "run"]
    assert start("train_gpt2.py", *flags, ranks=2).returncode == 0
    return folder


@pytest.fixture
def folder(unbroken, tmp_path):
    """The same shards. The test must end with the same log."""
    shutil.copytree(unbroken / "shards", tmp_path / "shards")
    yield tmp_path
    log, expected = (read_log(path / "run" / "log.txt") for path in (tmp_path, unbroken))
    for kind in "train", "val":
        assert log[kind] == expected[kind], "the log is incomplete, or another run's"


def test_told_to_stop_it_saves_and_the_same_command_goes_on(folder):
    """SIGTERM to torchrun, as when a machine is taken away: its processes save within one step and
    end well. Its own status is 1 whatever they do."""
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
    assert process.wait(120) == 0, (folder / "said.txt").read_text()
    assert f"resumed    | at step {step} of" in (folder / "said.txt").read_text()


def test_a_killed_rank_comes_back_with_nobody_watching(folder):
    """--max-restarts: all ranks end, start again, and resume from the last checkpoint."""
    process = torchrun(folder, "--standalone", "--nproc_per_node=2", "--max-restarts=3")
    for rank, step in ("1", 23), ("0", 43):
        wait_for_step(step, folder, process)
        ranks = {worker.environ()["RANK"]: worker for worker in psutil.Process(
            process.pid).children(recursive=True) if "RANK" in worker.environ()}
        ranks[rank].kill()
    assert process.wait(120) == 0, (folder / "said.txt").read_text()
    # from the newest that was whole: the last one may have been on its way to the disk, and a busy
    # machine may be some steps on before it kills
    resumed = re.findall(r"resumed    \| at step (\d+) of", (folder / "said.txt").read_text())
    assert len(resumed) == 2 and 10 <= int(resumed[0]) <= int(resumed[1])


def test_two_machines(folder):
    """Two agents with one process each meet by rendezvous; both processes are local rank 0."""
    port = free_port()
    processes = [torchrun(folder, "--nnodes=2", "--nproc_per_node=1", f"--node_rank={node}",
                          "--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}",
                          "--rdzv_id=1") for node in range(2)]
    for process in processes:
        assert process.wait(120) == 0, (folder / "said.txt").read_text()
    assert "x 2 ranks x" in (folder / "said.txt").read_text()
