"""The stream: consecutive, endless, nothing lost between batches or epochs."""

import numpy as np
from helpers import stream_of, text_tokens

from train_gpt2 import DataLoader


def test_batches_follow_each_other_and_wrap():
    """The next batch begins where the last one ended; the end is followed by the beginning."""
    n = 103  # a prime
    loader = DataLoader(stream_of(range(n)), B=2, T=4)
    taken = []
    for _ in range(30):  # over two epochs
        x, y = loader.next_batch()
        assert y.flatten().tolist() == [(i + 1) % n for i in x.flatten().tolist()]
        taken += x.flatten().tolist()
    assert taken == [i % n for i in range(240)]
    assert loader.position == 240


def test_read_is_a_function_of_position():
    tokens = text_tokens(1000)
    stream = stream_of(tokens)
    three_epochs = np.tile(tokens, 3)
    for position, n in (0, 1), (332, 3), (333, 1), (990, 20), (1000, 1000), (500, 2400):
        assert np.array_equal(stream.read(position, n), three_epochs[position : position + n])
