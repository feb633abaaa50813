"""Validation is a tenth of Python's manual, from everywhere in it, in stretches of paragraphs."""

from helpers import manual_documents
from pydoc_data.topics import topics


def paragraphs(texts):
    """The distinct paragraphs long enough to be from one place."""
    return {p for text in texts for p in text.removesuffix("\n\n").split("\n\n") if len(p) >= 100}


def test_validation_is_a_tenth():
    """Topics are of very different lengths: every tenth topic is no tenth of the text."""
    train, val = (sum(map(len, documents)) for documents in manual_documents())
    assert 0.09 < val / (train + val) < 0.11
    assert train > 250_000 and val > 25_000


def test_stretches_are_of_a_thousand_characters():
    """A stretch takes paragraphs until it has a thousand characters: without its last, it has less.
    Of every topic only the end may be shorter."""
    train, val = manual_documents()
    for stretch in train + val:
        assert stretch.endswith("\n\n")
        assert len(stretch[:-2].rpartition("\n\n")[0]) < 1000
    shorter = sum(len(stretch) < 1000 for stretch in train + val)
    assert shorter <= len(topics) < len(train + val) / 3


def test_validation_asks_about_every_long_topic():
    """Training and validation both have paragraphs of every topic of thirty stretches."""
    train, val = map(paragraphs, manual_documents())
    for name, text in topics.items():
        if len(text) > 30_000:
            here = paragraphs([text.strip()])
            assert here & train and here & val, f"topic {name}"


def test_no_paragraph_is_lost():
    train, val = map(paragraphs, manual_documents())
    assert train | val == paragraphs(text.strip() for text in topics.values())
    assert any("statement" in p for p in train) and any("statement" in p for p in val)
