"""The chosen tokens have the right shares, and a sample's are the same in any batch."""

from types import SimpleNamespace

import pytest
import torch
from helpers import lively_gpt

from nanogpt.sampling import chooser

CPU = torch.device("cpu")
PLAIN = dict(temperature=1.0, top_k=0, top_p=1.0, seed=0)
SHARES = torch.tensor([0.04, 0.4, 0.01, 0.25, 0.2, 0.1])


def draws(n=20_000, **config):
    """Shares of SHARES' ids among `n` draws."""
    config = SimpleNamespace(**PLAIN | config)
    choose = chooser(config, [5], CPU)
    ids = torch.cat([choose(SHARES.log()[None]) for _ in range(n)])
    return torch.bincount(ids[:, 0], minlength=len(SHARES)) / n


@pytest.mark.parametrize("config, expected", [
    ({}, SHARES),
    ({"temperature": 0.5}, SHARES**2 / (SHARES**2).sum()),
    ({"temperature": 0}, [0, 1, 0, 0, 0, 0]),
    ({"temperature": 1e-40}, [0, 1, 0, 0, 0, 0]),
    ({"top_k": 2}, [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0, 0]),
    ({"top_k": 99}, SHARES),
    ({"top_p": 0.39}, [0, 1, 0, 0, 0, 0]),
    ({"top_p": 1e-9}, [0, 1, 0, 0, 0, 0]),
    ({"top_p": 0.41}, [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0, 0]),
    ({"top_p": 0.84}, [0, 0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85, 0]),
    ({"top_p": 0.9, "temperature": 0.5}, [0, 0.16 / 0.2625, 0, 0.0625 / 0.2625, 0.04 / 0.2625, 0]),
    # of the top 2, the first alone has 0.4 / 0.65 = 0.615
    ({"top_p": 0.6, "top_k": 2}, [0, 1, 0, 0, 0, 0]),
])
def test_shares(config, expected):
    """20,000 draws: four standard errors of a share near one half."""
    torch.testing.assert_close(draws(**config), torch.as_tensor(expected, dtype=torch.float),
                               atol=0.015, rtol=0)


def test_the_same_ids_are_left_as_in_transformers():
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = 3 * torch.randn(1, 300, generator=torch.Generator().manual_seed(0))
    scores = TemperatureLogitsWarper(0.7)(None, logits)
    scores = TopPLogitsWarper(0.8)(None, TopKLogitsWarper(40)(None, scores))
    left = set(scores[0].isfinite().nonzero()[:, 0].tolist())
    choose = chooser(SimpleNamespace(temperature=0.7, top_k=40, top_p=0.8, seed=3), [0], CPU)
    drawn = {choose(logits).item() for _ in range(5000)}
    assert drawn <= left and len(left) < 40
    likely = scores[0].softmax(dim=0)
    assert {id for id in left if likely[id] > 0.005} <= drawn  # missed with probability e^-25


def texts(model, numbers, n=60, **config):
    """The ids of the samples `numbers`, computed together."""
    choose = chooser(SimpleNamespace(**PLAIN | {"top_k": 200} | config), numbers, CPU)
    prompt = torch.tensor([[7, 8, 9]]).expand(len(numbers), -1)
    return torch.cat([*model.next_tokens(prompt, n, choose, keep=8)], dim=1).tolist()


@pytest.mark.parametrize("seed", [0, 1, -5, 2**70])
def test_a_sample_is_the_same_in_any_batch(seed):
    """Alone, with others, and after others; 60 tokens, past the window of 16."""
    model = lively_gpt(n_embd=64)
    alone = [texts(model, [number], seed=seed)[0] for number in range(32)]
    for n in 2, 8, 32:
        assert texts(model, range(n), seed=seed) == alone[:n]
    assert texts(model, range(20, 29), seed=seed) == alone[20:29]
    assert len({tuple(ids) for ids in alone}) == 32


def test_seeds_do_not_share_samples():
    """The second sample of seed 1 is not the first of seed 2."""
    model = lively_gpt()
    every = [tuple(ids) for seed in range(8) for ids in texts(model, range(8), seed=seed)]
    assert len(set(every)) == 64


def test_rounding_does_not_give_a_token_anothers_random_number():
    """Two near-equal logits change their ranks; the tokens that are drawn stay the same."""
    logits = torch.linspace(0, 1, 100)[None].clone()
    logits[0, 50] = logits[0, 51] + 1e-6
    swapped = logits.clone()
    swapped[0, 50] = logits[0, 51] - 1e-6
    first, second = (chooser(SimpleNamespace(**PLAIN), [0], CPU) for _ in range(2))
    assert [first(logits).item() for _ in range(2000)] == [
        second(swapped).item() for _ in range(2000)]


def test_the_global_random_numbers_stay():
    before = torch.get_rng_state()
    draws(3)
    assert torch.equal(torch.get_rng_state(), before)
