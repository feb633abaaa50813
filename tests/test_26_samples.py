"""Samples in the loop: training's random numbers stay as they were."""

import torch
from helpers import TINY, lively_gpt, start, write_shards

from common import get_tokenizer
from train_gpt2 import read_log, sample

CPU_DEVICE = torch.device("cpu")


def draw(seed, prompt="ab", n=12):
    return sample(lively_gpt(), get_tokenizer("bytes"), prompt, 3, n, 1.0, seed,
                  CPU_DEVICE, torch.float32)


def test_same_seed_same_text_and_the_prompt_is_kept():
    assert draw(1) == draw(1) != draw(2)
    assert len(draw(1)) == 3 and all(text.startswith("ab") for text in draw(1))


def test_temperature_0_samples_the_likeliest():
    model, enc = lively_gpt(), get_tokenizer("bytes")
    texts = sample(model, enc, "ab", 3, 8, 0, 1, CPU_DEVICE, torch.float32)
    assert texts[0] == texts[1] == texts[2]


def test_global_random_state_is_untouched():
    model, enc = lively_gpt(), get_tokenizer("bytes")
    before = torch.get_rng_state()
    sample(model, enc, "ab", 2, 5, 1.0, 0, CPU_DEVICE, torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training


def scripted(tokens, prompt):
    """The sample of a model whose continuation is `tokens`."""
    model, enc = lively_gpt(), get_tokenizer("bytes")
    model.generate = lambda idx, *args, **kwargs: torch.cat((idx, torch.tensor([tokens])), dim=1)
    return sample(model, enc, prompt, 1, 7, 1.0, 0, CPU_DEVICE, torch.float32)


def test_text_ends_at_end_of_text():
    assert scripted([*b"cd", 256, *b"junk"], "ab") == ["abcd"]
    assert scripted([*b"cd"], "ab") == ["abcd"]


def test_an_empty_prompt_begins_a_document():
    assert scripted([*b"cd", 256], "") == ["cd"]
    assert scripted([*b"cd"], "<|endoftext|>") == ["<|endoftext|>cd"]  # text, not the token


def test_sampling_does_not_change_training(tmp_path):
    folder = write_shards(tmp_path / "shards")
    logs = []
    for name, every, n in ("often", 1, 8), ("never", 1000, 0):
        done = start("train_gpt2.py", *TINY, "--data", folder, "--out-dir", tmp_path / name,
                     "--max-steps", 6, "--eval-every", every, "--sample-tokens", n)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("sample 0: \"Hello, I'm a language model,") == (7 if n else 0)
        logs.append(read_log(tmp_path / name / "log.txt")["train"])
    assert logs[0] == logs[1] and len(logs[0][0]) == 6
