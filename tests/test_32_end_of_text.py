"""A sample is one document: it ends at its end-of-text, and an empty prompt begins one."""

import torch
from helpers import CPU, lively_gpt

from nanogpt.tokenizer import get_tokenizer
from train_gpt2 import sample


def scripted(*continuations, prompt):
    """The samples of a model whose continuations are these tokens."""
    model, enc, prompts = lively_gpt(), get_tokenizer("bytes"), []

    def generate(idx, *args, **kwargs):
        prompts.extend(idx.tolist())
        return torch.cat((idx, torch.tensor(continuations)), dim=1)

    model.generate = generate
    texts = sample(model, enc, prompt, len(continuations), 7, 1.0, 0, CPU)
    assert len(prompts) == len(continuations)
    return texts, prompts[0]


def test_text_ends_at_end_of_text():
    """What follows an end-of-text belongs to another document."""
    assert scripted([*b"cd", 256, *b"junk"], prompt="ab")[0] == ["abcd"]
    assert scripted([*b"cd"], prompt="ab")[0] == ["abcd"]
    assert scripted([256, 256], prompt="ab")[0] == ["ab"]


def test_every_sample_ends_at_its_own():
    texts, _ = scripted([*b"cd", 256, 120], [*b"efgh"], [256, *b"cd", 256], prompt="ab")
    assert texts == ["abcd", "abefgh", "ab"]


def test_an_empty_prompt_begins_a_document():
    """The network wants at least one token: end-of-text, which every document begins with. It is
    neither printed nor taken for the end."""
    assert scripted([*b"cd", 256], prompt="") == (["cd"], [256])
    texts, prompt = scripted([*b"cd"], prompt="<|endoftext|>")
    assert texts == ["<|endoftext|>cd"] and prompt == list(b"<|endoftext|>")  # text, not the token
    enc = get_tokenizer("bytes")
    texts = sample(lively_gpt(), enc, "", 2, 3, 1.0, 0, CPU)
    assert all(len(text) <= 3 for text in texts)
