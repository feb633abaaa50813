"""The whole program: what changes a run, and what does not."""

import pytest
from helpers import TINY, start, write_shards

from nanogpt.report import read_log


def test_the_same_run_for_every_B_and_number_of_ranks(tmp_path):
    """1 process of B=8, 1 of B=2, 2 gloo processes of B=2: the same values in the log."""
    shards = write_shards(tmp_path / "shards")
    logs = {}
    for name, B, ranks in ("one", 8, None), ("small", 2, None), ("two", 2, 2):
        args = [*TINY, "--data", shards, "--B", B, "--max-steps", 40, "--eval-every", 10,
                "--hellaswag", "heldout", "--hellaswag-limit", 60, "--val-tokens", 3000,
                "--shuffle", "--out-dir", tmp_path / name]
        done = start("train_gpt2.py", *args, ranks=ranks)
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
    """float16 is what cards without bfloat16 use; here it is the CPU's."""
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
