"""TF32 is asked for, and nothing needs a GPU."""

import sys
import time

import pytest
import torch
from helpers import TINY, start, write_shards

import train_gpt2


def test_precision_is_set_and_the_loop_is_timed(tmp_path):
    """In a process of its own: the setting is global."""
    folder = write_shards(tmp_path / "shards")
    code = ("import sys, torch, train_gpt2; train_gpt2.main();"
            "print('PRECISION', torch.get_float32_matmul_precision())")
    script = tmp_path / "program.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(train_gpt2.__file__)[:-14]!r})\n{code}")
    done = start(script, *TINY, "--data", folder, "--out-dir", tmp_path / "run", "--max-steps", 2)
    assert done.returncode == 0, done.stderr
    assert "PRECISION high" in done.stdout
    assert "| dt " in done.stdout and " tok/sec | MFU unknown | ETA 0:00:0" in done.stdout


def test_mfu_from_a_table_of_cards(monkeypatch):
    cuda, bf16 = torch.device("cuda"), torch.bfloat16
    for name, peak in [
                       ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA H100 80GB HBM3", 989e12),
                       ("NVIDIA H100 PCIe", 756e12), ("NVIDIA L40S", 362e12), ("NVIDIA L4", 121e12),
                       ("NVIDIA A10G", 70e12), ("NVIDIA A10", 125e12), ("NVIDIA L40", 181e12),
                       ("Tesla T4", 65e12), ("NVIDIA T400", None),
                       ("NVIDIA GeForce RTX 4090", 165.2e12),
                       ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("A card of 2031", None)]:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert train_gpt2.peak_flops(cuda, bf16) == peak, name
    assert train_gpt2.peak_flops(torch.device("cpu"), bf16) is None
    assert train_gpt2.peak_flops(cuda, torch.float32) is None


def test_flops_are_counted_by_the_products():
    """The formula against torch's own count of forward and backward on a small network.

    Attention is taken out of the count: the formula charges the whole (T, T) square, and the
    fused kernel on the CPU is not counted at all.
    """
    from helpers import small_gpt
    from torch.utils.flop_counter import FlopCounterMode

    model = small_gpt(block_size=32, vocab_size=256, n_embd=64)
    idx = torch.zeros(1, 32, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(idx, idx)[1].backward()
    counts = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    products = sum(n for op, n in counts.items() if "attention" not in op)
    c = model.config
    formula = train_gpt2.flops_per_token(model, 32) - 12 * c.n_layer * c.n_embd * 32
    # biases, norms and GELU are in the formula's weights or in nobody's count: under 2%
    assert products / 32 == pytest.approx(formula, rel=0.02)


def test_dt_is_training_alone(tmp_path, monkeypatch, capsys):
    """By a clock that stands still but for 1 s a training step and 1,000 s an evaluation."""
    clock = [0.0]

    def advancing(function, seconds):
        def call(*args, **kwargs):
            clock[0] += seconds
            return function(*args, **kwargs)
        return call

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(train_gpt2, "train_step", advancing(train_gpt2.train_step, 1.0))
    monkeypatch.setattr(train_gpt2, "validate", advancing(train_gpt2.validate, 1000.0))
    monkeypatch.setattr(train_gpt2, "save_checkpoint", advancing(lambda *args: None, 500.0))
    monkeypatch.setattr(sys, "argv", [
        "train_gpt2.py", *TINY, "--data", str(write_shards(tmp_path / "shards")), "--out-dir",
        str(tmp_path / "run"), "--max-steps", "4", "--eval-every", "2", "--checkpoint-every", "1"])
    train_gpt2.main()
    said = capsys.readouterr().out
    assert said.count("| dt 1000 ms | 512 tok/sec |") == 4
    assert said.count("evaluated in 1000.0 s") == 3


def test_step_line(capsys):
    began = time.perf_counter() - 100  # 100 s for 10 steps, 90 to go: 900 s
    train_gpt2.print_step(9, 100, 3.14159, 6e-4, 1.5, 0.25, 2**19, "42.0%", began)
    line = capsys.readouterr().out
    assert line == ("step     9 | loss 3.1416 | lr 6.00e-04 | norm 1.50 | dt 250 ms | "
                    "2,097,152 tok/sec | MFU 42.0% | ETA 0:15:00\n")
