"""In the loop every rank scores its share, and sums are added before anything is divided."""

import re

import pytest
import torch
from helpers import (
    CPU,
    TINY,
    bytes_encoded,
    count_by_hand,
    four_endings,
    lively_gpt,
    start,
    stream_of,
    text_tokens,
    write_jsonl,
    write_shards,
)

import hellaswag
import train_gpt2
from nanogpt.tokenizer import get_tokenizer
from train_gpt2 import parse_args
from nanogpt.ranks import Ranks

BYTES = get_tokenizer("bytes")


def test_accuracy_and_its_standard_error(monkeypatch):
    """acc_norm over the examples of all ranks, not the mean of the ranks' shares."""
    model, encoded = lively_gpt(block_size=64), bytes_encoded(four_endings())
    _, norm = count_by_hand(model, four_endings())
    acc, error = train_gpt2.evaluate_hellaswag(model, encoded, CPU)
    assert acc == pytest.approx(norm / 30)
    assert error == pytest.approx((acc * (1 - acc) / 30) ** 0.5)
    # two ranks: their sums are added before anything is divided
    both = [hellaswag.count_correct(model, encoded, torch.device("cpu"), r, 2) for r in range(2)]
    monkeypatch.setattr(train_gpt2, "sum_over_ranks", lambda counts, ranks: sum(both))
    ranks = Ranks(torch.device("cpu"), False, 0, 0, 2)
    acc, _ = train_gpt2.evaluate_hellaswag(model, encoded, ranks)
    assert acc == pytest.approx(norm / 30)


def test_modes_are_restored():
    """Evaluation mode and no gradients while it scores, training mode after."""
    model, seen = lively_gpt(block_size=64), set()
    model.transformer.ln_f.register_forward_hook(
        lambda *args: seen.add((model.training, torch.is_grad_enabled())))
    train_gpt2.evaluate_hellaswag(model, bytes_encoded(four_endings()), CPU)
    assert seen == {(False, False)} and model.training


def test_examples_of_a_file(tmp_path):
    path = write_jsonl(tmp_path / "h.jsonl", four_endings())
    for limit in 7, 30:
        config = parse_args([*TINY, "--hellaswag", str(path), "--hellaswag-limit", str(limit)])
        encoded = hellaswag.load_run(config, BYTES, 64, None)
        assert encoded == bytes_encoded(four_endings()[:limit])


def test_none_is_none():
    config = parse_args([*TINY, "--hellaswag", "none"])
    assert hellaswag.load_run(config, BYTES, 64, None) == []


def test_heldout_is_cut_from_validation_text():
    """From its first million tokens, without end-of-text; one seed, one set of examples."""
    tokens = text_tokens(20_000)
    text = bytes(tokens[tokens < 256].tolist()).decode()
    config = parse_args([*TINY, "--hellaswag", "heldout", "--hellaswag-limit", "50", "--seed", "3"])
    encoded = hellaswag.load_run(config, BYTES, 128, stream_of(tokens))
    assert encoded == bytes_encoded(hellaswag.cut_examples(text, 50, seed=3), 128)


@pytest.mark.slow
def test_the_run_prints_what_its_ranks_counted_together(tmp_path):
    """One rank or two: the same accuracy of the same network, before training and after."""
    data, path = write_shards(tmp_path / "shards"), write_jsonl(tmp_path / "h", four_endings(31))
    printed = []
    for ranks in None, 2:
        done = start("train_gpt2.py", *TINY, "--data", data, "--hellaswag", path, "--sample-tokens",
                     0, "--hellaswag-limit", 31, "--max-steps", 1, "--val-tokens", 512,
                     "--out-dir", tmp_path / "run",
                     ranks=ranks)
        assert done.returncode == 0, done.stderr
        printed.append(re.findall(r"\| hella (\S+) \+- (\S+) \|", done.stdout))
    assert printed[0] == printed[1] and len(printed[0]) == 2
    torch.manual_seed(1337)
    model = train_gpt2.GPT(train_gpt2.GPTConfig(32, 257, 2, 2, 32))
    encoded = bytes_encoded(four_endings(31), 32)
    acc, error = train_gpt2.evaluate_hellaswag(model, encoded, CPU)
    assert printed[0][0] == (f"{acc:.4f}", f"{error:.4f}")
