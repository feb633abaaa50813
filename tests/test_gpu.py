"""What only a GPU can show. `pytest -m gpu`"""

import pytest
import torch
from helpers import start, write_shards

from nanogpt.report import read_log

pytestmark = [pytest.mark.gpu,
              pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SMALL = ["--vocab-size", 257, "--n-layer", 2, "--n-head", 4, "--n-embd", 128, "--B", 8, "--T", 64,
         "--total-batch-size", 1024, "--max-steps", 20, "--warmup-steps", 4, "--eval-every", 10,
         "--hellaswag", "heldout", "--hellaswag-limit", 40, "--sample-tokens", 8]


def test_cuda_trains_as_the_cpu_does(tmp_path):
    """Compiled, in 16 bits, with everything in the loop: the CPU's fp32 losses within 2%."""
    shards = write_shards(tmp_path / "shards")
    logs = {}
    for name, flags in {"cpu": ["--device", "cpu"], "cuda": ["--device", "cuda"],
                        "fp16": ["--device", "cuda", "--dtype", "float16", "--no-compile"]}.items():
        done = start("train_gpt2.py", *SMALL, *flags, "--data", shards,
                     "--out-dir", tmp_path / name)
        assert done.returncode == 0, done.stderr
        logs[name] = read_log(tmp_path / name / "log.txt")
        if name == "cuda":
            assert ", compiled" in done.stdout
            assert "bytes, 257 ids, computed as 320" in done.stdout
    for kind in "train", "val":
        for name in "cuda", "fp16":
            assert logs[name][kind][1] == pytest.approx(logs["cpu"][kind][1], rel=0.02)


def test_one_rank_under_torchrun_uses_nccl(tmp_path):
    shards = write_shards(tmp_path / "shards")
    done = start("train_gpt2.py", *SMALL, "--data", shards, "--out-dir", tmp_path / "run", ranks=1)
    assert done.returncode == 0, done.stderr
    assert read_log(tmp_path / "run" / "log.txt")["run"]["device"] == "cuda:0"


def test_out_of_memory_is_one_line(tmp_path):
    shards = write_shards(tmp_path / "shards", n_train=20_000_000)
    done = start("train_gpt2.py", *SMALL, "--data", shards, "--out-dir", tmp_path / "run", "--B",
                 2**18, "--total-batch-size", 2**24, "--n-embd", 1024, "--val-tokens", 64,
                 "--hellaswag", "none")
    assert done.returncode == 2 and "error: out of memory" in done.stderr.splitlines()[-1]


def test_tf32_is_used_and_is_near_fp32(monkeypatch):
    torch.manual_seed(0)
    a, b = torch.randn(2, 512, 512, device="cuda")
    before = torch.get_float32_matmul_precision()
    products = {}
    for precision in "highest", "high":
        torch.set_float32_matmul_precision(precision)
        products[precision] = a @ b
    torch.set_float32_matmul_precision(before)
    expected = a.double() @ b.double()
    errors = {name: (product - expected).abs().max().item() for name, product in products.items()}
    assert errors["highest"] < 1e-3 < errors["high"] < 1.0  # 23 and 10 bits of mantissa
