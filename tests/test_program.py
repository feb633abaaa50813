"""The whole program, started as its users start it."""

import os
import subprocess
import sys

import pytest
from helpers import ROOT, TINY, start, write_shards

from train_gpt2 import read_log


def torchrun(*args, ranks):
    """train_gpt2.py under torchrun itself, as on a machine of many GPUs."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone",
         f"--nproc_per_node={ranks}", ROOT / "train_gpt2.py", *map(str, args)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        encoding="utf-8", timeout=300)


def test_the_same_run_for_every_B_and_number_of_ranks(tmp_path):
    """(1 process, B=8), (1, B=2), (2 gloo processes, B=2): the same values in the log."""
    shards = write_shards(tmp_path / "shards")
    logs = {}
    for name, B, ranks in ("one", 8, None), ("small", 2, None), ("two", 2, 2):
        args = [*TINY, "--data", shards, "--B", B, "--max-steps", 40, "--eval-every", 10,
                "--hellaswag", "heldout", "--hellaswag-limit", 60, "--val-tokens", 3000,
                "--shuffle", "--out-dir", tmp_path / name]
        done = torchrun(*args, ranks=ranks) if ranks else start("train_gpt2.py", *args)
        assert done.returncode == 0, done.stderr
        assert f"x {ranks or 1} ranks x {512 // (B * 32 * (ranks or 1))} micro-steps" in done.stdout
        logs[name] = read_log(tmp_path / name / "log.txt")
    for kind, n in ("train", 40), ("val", 5), ("hella", 5):
        steps, values = logs["one"][kind]
        assert len(steps) == n
        for name in "small", "two":
            assert logs[name][kind][0] == steps
            # sums in another order, grown by 40 updates
            assert logs[name][kind][1] == pytest.approx(values, abs=2e-4), (kind, name)
    assert logs["one"]["val"][1][-1] < logs["one"]["val"][1][0] - 1  # and it learns


def test_refused_under_torchrun_too(tmp_path):
    done = torchrun(*TINY, "--data", "nowhere", "--out-dir", tmp_path / "run", ranks=2)
    assert done.returncode != 0
    assert "error: no train shards in nowhere" in done.stderr
    assert not (tmp_path / "run").exists()


def test_seed_and_order_change_the_run(tmp_path):
    shards = write_shards(tmp_path / "shards")
    runs = {"base": [], "again": [], "seed": ["--seed", 2], "shuffled": ["--shuffle"]}
    train = {}
    for name, flags in runs.items():
        done = start("train_gpt2.py", *TINY, "--data", shards, "--max-steps", 3, "--sample-tokens",
                     0, "--out-dir", tmp_path / name, *flags)
        assert done.returncode == 0, done.stderr
        train[name] = read_log(tmp_path / name / "log.txt")["train"][1]
    assert train["base"] == train["again"]
    assert train["base"] != train["seed"] and train["base"] != train["shuffled"]


def test_fp16_with_a_scaled_loss_trains_as_fp32_does(tmp_path):
    """What cards without bfloat16 run, on the CPU's float16."""
    shards = write_shards(tmp_path / "shards")
    last = {}
    for dtype in "float32", "float16", "bfloat16":
        done = start("train_gpt2.py", *TINY, "--data", shards, "--max-steps", 12, "--dtype", dtype,
                     "--sample-tokens", 0, "--out-dir", tmp_path / dtype)
        assert done.returncode == 0, done.stderr
        assert f"precision  | {dtype} products" in done.stdout
        last[dtype] = read_log(tmp_path / dtype / "log.txt")["val"][1]
    for dtype in "float16", "bfloat16":
        assert last[dtype] == pytest.approx(last["float32"], rel=0.02) and last[dtype] != last[
            "float32"]
        assert last[dtype][-1] < last[dtype][0] - 0.3
