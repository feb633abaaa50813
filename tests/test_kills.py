"""kill -9 at any moment, on one and on two ranks: what goes on is the run that was never killed.

The short form takes part in every test run; `pytest --runslow tests/test_kills.py` kills a hundred
times on one rank and a hundred times on two.
"""

import json
import os
import random
import shutil
import signal
import time

import pytest
from helpers import ROOT, TINY, _child, context, free_port, start, write_shards

from nanogpt.disk import digest

# An epoch has 11 steps; shards, the epoch, evaluations, samples and checkpoints end at other steps.
RUN = [*TINY, "--B", 4, "--max-steps", 26, "--eval-every", 5, "--val-tokens", 600, "--hellaswag",
       "heldout", "--hellaswag-limit", 12, "--checkpoint-every", 3, "--keep", 3, "--shuffle"]


def launch(flags, ranks, folder):
    """Processes of one run, as torchrun would start them; what they say goes to files."""
    port = str(free_port())
    processes = []
    for rank in range(ranks):
        environment = {"OMP_NUM_THREADS": "1"}
        if ranks > 1:
            environment |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=str(rank),
                                LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
        processes.append(context().Process(target=_child, args=(
            ROOT / "train_gpt2.py", list(map(str, flags)), environment, os.getcwd(),
            f"{folder}/{rank}.out", f"{folder}/{rank}.err")))
        processes[-1].start()
    return processes


def values(log):
    """The lines of a log that are values, as they were written (repr)."""
    return [line for line in log.read_text().splitlines() if not line.startswith("#")]


def half_saved(run):
    return [path for path in run.glob(".checkpoint_*") if path.name.endswith(".tmp")]


class Harness:
    """Starts the same command again and again, kills it, and compares."""

    def __init__(self, tmp_path, ranks, seed):
        self.folder, self.ranks, self.rng = tmp_path, ranks, random.Random(seed)
        self.data = write_shards(tmp_path / "shards", n_train=6000, n_val=900, shards=3)
        self.flags = [*RUN, "--data", self.data, "--out-dir"]
        self.count = {"kills": 0, "while saving": 0, "runs ended": 0, "of one rank alone": 0}
        began = time.monotonic()
        done = start("train_gpt2.py", *self.flags, tmp_path / "unbroken",
                     ranks=ranks if ranks > 1 else None)
        assert done.returncode == 0, done.stderr
        self.seconds = time.monotonic() - began
        self.expected = values(tmp_path / "unbroken" / "log.txt")
        assert len(self.expected) == 26 + 2 * 7
        self.run = tmp_path / "run"

    def until_killed_or_ended(self):
        """One start with --resume. Kills at a random moment, or while a checkpoint is written."""
        processes = launch([*self.flags, self.run, "--resume"], self.ranks, self.folder)
        at = time.monotonic() + self.rng.uniform(0.0, 0.8 * self.seconds)
        while_saving = self.rng.random() < 0.5
        wait = self.rng.uniform(0, 0.03)
        while all(process.is_alive() for process in processes):
            if time.monotonic() > at or while_saving and half_saved(self.run):
                time.sleep(wait * while_saving)
                return self.kill(processes)
            time.sleep(0.0005)
        for process in processes:
            process.join(60)
            assert process.exitcode == 0, (self.folder / "0.err").read_text()
        self.compare()

    def kill(self, processes):
        victims = list(processes)
        if len(victims) > 1 and self.rng.random() < 0.5:
            victims = [self.rng.choice(victims)]
            self.count["of one rank alone"] += 1
        for process in victims:
            os.kill(process.pid, signal.SIGKILL)
        for process in processes:
            process.join(1)
            if process.is_alive():  # it may wait for the dead one to appear, and for an hour
                process.terminate()  # as torchrun does
                process.join(30)
            assert not process.is_alive(), "a rank waits for ever for one that is dead"
        self.count["kills"] += 1
        self.count["while saving"] += bool(half_saved(self.run))
        self.look()

    def look(self):
        """What lies there after a kill: whole checkpoints, and a log that tells nothing else."""
        for folder in self.run.glob("checkpoint_*"):
            listed = json.loads((folder / "manifest.json").read_text())
            found = {p.name: digest(p) for p in folder.iterdir() if p.name != "manifest.json"}
            assert found == listed, folder
        if (self.run / "log.txt").exists():
            text = (self.run / "log.txt").read_text()
            whole = text[: text.rfind("\n") + 1].splitlines()
            unknown = {line for line in whole if line[0] != "#"} - set(self.expected)
            assert not unknown, f"the log tells what never was: {unknown}"

    def compare(self):
        """The run has ended: its log to the last digit, its weights and averages to the bit."""
        log = values(self.run / "log.txt")
        header = log.index(self.expected[0]) if log.count(self.expected[0]) == 1 else (
            len(log) - 1 - log[::-1].index(self.expected[0]))  # begun anew before a checkpoint
        assert log[header:] == self.expected
        assert not half_saved(self.run)
        for name in "model.safetensors", "state.safetensors":
            a, b = (folder / "checkpoint_000026" / name
                    for folder in (self.run, self.folder / "unbroken"))
            assert a.read_bytes() == b.read_bytes(), name
        a, b = (json.loads((folder / "checkpoint_000026" / "state.json").read_text())
                for folder in (self.run, self.folder / "unbroken"))
        for name in "step", "position", "scaler", "shards", "spikes", "evaluated":
            assert a[name] == b[name], name
        shutil.rmtree(self.run)
        self.count["runs ended"] += 1


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_again_and_again(ranks, tmp_path, request, capsys):
    kills = 100 if request.config.getoption("--runslow", default=False) else 5
    harness = Harness(tmp_path, ranks, seed=ranks)
    while harness.count["kills"] < kills:
        harness.until_killed_or_ended()
    while not harness.count["runs ended"] or harness.run.exists():
        harness.rng.uniform = lambda low, high: high * 100  # to its end, then
        harness.rng.random = lambda: 1.0
        harness.until_killed_or_ended()
    with capsys.disabled():
        print(f"\n{ranks} ranks: {harness.count}, 0 differences", end=" ")
