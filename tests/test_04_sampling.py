"""generate(): from the top k, by the seed, in the right shares."""

import os
import subprocess
import sys

import pytest
import torch
from helpers import ROOT, lively_gpt
from torch.nn import functional as F

from nanogpt.common import UserError
from nanogpt.tokenizer import get_tokenizer, tokenizer_name


def generator(seed):
    return torch.Generator().manual_seed(seed)


def test_every_token_is_among_the_top_k():
    model = lively_gpt()
    idx = model.generate(torch.tensor([[1, 2], [3, 4]]), 14, top_k=5, generator=generator(0))
    assert idx.shape == (2, 16)
    assert idx[:, :2].tolist() == [[1, 2], [3, 4]]
    for t in range(2, 16):
        logits, _ = model(idx[:, :t])
        top = logits[:, -1].topk(5).indices
        assert (top == idx[:, t : t + 1]).any(dim=1).all()


def test_same_seed_same_tokens():
    model, idx = lively_gpt(), torch.tensor([[1]])
    first, again, other = (model.generate(idx, 40, generator=generator(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("temperature", [0, 1])
def test_nothing_is_drawn_from_numbers_that_are_not_finite(temperature, value):
    """argmax would choose a NaN, and multinomial would end in a traceback."""
    model = lively_gpt()
    with torch.no_grad():
        model.transformer.ln_f.bias[3] = value
    with pytest.raises(UserError, match="logits are NaN or infinite"):
        model.generate(torch.tensor([[5, 6]]), 10, temperature=temperature)


def test_temperature_0_takes_the_likeliest():
    model = lively_gpt()
    idx = model.generate(torch.tensor([[5, 6]]), 10, temperature=0)
    for t in range(2, 12):
        assert idx[0, t] == model(idx[:, :t])[0][0, -1].argmax()


def test_past_block_size_the_window_slides():
    model = lively_gpt()
    idx = model.generate(torch.tensor([[1]]), 30, temperature=0)
    assert idx.shape == (1, 31)
    assert idx[0, 30] == model(idx[:, 14:30])[0][0, -1].argmax()


def test_shares_are_the_softmax():
    """20,000 draws of one token against softmax(logits / temperature) cut to the top 8."""
    model, idx, n = lively_gpt(), torch.tensor([[7]]), 20_000
    drawn = model.generate(idx.expand(n, 1), 1, temperature=0.7, top_k=8, generator=generator(3))
    top, ids = (model(idx)[0][0, -1] / 0.7).topk(8)
    expected = torch.zeros(257).scatter(0, ids, F.softmax(top, dim=0))
    share = torch.bincount(drawn[:, 1], minlength=257) / n
    # four standard errors of a share near one half
    torch.testing.assert_close(share, expected, atol=0.015, rtol=0)


def test_top_k_none_and_too_large_mean_all():
    model, idx = lively_gpt(), torch.tensor([[7]])
    every = [model.generate(idx, 20, top_k=k, generator=generator(4)) for k in (None, 257, 9999)]
    assert torch.equal(every[0], every[1]) and torch.equal(every[0], every[2])


def test_tokenizers_go_there_and_back():
    enc = get_tokenizer(tokenizer_name(257))
    assert enc.encode_ordinary("aé") == [97, 0xC3, 0xA9] and enc.eot_token == 256
    assert enc.decode(enc.encode_ordinary("aé\n→")) == "aé\n→"
    assert tokenizer_name(50257) == "gpt2"
    with pytest.raises(UserError, match="1000 ids belongs to no known tokenizer"):
        tokenizer_name(1000)


def test_gpt2s_vocabulary_without_network(tmp_path):
    code = ("from nanogpt.common import run; from nanogpt.tokenizer import get_tokenizer; "
            "run(lambda: get_tokenizer('gpt2'))")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "TIKTOKEN_CACHE_DIR": str(tmp_path),
                               "HTTPS_PROXY": "http://127.0.0.1:9"})
    assert done.returncode == 2 and done.stderr.startswith("error: cannot get GPT-2's vocabulary")
    assert done.stderr.count("\n") == 1


def test_a_temperature_whose_division_overflows_is_zero():
    model, idx = lively_gpt(), torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        expected = model.generate(idx, 5, temperature=0)
        for temperature in 1e-7, 1e-40, 1e-320:
            assert torch.equal(model.generate(idx, 5, temperature=temperature), expected)
