"""A dtype without instructions on this CPU still runs, and the table says what it costs."""

import os
import platform
import subprocess
import sys

import pytest
import torch
from helpers import ROOT, TINY, lively_gpt, stream_of, text_tokens, training

import train_gpt2
from nanogpt import trial
from nanogpt.ranks import Ranks
from nanogpt.report import describe

CPU = torch.device("cpu")


def precision(dtype, device=CPU):
    config, stream = train_gpt2.parse_args(TINY), stream_of(text_tokens(5000))
    loader, ranks = train_gpt2.DataLoader(stream, 8, 32), Ranks(device, dtype=dtype)
    t = training(lively_gpt(), loader, ranks=ranks, max_steps=10)
    return dict(describe(config, t, train_gpt2.Exam(stream, None, [])))["precision"]


@pytest.mark.parametrize("seconds, said", [
    (2.5, ", 25.0 times as long as in float32 on this machine"), (0.1, ""), (0.05, "")])
def test_the_table_says_so(seconds, said, monkeypatch):
    monkeypatch.setattr(trial, "least_seconds", lambda actions: {
        dtype: 0.1 if dtype == torch.float32 else seconds for dtype in actions})
    assert precision(torch.bfloat16) == f"bfloat16 products, not compiled{said}"
    assert precision(torch.float32) == "float32 products, not compiled"


def test_a_gpu_is_not_asked(monkeypatch):
    """For a GPU, --dtype auto chooses."""
    monkeypatch.setattr(trial, "least_seconds", lambda actions: pytest.fail("it was asked"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A card")
    assert precision(torch.bfloat16, torch.device("cuda", 0)) == "bfloat16 products, not compiled"


def test_it_is_measured():
    """float64 takes twice as long as float32, and float32 as long as itself; a busy machine may
    blur that, but not by this much."""
    assert 0.3 < trial.times_slower(torch.float32, CPU) < 3
    assert trial.times_slower(torch.float64, CPU) > 1


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="of x86 CPUs")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_run_without_the_instructions(dtype, tmp_path):
    """The two variables hide them on any x86 CPU: the run trains, and states the price."""
    command = [sys.executable, "train_gpt2.py", "laptop", "--max-steps", "1", "--B", "1", "--T",
               "16", "--total-batch-size", "16", "--val-tokens", "16", "--hellaswag", "none",
               "--sample-tokens", "0", "--n-layer", "1", "--n-embd", "16", "--device", "cpu",
               "--dtype", dtype, "--out-dir", str(tmp_path / "run")]
    env = os.environ | {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"precision  | {dtype} products" in done.stdout
    assert " times as long as in float32 on this machine\n" in done.stdout
    assert "step     1 | val " in done.stdout
