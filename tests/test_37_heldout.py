"""Endings cut from any text: the true one follows its context, the others follow elsewhere."""

import pytest

import hellaswag
from nanogpt.common import UserError

TEXT = " ".join(f"word{i}" for i in range(2000))


def test_the_true_ending_follows_and_the_others_do_not():
    made = hellaswag.cut_examples(TEXT, 200, chars=(64, 32), seed=1)
    assert len(made) == 200
    for example in made:
        true = example["endings"][example["label"]]
        assert f"{example['ctx']} {true}" in TEXT
        assert len(example["ctx"]) == 64 and {len(e) for e in example["endings"]} == {31}
        others = [e for i, e in enumerate(example["endings"]) if i != example["label"]]
        assert not any(f"{example['ctx']} {other}" in TEXT for other in others)
        assert all(f" {other}" in TEXT for other in others)  # they begin at a space, too
        assert hellaswag.check_example(example) == example


def test_labels_are_even():
    """Else a network could do well by always choosing the same place."""
    labels = [e["label"] for e in hellaswag.cut_examples(TEXT, 200, chars=(64, 32), seed=1)]
    assert all(30 < labels.count(label) < 70 for label in range(4))  # 50 expected, sd 6


def test_the_true_ending_is_as_likely_to_come_from_anywhere():
    """No place of the text is only ever right or only ever wrong: four cuts, one of them true."""
    made = hellaswag.cut_examples(TEXT, 400, seed=2)
    where = [[TEXT.index(f" {ending}") for ending in e["endings"]] for e in made]
    true = [places[e["label"]] for places, e in zip(where, made, strict=True)]
    rank = [sorted(places).index(place) for places, place in zip(where, true, strict=True)]
    assert all(70 < rank.count(r) < 130 for r in range(4))  # 100 expected, sd 9


def test_the_same_every_time_and_another_for_another_seed():
    made = hellaswag.cut_examples(TEXT, 20, seed=1)
    assert made == hellaswag.cut_examples(TEXT, 20, seed=1)
    assert made != hellaswag.cut_examples(TEXT, 20, seed=2)


def test_too_little_text_is_refused():
    with pytest.raises(UserError, match="5 characters .* too few"):
        hellaswag.cut_examples("a b c", 10)
    with pytest.raises(UserError, match="too few"):
        hellaswag.cut_examples("a" * 1000, 10)  # no space in it
