"""The manual's documents are excerpts that fill a row: no longer, and nothing lost between them."""

import numpy as np
import pytest
from helpers import load_streams, manual_documents

from nanogpt.shards import python_manual


@pytest.mark.parametrize("T", [33, 1000])
def test_excerpts_fit_a_row(T):
    """Of T tokens one is the end-of-text: T - 1 characters are left."""
    for excerpts, whole in zip(manual_documents(T), manual_documents(), strict=True):
        lengths = [len(excerpt) for excerpt in excerpts]
        assert 1 <= min(lengths) and max(lengths) <= T - 1
        assert "".join(excerpts) == "".join(whole)


@pytest.mark.parametrize("T", [1, 2])
def test_an_excerpt_has_one_character_at_least(T):
    """A row of one token has no room beside the end-of-text, and is a row all the same."""
    for [shard], whole in zip(python_manual(T), manual_documents(), strict=True):
        assert np.count_nonzero(shard.open() == 256) == sum(map(len, whole))


def test_excerpts_fill_a_row():
    train, val = manual_documents(128)
    assert 100 < np.mean([len(excerpt) for excerpt in train]) < 128
    assert 100 < np.mean([len(excerpt) for excerpt in val]) < 128


def test_no_word_is_cut_that_fits():
    """An excerpt ends before a space or with its stretch, unless one word is a row long."""
    for excerpts, whole in zip(manual_documents(128), manual_documents(), strict=True):
        ends = {place for place in np.cumsum([len(stretch) for stretch in whole]).tolist()}
        text, place = "".join(excerpts), 0
        for excerpt in excerpts:
            place += len(excerpt)
            assert place in ends or text[place].isspace() or not any(map(str.isspace, excerpt[1:]))


def test_the_run_hands_on_its_T():
    for T in 16, 64:
        train, _ = load_streams("pydoc", "--T", str(T), "--total-batch-size", str(T))
        starts = np.flatnonzero(train.shards[0].open() == 256)
        assert 0.7 * T < np.diff(starts).mean() < T + 1
