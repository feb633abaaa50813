"""Each shard's documents are shuffled whole, the same way for every B and number of ranks."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
import torch
from helpers import CAN_MEASURE, memory_of_reading, stream_of, text_tokens

from train_gpt2 import DataLoader
from nanogpt.shards import TokenStream


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


@pytest.mark.parametrize("parts", [[7, 8, 9], [256, 9]])
def test_every_order_of_the_documents_comes_equally_often(parts):
    """The rest of a document at the beginning of a shard moves like a document.

    Three have six orders: each comes in a sixth of 600 epochs, within five standard deviations.
    """
    pieces = [parts, [256, 1], [256, 2, 3]]
    tokens = sum(pieces, [])
    stream = stream_of(tokens, seed=1)
    orders = Counter(tuple(stream.read(len(tokens) * epoch, len(tokens))) for epoch in range(600))
    assert set(orders) == {tuple(sum(order, [])) for order in permutations(pieces)}
    assert all(abs(n - 100) < 5 * (600 * 1 / 6 * 5 / 6) ** 0.5 for n in orders.values()), orders


def test_shards_have_orders_of_their_own():
    """Two shards with equally many documents get different orders, in every epoch."""
    tokens = np.concatenate([[256, part] for part in range(40)])
    stream = stream_of(tokens, seed=1, parts=2)
    orders = set()
    for epoch in range(3):
        read = stream.read(80 * epoch, 80)[1::2]
        for half in read[:20], read[20:]:
            assert sorted(half % 20) == list(range(20)) and len(set(half // 20)) == 1
            orders.add(tuple(half % 20))
    assert len(orders) == 6


def test_documents_are_found_in_every_chunk(monkeypatch):
    """Documents are searched for CHUNK tokens at a time: those in later chunks are found too."""
    tokens = text_tokens(1000)
    expected = stream_of(tokens, seed=3).read(0, 2000)
    for chunk in 64, 333, 999, 1000:
        monkeypatch.setattr(TokenStream, "CHUNK", chunk)
        assert np.array_equal(stream_of(tokens, seed=3).read(0, 2000), expected), chunk


@pytest.mark.parametrize("world, B", [(2, 4), (4, 2), (8, 1), (2, 2), (1, 2)])
@pytest.mark.parametrize("seed", [None, 3])
def test_tokens_of_a_step_do_not_depend_on_ranks_or_B(world, B, seed):
    T, total = 5, 40
    tokens = [256 if i % 9 == 0 else i % 250 for i in range(123)]
    one = DataLoader(stream_of(tokens, seed=seed, parts=3), total // T, T)
    ranks = [DataLoader(stream_of(tokens, seed=seed, parts=3), B, T, rank, world)
             for rank in range(world)]
    for _ in range(12):  # past shard ends and epoch ends
        x, y = one.next_batch()
        rows = []
        for _ in range(total // (B * T * world)):
            rows += [loader.next_batch() for loader in ranks]
        assert torch.equal(torch.cat([row[0] for row in rows]), x)
        assert torch.equal(torch.cat([row[1] for row in rows]), y)
        assert {loader.position for loader in ranks} == {one.position}


@pytest.mark.slow
@pytest.mark.skipif(not CAN_MEASURE, reason="the peak of memory is read and reset in Linux's /proc")
def test_memory_stays_below_200_MB_beyond_a_batch(tmp_path):
    """Shuffling a shard of 100M tokens keeps only the places of its documents in memory.

    Loading it as int64, as the video does, takes 800 MB. The limit is generous because the pages
    mapped for one batch count too, and the system decides how many to map around each document.
    """
    path = tmp_path / "big_train_000001.npy"
    tokens = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint16, shape=(10**8,))
    tokens[::500] = 50256
    tokens.flush()
    del tokens
    assert 0 < memory_of_reading(path, step=2 * 10**6, seed=1) < 200e6
