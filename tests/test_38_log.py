"""The log holds what the run found, to the last digit; one process writes it, and only appends."""

import re

import torch
import pytest
from helpers import (
    CPU,
    TINY,
    four_endings,
    main_here,
    refusal,
    start,
    update,
    write_jsonl,
    write_shards,
)

import train_gpt2
from nanogpt.report import Log


def test_a_line_is_step_kind_value(tmp_path):
    """Numbers as Python writes them, so that they come back to the last bit."""
    log = Log(tmp_path / "log.txt", master_process=True)
    log.value(0, "val", 5.5)
    log.value(0, "train", 1 / 3)
    log.value(12, "hella", 0.1 + 0.2)
    assert (tmp_path / "log.txt").read_text() == (
        "0 val 5.5\n0 train 0.3333333333333333\n12 hella 0.30000000000000004\n")


def test_appended_never_truncated(tmp_path):
    """A second run in the same folder keeps the first one's lines, and each is there at once."""
    for value in 1.0, 2.0:
        Log(tmp_path / "log.txt", master_process=True).value(0, "train", value)
        assert (tmp_path / "log.txt").read_text().endswith(f"0 train {value}\n")
    assert (tmp_path / "log.txt").read_text() == "0 train 1.0\n0 train 2.0\n"


def test_other_ranks_do_not_write(tmp_path):
    Log(tmp_path / "log.txt", master_process=False).value(0, "train", 1.0)
    assert not (tmp_path / "log.txt").exists()


@pytest.mark.slow
def test_a_run_logs_what_it_prints(tmp_path):
    """Every step's loss and every evaluation, once, to more digits than are printed."""
    path = write_jsonl(tmp_path / "h.jsonl", four_endings(4))
    done = start("train_gpt2.py", *TINY, "--data", write_shards(tmp_path / "shards"), "--out-dir",
                 tmp_path / "a" / "run", "--max-steps", 3, "--eval-every", 2, "--hellaswag", path,
                 "--hellaswag-limit", 4, "--val-tokens", 512, "--sample-tokens", 0, ranks=2)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "a" / "run" / "log.txt").read_text().splitlines()
    logged = [line.split() for line in lines if not line.startswith("#")]
    # in this order; with two writers every line would be there twice
    assert [(int(step), kind) for step, kind, _ in logged] == [
        (0, "val"), (0, "hella"), (0, "train"), (1, "train"), (2, "val"), (2, "hella"),
        (2, "train"), (3, "val"), (3, "hella")]
    for kind, printed in ("train", "loss"), ("val", "val"), ("hella", "hella"):
        assert [f"{float(value):.4f}" for _, k, value in logged if k == kind] == re.findall(
            rf"step +\d+ .*\| {printed} ([\d.]+) ", done.stdout)
    assert all(len(value) > 8 for _, kind, value in logged if kind != "hella")


def test_the_logged_losses_are_the_runs(tmp_path, monkeypatch):
    """Equal to the bit to those of the same steps, made here by hand."""
    data = write_shards(tmp_path / "shards")
    main_here(monkeypatch, *TINY, "--data", data, "--out-dir", tmp_path, "--max-steps", 2,
              "--val-tokens", 512, "--sample-tokens", 0)
    config = train_gpt2.parse_args([*TINY, "--data", str(data)])
    train, val = train_gpt2.load_data(config)
    torch.manual_seed(config.seed)
    model = train_gpt2.GPT(train_gpt2.GPTConfig(32, 257, 2, 2, 32))
    optimizer = train_gpt2.configure_optimizer(model, 0.1, 3e-3)
    loader = train_gpt2.DataLoader(train, 8, 32)
    losses = [update(model, loader, optimizer, lr, steps=2)[0] for lr in (1.5e-3, 3e-3)]
    final = train_gpt2.validate(model, val, 512, 8, 32, CPU)
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line for line in lines if " train " in line] == [
        f"{step} train {loss!r}" for step, loss in enumerate(losses)]
    assert f"2 val {final!r}" in lines


def test_a_folder_that_cannot_be_written_is_found_at_the_start(tmp_path, monkeypatch, capsys):
    """Not hours later, when there is something to write; and a refused run leaves nothing."""
    data = write_shards(tmp_path / "shards")
    (tmp_path / "file").write_text("")
    flags = [*TINY, "--data", data, "--max-steps", 1]
    said = refusal(train_gpt2.main, *flags, "--out-dir", tmp_path / "file" / "run",
                   monkeypatch=monkeypatch, capsys=capsys)
    assert f"cannot write to {tmp_path / 'file' / 'run'}" in said
    refusal(train_gpt2.main, *flags, "--out-dir", tmp_path / "run", "--data", "nowhere",
            monkeypatch=monkeypatch, capsys=capsys)
    assert not (tmp_path / "run").exists()
