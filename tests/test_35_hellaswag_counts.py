"""HellaSwag's counts are the choices of scores made one row at a time; ranks share the work."""

import math

import pytest
import torch
from helpers import bytes_encoded, count_by_hand, four_endings, lively_gpt

import hellaswag
from nanogpt.common import UserError


def test_counts_are_the_choices():
    """acc by the lowest sum, acc_norm by the lowest mean, and the number of examples."""
    model, examples = lively_gpt(block_size=64), four_endings()
    expected = count_by_hand(model, examples)
    counts = hellaswag.count_correct(model, bytes_encoded(examples), torch.device("cpu"))
    assert counts.tolist() == [*expected, 30] and counts.dtype == torch.float64
    assert 0 < expected[0] < 30 and 0 < expected[1] < 30  # a mistake would show
    assert expected[0] != expected[1]  # one in place of the other would, too


@pytest.mark.parametrize("world", [1, 2, 3, 8, 40])
def test_all_ranks_equal_one_rank(world):
    """Every example is scored by one rank: the ranks' counts add up to those of one alone."""
    model, encoded = lively_gpt(block_size=64), bytes_encoded(four_endings())
    expected = hellaswag.count_correct(model, encoded, torch.device("cpu"))
    shares = [hellaswag.count_correct(model, encoded, torch.device("cpu"), rank, world)
              for rank in range(world)]
    assert torch.equal(sum(shares), expected)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("number", [1, 17, 30])
def test_a_score_that_is_no_number_stops_it(number, value):
    """argmin would take a NaN for the lowest. The example is named by its number in the file."""
    model, examples = lively_gpt(block_size=64), four_endings()
    examples[number - 1]["endings"][2] = "~~"  # letters that no other example has

    def network(idx):
        logits, _ = model(idx)
        logits[(idx == ord("~")).any(dim=1)] = value
        return logits

    with pytest.raises(UserError, match=f"example {number} scores .*(nan|inf)") as error:
        hellaswag.count_correct(network, bytes_encoded(examples), torch.device("cpu"))
    assert "\n" not in str(error.value)


def test_standard_error():
    assert hellaswag.standard_error(0.2955, 10042) == pytest.approx(0.00455, abs=5e-6)
    assert hellaswag.standard_error(0.0, 5) == hellaswag.standard_error(1.0, 5) == 0
    # of what a coin shows in 4 throws, by the definition: all 16 outcomes
    outcomes = [bin(outcome).count("1") / 4 for outcome in range(16)]
    expected = math.sqrt(sum((share - 0.5) ** 2 for share in outcomes) / 16)
    assert hellaswag.standard_error(0.5, 4) == pytest.approx(expected, rel=1e-12)
