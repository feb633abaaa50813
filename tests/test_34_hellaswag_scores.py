"""HellaSwag's scores equal each row scored alone, unpadded, in float64."""

import pytest
import torch
from helpers import bytes_encoded, four_endings, lively_gpt, one_row_at_a_time

import hellaswag
from nanogpt.tokenizer import get_tokenizer


def test_scores_equal_one_row_at_a_time():
    """Sums and means of cross-entropy over the ending's tokens alone: rows are padded on the
    right, the context is not scored, and each loss belongs to the token that comes next."""
    model, examples = lively_gpt(block_size=64), four_endings()
    sums, means = hellaswag.score(model, bytes_encoded(examples), torch.device("cpu"))
    assert sums.shape == means.shape == (30, 4)
    for i, example in enumerate(examples):
        expected = one_row_at_a_time(model, example)
        # sums of up to 20 losses of size 6, in fp32
        torch.testing.assert_close(sums[i].tolist(), expected[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(means[i].tolist(), expected[1], atol=1e-5, rtol=0)


def test_padding_counts_for_nothing():
    """An example's scores are the same alone and beside longer ones."""
    model, encoded = lively_gpt(block_size=64), bytes_encoded(four_endings())
    together = hellaswag.score(model, encoded, torch.device("cpu"))
    for i, example in enumerate(encoded):
        alone = hellaswag.score(model, [example], torch.device("cpu"))
        for kind in 0, 1:
            torch.testing.assert_close(alone[kind][0], together[kind][i], atol=0, rtol=2e-6)


def test_a_row_longer_than_the_network_loses_its_beginning():
    """Rows keep block_size + 1 tokens, their last: the end of the context, and the ending."""
    model, examples = lively_gpt(block_size=16), four_endings()
    encoded = bytes_encoded(examples, 16)
    assert max(len(row) for e in encoded for row in e.rows) == 17
    sums, means = hellaswag.score(model, encoded, torch.device("cpu"))
    for i, example in enumerate(examples):
        expected = one_row_at_a_time(model, example, 16)
        torch.testing.assert_close(sums[i].tolist(), expected[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(means[i].tolist(), expected[1], atol=2e-5, rtol=0)


def test_an_ending_is_encoded_with_its_space():
    """The space before the word belongs to the ending: GPT-2's tokens carry it."""
    example = {"ctx": "ab", "endings": ["c", "de", "f g", "h"], "label": 3}
    encoded, = hellaswag.encode([example], get_tokenizer("bytes"), 64)
    assert encoded.rows == [list(b"ab c"), list(b"ab de"), list(b"ab f g"), list(b"ab h")]
    assert encoded.n_ending == [2, 3, 4, 2] and encoded.label == 3


def test_any_model_that_returns_logits():
    """The logits themselves, a tuple that begins with them, or an object that has them."""
    model, encoded = lively_gpt(block_size=64), bytes_encoded(four_endings())

    class Output:
        def __init__(self, idx):
            self.logits = model(idx)[0]

    scores = [hellaswag.score(f, encoded, torch.device("cpu"))
              for f in (model, lambda idx: model(idx)[0], Output)]
    for other in scores[1:]:
        assert torch.equal(scores[0][0], other[0]) and torch.equal(scores[0][1], other[1])


@pytest.mark.parametrize("vocab_size", [257, 50257])
def test_a_network_that_knows_nothing_is_a_uniform_guess(vocab_size):
    """Equal logits: every token costs ln(vocabulary), whatever the row."""
    encoded = bytes_encoded(four_endings(3))
    sums, means = hellaswag.score(lambda idx: torch.zeros(*idx.shape, vocab_size), encoded,
                                  torch.device("cpu"))
    cost = torch.tensor(float(vocab_size)).log()
    n = torch.tensor([e.n_ending for e in encoded])
    torch.testing.assert_close(means, cost.expand(3, 4), atol=0, rtol=1e-6)
    torch.testing.assert_close(sums, cost * n, atol=0, rtol=1e-6)
