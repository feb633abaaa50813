"""The benchmark runs, compares like with like, and leaves the program as it was."""

import json
import subprocess
import sys

import pytest
import torch
from helpers import ROOT, lively_gpt

import train_gpt2
from build_nanogpt.bench import variant, written_out_attention

SMALL = ["--n-layer", "1", "--n-head", "2", "--n-embd", "32", "--vocab-size", "257", "--B", "2",
         "--T", "32", "--repeats", "3", "--device", "cpu"]


def bench(*args, cwd):
    return subprocess.run([sys.executable, "-m", "build_nanogpt", *args], cwd=cwd,
                          env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True)


def test_tables_and_record(tmp_path):
    done = bench("bench", *SMALL, "--json", tmp_path / "bench.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == [
        "written-out attention", "flash attention", "a loop over the parameters", "foreach",
        "fused"]
    for row in rows:
        assert row["ms"] > 0 and f"{row['variant']:34s} {row['ms']:10.1f} ms" in done.stdout
    assert rows[0]["ratio"] == rows[2]["ratio"] == 1
    assert rows[1]["ratio"] == pytest.approx(rows[0]["ms"] / rows[1]["ms"])


def choices_now():
    return {"flash": train_gpt2.CausalSelfAttention.forward is not written_out_attention,
            "padded": train_gpt2.GPT.vocab_multiple == 64,
            "tf32": torch.get_float32_matmul_precision() == "high"}


def test_variants_compute_the_same_and_are_taken_back():
    model = lively_gpt().double()
    idx = torch.randint(257, (2, 16))
    before, (_, expected) = choices_now(), model(idx, idx)
    for choice in "flash", "padded", "tf32":
        with variant(**{choice: False}):
            assert choices_now() == {"flash": True, "padded": True, "tf32": True, choice: False}
            torch.testing.assert_close(model(idx, idx)[1], expected, atol=1e-12, rtol=0)
        assert choices_now() == before


@pytest.mark.parametrize("args, words", [
    ([], "no command ''; commands: bench"), (["dance"], "no command 'dance'"),
    (["bench", "--B", "0"], "--B 0: give 1 or more"),
    (["bench", "--device", "tpu"], "--device tpu")])
def test_bad_input_is_one_line(args, words, tmp_path):
    done = bench(*args, cwd=tmp_path)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1


def test_help(tmp_path):
    assert "bench" in bench("--help", cwd=tmp_path).stdout
    assert "--repeats" in bench("bench", "--help", cwd=tmp_path).stdout


def test_what_saving_costs(tmp_path):
    """The stall is a part of the whole; in the background it is the copy alone."""
    done = bench("bench", *SMALL, "--saving", "--steps", "20", "--folder", tmp_path, "--json",
                 tmp_path / "bench.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    none, at_once, background = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert none["stall_ms"] == 0 == none["extra_ms"]
    assert at_once["stall_ms"] > 0 and background["stall_ms"] > 0
    for row in at_once, background:
        assert row["stall_ms"] < row["ms"]
        assert row["extra_ms"] == pytest.approx(row["ms"] - none["ms"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json"]
