"""Shards end to end are one endless stream, read at any position as one array would be."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import stream_of, text_tokens

from train_gpt2 import DataLoader


@pytest.mark.parametrize("parts", [2, 7])
def test_batches_follow_each_other_across_shards_and_wrap(parts):
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
    """Reading at a place gives what stands there, whatever was read before; three shards here."""
    tokens = text_tokens(1000)
    stream = stream_of(tokens, parts=3)
    three_epochs = np.tile(tokens, 3)
    for position, n in (0, 1), (332, 3), (333, 1), (990, 20), (1000, 1000), (500, 2400), (334, 0):
        read = stream.read(position, n)
        assert np.array_equal(read, three_epochs[position : position + n])
        assert read.dtype == np.int64  # torch has few uses for uint16


def test_empty_shards_are_passed_over():
    stream = stream_of([1, 2, 3], parts=7)  # the last four are empty
    assert [shard.n_tokens for shard in stream.shards] == [1, 1, 1, 0, 0, 0, 0]
    for position in range(7):
        assert stream.read(position, 8).tolist() == [(position + i) % 3 + 1 for i in range(8)]


def test_only_the_shards_in_question_are_opened():
    """A read opens the shards that it takes tokens from: a hundred files are not all opened."""
    stream, opened = stream_of(range(40), parts=4), []

    def spy(i, shard):
        return replace(shard, open=lambda: opened.append(i) or shard.open())

    stream.shards = [spy(i, shard) for i, shard in enumerate(stream.shards)]
    for position, n, expected in (12, 5, [1]), (18, 4, [1, 2]), (39, 2, [3, 0]), (60, 10, [2]):
        stream.read(position, n)
        assert opened == expected, f"{n} tokens from {position}, of shards of 10"
        opened.clear()
