"""The stream: consecutive, endless, nothing lost between batches, shards or epochs."""

import numpy as np
import pytest
from helpers import stream_of, text_tokens

from common import UserError
from train_gpt2 import DataLoader, TokenStream


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_batches_follow_each_other_and_wrap(parts):
    n = 103  # no multiple of anything
    loader = DataLoader(stream_of(range(n), parts=parts), B=2, T=4)
    taken = []
    for _ in range(30):  # over two epochs
        x, y = loader.next_batch()
        assert y.flatten().tolist() == [(i + 1) % n for i in x.flatten().tolist()]
        taken += x.flatten().tolist()
    assert taken == [i % n for i in range(240)]
    assert loader.position == 240


def test_read_is_a_function_of_position():
    tokens = text_tokens(1000)
    stream = stream_of(tokens, parts=3)
    three_epochs = np.tile(tokens, 3)
    for position, n in (0, 1), (332, 3), (333, 1), (990, 20), (1000, 1000), (500, 2400):
        assert np.array_equal(stream.read(position, n), three_epochs[position : position + n])


def documents(tokens):
    """Lists of tokens between end-of-texts, as tuples that can be sorted and compared."""
    return [tuple(part) for part in np.split(tokens, np.flatnonzero(tokens == 256)) if len(part)]


def test_shuffling_keeps_every_document_whole():
    tokens = text_tokens(3000)
    stream = stream_of(tokens, seed=5)
    epochs = [stream.read(e * 3000, 3000) for e in range(3)]
    for epoch in epochs:
        assert sorted(documents(epoch)) == sorted(documents(tokens))
        assert not np.array_equal(epoch, tokens)
    assert not np.array_equal(epochs[0], epochs[1])
    assert np.array_equal(stream_of(tokens, seed=5).read(3000, 3000), epochs[1])
    assert not np.array_equal(stream_of(tokens, seed=6).read(0, 3000), epochs[0])


def test_shuffling_shuffles_shards_too():
    tokens = np.concatenate([[256, part] for part in range(50)])  # 50 documents of one token
    stream = stream_of(tokens, seed=1, parts=10)
    first_of_shards = [set(stream.read(e * 100, 10)) - {256} for e in range(6)]
    assert len({min(s) // 5 for s in first_of_shards}) > 1  # not always the first shard
    for e in range(6):
        assert sorted(stream.read(e * 100, 100)) == sorted(tokens)


def test_reading_across_shuffled_shards_in_any_portions():
    stream = stream_of(text_tokens(2000), seed=3, parts=4)
    whole = stream.read(0, 5000)
    portions = [stream.read(i, 7) for i in range(0, 4998, 7)]
    assert np.array_equal(np.concatenate(portions), whole[:4998])


def test_id_past_the_vocabulary_is_named():
    tokens = np.arange(200)
    stream_of(tokens, parts=4).check()
    tokens[170] = 257  # in the last shard, far from where a run begins
    with pytest.raises(UserError, match="part 3 holds the id 257, and the vocabulary ends at 256"):
        stream_of(tokens, parts=4).check()


def test_every_chunk_is_looked_through(monkeypatch):
    """Ids and documents are looked for in pieces: those in later ones are found as well."""
    tokens = text_tokens(1000)
    expected = stream_of(tokens, seed=3).read(0, 2000)
    monkeypatch.setattr(TokenStream, "CHUNK", 64)
    assert np.array_equal(stream_of(tokens, seed=3).read(0, 2000), expected)
    tokens[-1] = 999
    with pytest.raises(UserError, match="999"):
        stream_of(tokens).check()
