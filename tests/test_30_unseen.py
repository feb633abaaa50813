"""Validation asks for no paragraph of Python's manual that training has seen."""

from collections import Counter

from helpers import manual_documents
from pydoc_data.topics import topics


def paragraphs(texts):
    """The paragraphs that are too long to be the same by chance."""
    return [p for text in texts for p in text.removesuffix("\n\n").split("\n\n") if len(p) >= 40]


def test_validation_is_not_in_training():
    """Topics quote each other: what came before is left out when it comes again."""
    train, val = map("".join, manual_documents())
    long = [p for p in paragraphs([val]) if len(p) > 100]
    assert len(long) > 50 and not any(p in train for p in long)
    assert not set(paragraphs([val])) & set(paragraphs([train]))


def test_every_paragraph_is_kept_once():
    train, val = manual_documents()
    counts = Counter(paragraphs(train) + paragraphs(val))
    assert set(counts.values()) == {1}, counts.most_common(1)
    assert set(counts) == set(paragraphs(text.strip() for text in topics.values()))
