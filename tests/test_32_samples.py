"""Samples in the loop: training's random numbers stay as they were."""

import re

import pytest
import torch
from helpers import CPU, TINY, lively_gpt, start, write_shards

from nanogpt.tokenizer import get_tokenizer
from train_gpt2 import sample


def draw(seed, prompt="ab", n=12):
    return sample(lively_gpt(), get_tokenizer("bytes"), prompt, 3, n, 1.0, seed, CPU)


def test_same_seed_same_text_and_the_prompt_is_kept():
    assert draw(1) == draw(1) != draw(2)
    assert len(draw(1)) == 3 and all(text.startswith("ab") for text in draw(1))
    assert len(set(draw(1))) == 3


def test_temperature_0_samples_the_likeliest():
    model, enc = lively_gpt(), get_tokenizer("bytes")
    texts = sample(model, enc, "ab", 3, 8, 0, 1, CPU)
    assert texts[0] == texts[1] == texts[2]


def test_global_random_state_is_untouched():
    model, enc = lively_gpt(), get_tokenizer("bytes")
    before = torch.get_rng_state()
    sample(model, enc, "ab", 2, 5, 1.0, 0, CPU)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training


@pytest.mark.slow
def test_sampling_does_not_change_training(tmp_path, monkeypatch):
    """Losses and norms are the same, to the digit, with samples at every step and with none."""
    monkeypatch.chdir(tmp_path)
    write_shards(tmp_path / "shards", n_val=500)
    printed = []
    for every, n in (1, 8), (1000, 0):
        done = start("train_gpt2.py", *TINY, "--data", "shards", "--max-steps", 3, "--eval-every",
                     every, "--sample-tokens", n)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("sample 0: \"Hello, I'm a language model,") == (4 if n else 0)
        assert done.stdout.count("  sample ") == (16 if n else 0)
        printed.append(re.findall(r"loss (\S+) \| lr \S+ \| norm (\S+)", done.stdout))
    assert printed[0] == printed[1] and len(printed[0]) == 3
