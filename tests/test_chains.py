"""Any shape to any shape: a run begun by some ranks in one way of sharding is killed, and others
resume it in another way, again and again. No token is lost or doubled, and losses stay the same.

The short form takes part in every test run. `pytest --runslow tests/test_chains.py` runs a hundred
chains of random shapes and kills, and fifty whose shape stays, which come out to the bit. With
`CHAINS=12 SEED=word` each test runs so many of them, with other dice than those of the long form.
"""

import json
import os
import random
import shutil
import signal
import time

import pytest
import torch
from helpers import TINY, start, write_shards
from test_kills import half_saved, launch, values

import nanogpt.trial
from nanogpt.disk import digest
from nanogpt.report import read_log

STEPS, BATCH = 12, 768  # tokens a step: 12 micro-batches, for one to four ranks
RUN = [*TINY, "--B", 2, "--total-batch-size", BATCH, "--max-steps", STEPS, "--eval-every", 4,
       "--val-tokens", 700, "--hellaswag", "heldout", "--hellaswag-limit", 12, "--sample-tokens", 0,
       "--checkpoint-every", 2, "--keep", 3, "--shuffle", "--products", "plain"]
SHAPES = [(1, "none"), *((ranks, shard) for ranks in (2, 3, 4)
                         for shard in ("none", "optimizer", "model"))]


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    """Muon's products in float32, whatever a trial would find: bfloat16 rounds too much for 1e-5.
    The ranks are forked from this process."""
    monkeypatch.setattr(nanogpt.trial, "quicker_dtype", lambda device: torch.float32)


class Chain:
    """One run: started, killed, and started again in other shapes, until it has ended."""

    def __init__(self, folder, flags, expected, rng):
        self.folder, self.run, self.rng = folder, folder / "run", rng
        self.flags = [*flags, "--out-dir", self.run, "--resume"]
        self.expected = expected  # the log of a run that nobody stopped
        self.newest, self.kills, self.shapes = 0, 0, []
        self.most = rng.randrange(1, 8) if rng.slow else 3  # kills

    def start(self, ranks, shard):
        """One start in this shape. Returns whether the run has ended."""
        self.shapes.append((ranks, shard))
        processes = launch([*self.flags, "--shard", shard], ranks, self.folder)
        until = self.choose_moment()
        while all(process.is_alive() for process in processes):
            if until():
                self.kill(processes)
                self.look()
                return False
            time.sleep(0.0005)
        for rank, process in enumerate(processes):
            process.join(60)
            assert process.exitcode == 0, (self.folder / f"{rank}.err").read_text()
        self.look()
        return self.newest == STEPS

    def choose_moment(self):
        """When to kill: at any time, after a certain step, while a checkpoint is written, never."""
        kind = self.rng.choice(["time", "step", "step", "saving", "saving"])
        kind = "never" if self.kills == self.most else kind
        log, step = self.run / "log.txt", self.newest + self.rng.randrange(0, 5)
        at = time.monotonic() + self.rng.uniform(0, 4)
        late = time.monotonic() + self.rng.uniform(0, 0.02)

        def reached():
            return log.exists() and f"\n{step} train" in log.read_text()

        def saving():
            return time.monotonic() > late and self.run.exists() and half_saved(self.run)

        return {"time": lambda: time.monotonic() > at, "step": reached, "saving": saving,
                "never": lambda: False}[kind]

    def kill(self, processes):
        """All ranks, or one of them, whose death the others find out about."""
        victims = processes if self.rng.random() < 0.5 else [self.rng.choice(processes)]
        for process in victims:
            os.kill(process.pid, signal.SIGKILL)
        for process in processes:
            process.join(1)
            if process.is_alive():  # it may wait for the dead one, and for an hour
                process.terminate()  # as torchrun does
                process.join(30)
            assert not process.is_alive(), "a rank waits for ever for one that is dead"
        self.kills += 1

    def look(self):
        """What lies there now: whole checkpoints, none older than before, at the right tokens."""
        for path in self.run.glob("checkpoint_*"):
            listed = json.loads((path / "manifest.json").read_text())
            found = {p.name: digest(p) for p in path.iterdir() if p.name != "manifest.json"}
            assert found == listed, path
            facts = json.loads((path / "state.json").read_text())
            assert facts["position"] == facts["step"] * BATCH, f"tokens lost or doubled: {path}"
        steps = [int(path.name[-6:]) for path in self.run.glob("checkpoint_*")]
        assert max(steps, default=0) >= self.newest, "a checkpoint is gone"
        self.newest = max(steps, default=0)

    def difference(self):
        """The largest one between this log's values and those expected, relative to them (Muon's
        products enlarge the last bits' differences); the steps must be equal."""
        log, worst = read_log(self.run / "log.txt"), 0.0
        for kind in "train", "val", "hella":
            assert log[kind][0] == self.expected[kind][0], (kind, self.shapes)
            for a, b in zip(log[kind][1], self.expected[kind][1], strict=True):
                worst = max(worst, abs(a - b) / max(1.0, abs(b)))
        return worst


