"""The table before the first step says what the run found, and it is true."""

import pytest
import torch
from helpers import (
    CPU,
    TINY,
    lively_gpt,
    start,
    stream_of,
    text_tokens,
    training,
    write_shards,
)

import train_gpt2
from nanogpt.ranks import Ranks
from nanogpt.report import describe


def overview(out):
    """The printed rows before the first step, as {name: text}."""
    lines = out.partition("\nstep ")[0].splitlines()
    return dict((part.strip() for part in line.split("|", 1)) for line in lines if " | " in line)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [None, 2])
def test_the_rows_of_a_run(ranks, tmp_path):
    """Device, precision, network and vocabulary, once, whatever the number of processes."""
    done = start("train_gpt2.py", *TINY, "--data", write_shards(tmp_path / "shards"), "--out-dir",
                 tmp_path / "run", "--max-steps", 1, "--val-tokens", 512, "--sample-tokens", 0,
                 "--dtype", "float32" if ranks else "bfloat16", ranks=ranks)
    assert done.returncode == 0, done.stderr
    rows = overview(done.stdout)
    n = 257 * 32 + 32 * 32 + 2 * (12 * 32 * 32 + 13 * 32) + 2 * 32
    assert rows["device"] == f"cpu, 1 threads, {'2 processes' if ranks else '1 process'}"
    assert rows["precision"] == f"{'float32' if ranks else 'bfloat16'} products, not compiled"
    assert rows["network"] == f"2 layers, 2 heads, 32 channels: {n:,} parameters"
    assert rows["vocabulary"] == "bytes, 257 ids"
    assert done.stdout.count("parameters") == 1


def rows_of(config, ranks=CPU, compiled=False, model=None):
    """describe()'s rows as a dict, for a network on the meta device."""
    if model is None:
        with torch.device("meta"):
            model = train_gpt2.GPT(train_gpt2.GPTConfig(
                config.T, config.vocab_size or 257, config.n_layer, config.n_head, config.n_embd))
    stream = stream_of(text_tokens(5000), model.config.vocab_size)
    t = training(model, train_gpt2.DataLoader(stream, config.B, config.T), ranks=ranks,
                 max_steps=10, compiled=model if compiled else None)
    return dict(describe(config, t, train_gpt2.Exam(stream, None, [])))


def test_the_videos_network():
    config = train_gpt2.PRESETS["gpt2-124M"]
    with torch.device("meta"):
        model = train_gpt2.GPT(train_gpt2.GPTConfig())
    rows = rows_of(config, model=model)
    assert rows["network"] == "12 layers, 12 heads, 768 channels: 124,439,808 parameters"
    assert rows["vocabulary"] == "gpt2, 50,257 ids"
    model.vocab_multiple = 64  # as on a GPU
    rows = rows_of(config, model=model)
    assert rows["vocabulary"] == "gpt2, 50,257 ids, computed as 50,304"


def test_a_card_by_its_name(monkeypatch):
    """float16 needs its loss scaled, bfloat16 does not."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"A card, number {device}")
    config = train_gpt2.parse_args(TINY)
    for dtype, compiled, precision in [
            (torch.bfloat16, True, "bfloat16 products, compiled"),
            (torch.float16, True, "float16 products, loss scaled, compiled"),
            (torch.float32, False, "float32 products, not compiled")]:
        rows = rows_of(config, Ranks(torch.device("cuda", 0), True, 0, 0, 8, dtype), compiled)
        assert rows["device"] == "A card, number cuda:0, 8 processes"
        assert rows["precision"] == precision


def test_the_network_is_the_one_it_began_from():
    """The row shows its own sizes, not the flags', and the folder they come from."""
    config = train_gpt2.parse_args([*TINY, "--init-from", "a/folder"])
    model = lively_gpt(block_size=48, n_layer=1, n_head=4, n_embd=64)
    rows = rows_of(config, model=model)
    assert rows["network"] == (f"1 layers, 4 heads, 64 channels: {model.num_params():,} parameters,"
                               " from a/folder")
