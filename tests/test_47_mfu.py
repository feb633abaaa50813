"""FLOPs are counted from the matrix products; MFU is their share of the data sheet's peak."""

import re
import time

import torch
from helpers import TINY, main_here, small_gpt, training, write_shards
from torch.utils.flop_counter import FlopCounterMode

import train_gpt2
from nanogpt.ranks import Ranks
from nanogpt.report import Progress, flops_per_token, peak_flops


def test_mfu_from_a_table_of_cards(monkeypatch):
    """A name within another (A10 in A100, L4 in L40S) is not that card; no name, no peak."""
    cuda, bf16 = torch.device("cuda"), torch.bfloat16
    for name, peak in [
                       ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA H100 80GB HBM3", 989e12),
                       ("NVIDIA H100 PCIe", 756e12), ("NVIDIA L40S", 362e12), ("NVIDIA L4", 121e12),
                       ("NVIDIA A10G", 70e12), ("NVIDIA A10", 125e12), ("NVIDIA L40", 181e12),
                       ("Tesla T4", 65e12), ("NVIDIA T400", None),
                       ("NVIDIA GeForce RTX 4090", 165.2e12),
                       ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("A card of 2031", None)]:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_flops(cuda, bf16) == peak, name
    assert peak_flops(torch.device("cpu"), bf16) is None
    assert peak_flops(cuda, torch.float32) is None


def test_flops_are_counted_by_the_products():
    """The formula against torch's own count of forward and backward on a small network.

    Attention is taken out of the count: the formula charges the whole (T, T) square, and the
    fused kernel on the CPU is not counted at all.
    """
    model = small_gpt(block_size=32, vocab_size=256, n_embd=64)
    idx = torch.zeros(1, 32, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(idx, idx)[1].backward()
    counts = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    products = sum(n for op, n in counts.items() if "attention" not in op)
    c = model.config
    formula = flops_per_token(model, 32) - 12 * c.n_layer * c.n_embd * 32
    # the formula counts biases and norms as weights; torch's counter leaves them out
    matrices = sum(p.numel() for name, p in model.named_parameters()
                   if p.dim() == 2 and "wpe" not in name)
    vectors = sum(p.numel() for p in model.parameters() if p.dim() == 1)
    assert products == 6 * 32 * matrices and formula == 6 * (matrices + vectors)


def test_attention_is_its_two_squares():
    """q k^T and the weights times v, once forward and twice backward: 2 x 2 x 3 T C per token and
    layer, compared with torch's count of the same products on matrices of these shapes."""
    T, model = 32, small_gpt(block_size=64, n_layer=2, n_head=2, n_embd=32)
    q, k, v = (torch.randn(2, T, 16, requires_grad=True) for _ in range(3))
    with FlopCounterMode(display=False) as counter:
        ((q @ k.transpose(1, 2)) @ v).sum().backward()
    squares = counter.get_total_flops() * model.config.n_layer / T
    weights = model.num_params() - 64 * 32
    assert flops_per_token(model, T) - 6 * weights == squares


def test_step_line(monkeypatch, capsys):
    """100 s for 10 steps, 80 to go: 800 s. Each of two ranks computes half of the tokens."""
    model, clock = small_gpt(block_size=32), [1000.0]
    a_second = flops_per_token(model, 32) * 2**18 / 0.25
    monkeypatch.setattr("nanogpt.report.peak_flops", lambda device, dtype: a_second / 0.42)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    config = train_gpt2.parse_args([*TINY, "--total-batch-size", str(2**19)])
    ranks = Ranks(torch.device("cpu"), False, 0, 0, 2)
    progress = Progress(config, training(model, ranks=ranks, max_steps=100))
    progress.print_step(9, 3.2, 6e-4, 1.5, 9.0)
    assert capsys.readouterr().out.endswith("| ETA unknown\n")
    clock[0] += 100
    progress.print_step(19, 3.14159, 6e-4, 1.5, 0.25)
    line = capsys.readouterr().out
    assert line == ("step    19 | loss 3.1416 | lr 6.00e-04 | norm 1.50 | dt 250 ms | "
                    "2,097,152 tok/sec | MFU 42.0% | ETA 0:13:20\n")


def test_a_run_prints_its_share_of_the_peak(tmp_path, monkeypatch, capsys):
    """On a card of 10 MFLOPS, by a clock on which every step takes 25 s."""
    clock, train_step = [0.0], train_gpt2.train_step

    def slow_step(*args):
        clock[0] += 25
        return train_step(*args)

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(train_gpt2, "train_step", slow_step)
    monkeypatch.setattr("nanogpt.report.peak_flops", lambda device, dtype: 1e7)
    monkeypatch.setattr(train_gpt2, "save_curves", lambda *args: None)
    main_here(monkeypatch, *TINY, "--data", write_shards(tmp_path / "shards"), "--out-dir",
              tmp_path / "run", "--max-steps", 2, "--val-tokens", 512, "--sample-tokens", 0)
    weights = 257 * 32 + 2 * (12 * 32 * 32 + 13 * 32) + 2 * 32
    share = 512 * (6 * weights + 12 * 2 * 32 * 32) / 25 / 1e7
    assert re.findall(r"\| MFU (\S+) \|", capsys.readouterr().out) == 2 * [f"{share:.1%}"]


def test_where_the_peak_is_unknown_mfu_is(tmp_path, monkeypatch, capsys):
    main_here(monkeypatch, *TINY, "--data", write_shards(tmp_path / "shards"), "--out-dir",
              tmp_path / "run", "--max-steps", 2, "--val-tokens", 512, "--sample-tokens", 0)
    said = capsys.readouterr().out
    assert "| dt " in said and " tok/sec | MFU unknown | ETA 0:00:0" in said