def unbroken(folder, flags, ranks=1, shard="none"):
    """A run that nobody stops."""
    done = start("train_gpt2.py", *flags, "--shard", shard, "--out-dir", folder / "unbroken",
                 ranks=ranks if ranks > 1 else None)
    assert done.returncode == 0, done.stderr
    assert len(values(folder / "unbroken" / "log.txt")) == STEPS + 2 * (STEPS // 4 + 1)
    return folder / "unbroken"


def flags_of(folder, optimizer):
    data = folder / "shards"
    if not data.exists():  # an epoch has 7 steps
        write_shards(data, n_train=6000, n_val=900, shards=3)
    return [*RUN, "--data", data, "--optimizer", optimizer]


def dice(seed, request):
    """rng.slow says whether many chains are asked for."""
    rng = random.Random(os.environ.get("SEED", "") + seed)
    rng.slow = request.config.getoption("--runslow", default=False) or "CHAINS" in os.environ
    return rng


def number(of_all, rng):
    return int(os.environ.get("CHAINS", of_all)) if rng.slow else 1


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_any_shape_to_any_shape(optimizer, tmp_path, request, capsys):
    flags, rng = flags_of(tmp_path, optimizer), dice(optimizer, request)
    expected = read_log(unbroken(tmp_path, flags) / "log.txt")
    kills, starts, worst, changes, n = 0, 0, 0.0, set(), number(50, rng)
    for _ in range(n):
        chain = Chain(tmp_path, flags, expected, rng)
        shapes = [] if rng.slow else [(3, "none"), (2, "model"), (4, "optimizer"), (1, "none")]
        shapes = iter(shapes)
        while not chain.start(*next(shapes, rng.choice(SHAPES))):
            pass
        worst = max(worst, chain.difference())
        assert worst < 1e-5, (worst, chain.shapes)
        shutil.rmtree(chain.run)
        kills, starts = kills + chain.kills, starts + len(chain.shapes)
        changes |= set(zip(chain.shapes, chain.shapes[1:], strict=False))
    with capsys.disabled():
        print(f"\n{optimizer}: {n} chains, {starts} starts, {kills} kills, {len(changes)} kinds of "
              f"change, losses differ by {worst:.1e} of their size at most", end=" ")


@pytest.mark.parametrize("ranks, shard", [(2, "model"), (3, "none"), (3, "optimizer"), (3, "model"),
                                          (4, "model")])
def test_one_shape_comes_out_to_the_bit(ranks, shard, tmp_path, request, capsys):
    flags, rng = flags_of(tmp_path, "muon"), dice(f"{ranks} {shard}", request)
    if not rng.slow and (ranks, shard) != (2, "model"):
        pytest.skip("takes long: --runslow")
    other, kills, n = unbroken(tmp_path, flags, ranks, shard), 0, number(10, rng)
    for _ in range(n):
        chain = Chain(tmp_path, flags, read_log(other / "log.txt"), rng)
        while not chain.start(ranks, shard):
            pass
        assert chain.difference() == 0.0
        for name in "model.safetensors", "state.safetensors":
            a, b = (run / f"checkpoint_{STEPS:06d}" / name for run in (chain.run, other))
            assert a.read_bytes() == b.read_bytes(), name
        shutil.rmtree(chain.run)
        kills += chain.kills
    with capsys.disabled():
        print(f"\n{ranks} ranks, {shard}: {n} chains, {kills} kills, 0 differences", end=" ")
