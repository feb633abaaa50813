"""Steps are timed, TF32 is asked for on a GPU alone, and nothing needs one."""

import re
import time

import torch
from helpers import TINY, write_data

import train_gpt2


def test_the_loop_is_timed_and_a_cpu_stays_exact(tmp_path, monkeypatch, capsys):
    before = torch.get_float32_matmul_precision()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train_gpt2.py", *TINY, "--max-steps", "2", "--data",
                                     str(write_data(tmp_path / "data"))])
    torch.set_float32_matmul_precision("highest")
    try:
        train_gpt2.main()
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)
    lines = [line for line in capsys.readouterr().out.splitlines() if "| loss" in line]
    assert len(lines) == 2
    assert all(re.search(r"\| dt \d+ ms \| [\d,]+ tok/sec", line) for line in lines)


def test_dt_is_the_training_step(tmp_path, monkeypatch, capsys):
    """By a clock that stands still but for 1 s in every training step."""
    clock, train_step = [0.0], train_gpt2.train_step

    def slow(*args):
        clock[0] += 1.0
        return train_step(*args)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(train_gpt2, "train_step", slow)
    monkeypatch.setattr("sys.argv", ["train_gpt2.py", *TINY, "--max-steps", "2", "--data",
                                     str(write_data(tmp_path / "data"))])
    train_gpt2.main()
    assert capsys.readouterr().out.count("| dt 1000 ms | 512 tok/sec") == 2
