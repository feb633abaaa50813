"""A dtype that the CPU has no instructions for runs, and the table says what it costs."""

import os
import platform
import subprocess
import sys

import pytest
import torch
from helpers import CPU as RANKS
from helpers import ROOT, TINY, lively_gpt, stream_of, text_tokens

import train_gpt2
from nanogpt import trial

CPU = torch.device("cpu")


def precision(dtype, ranks=RANKS):
    config, stream = train_gpt2.parse_args(TINY), stream_of(text_tokens(5000))
    return dict(train_gpt2.describe(config, lively_gpt(), ranks, dtype, False, stream, stream, 0,
                                    10, 1))["precision"]


@pytest.mark.parametrize("seconds, said", [
    (2.5, ", 25.0 times as long as in float32 on this machine"), (0.1, ""), (0.05, "")])
def test_the_table_says_so(seconds, said, monkeypatch):
    monkeypatch.setattr(trial, "least_seconds", lambda actions: {
        dtype: 0.1 if dtype == torch.float32 else seconds for dtype in actions})
    assert precision(torch.bfloat16) == f"bfloat16 products, not compiled{said}"
    assert precision(torch.float32) == "float32 products, not compiled"


def test_a_gpu_is_not_asked(monkeypatch):
    """It has a dtype of its own choice."""
    monkeypatch.setattr(trial, "least_seconds", lambda actions: pytest.fail("it was asked"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A card")
    ranks = train_gpt2.Ranks(torch.device("cuda", 0))
    assert precision(torch.bfloat16, ranks) == "bfloat16 products, not compiled"


def test_it_is_measured():
    """float64 takes twice as long as float32, and float32 as long as itself; a busy machine may
    blur that, but not by this much."""
    assert 0.3 < trial.times_slower(torch.float32, CPU) < 3
    assert trial.times_slower(torch.float64, CPU) > 1


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="of x86 CPUs")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_run_without_the_instructions(dtype, tmp_path):
    """As the variables make of any x86 CPU: it trains, and says the price."""
    command = [sys.executable, "train_gpt2.py", "laptop", "--max-steps", "1", "--B", "1", "--T",
               "16", "--total-batch-size", "16", "--val-tokens", "16", "--hellaswag", "none",
               "--sample-tokens", "0", "--n-layer", "1", "--n-embd", "16", "--device", "cpu",
               "--dtype", dtype, "--out-dir", str(tmp_path / "run"), "--optimizer", "adamw"]
    env = os.environ | {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"precision  | {dtype} products" in done.stdout
    assert " times as long as in float32 on this machine\n" in done.stdout
    assert "step     1 | val " in done.stdout
