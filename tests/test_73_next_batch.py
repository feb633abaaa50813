"""The next batch is read while the network computes with this one; the tokens are the same."""

import threading

import numpy as np
import pytest
from helpers import stream_of, text_tokens

from nanogpt.common import UserError
from train_gpt2 import DataLoader

TOKENS = text_tokens(1000)


class Recorded:
    """A stream that remembers who read what."""

    def __init__(self, breaks_at=None):
        self.stream, self.reads, self.breaks_at = stream_of(TOKENS), [], breaks_at

    def look_at(self, position, n):
        pass

    def rows(self, position, B, T):
        tokens = self.read(position, B * T + 1)
        return tokens[:-1].reshape(B, T), tokens[1:].reshape(B, T)

    def read(self, position, n):
        self.reads.append((position, threading.current_thread()))
        if position == self.breaks_at:
            raise UserError("a damaged shard")
        return self.stream.read(position, n)


def wait(loader):
    for batch in loader.ahead.values():
        batch.exception()


def test_the_next_one_is_read_by_another_thread():
    stream = Recorded()
    loader = DataLoader(stream, 2, 8, ddp_rank=1, ddp_world_size=2)
    loader.next_batch()
    wait(loader)
    assert [position for position, _ in stream.reads] == [16, 48]  # no one has asked for 48 yet
    assert threading.main_thread() not in [thread for _, thread in stream.reads]
    x, _ = loader.next_batch()
    wait(loader)
    assert [position for position, _ in stream.reads] == [16, 48, 80]  # and it is read once
    assert np.array_equal(x.flatten(), stream.stream.read(48, 16))


def test_a_loader_that_is_moved_reads_anew():
    """As a resume does, and find_fault."""
    loader = DataLoader(stream_of(TOKENS), 2, 8)
    loader.next_batch()
    for position in 320, 16, 16, 0:
        loader.position = position
        _, y = loader.next_batch()
        assert np.array_equal(y.flatten(), loader.stream.read(position + 1, 16))
        assert loader.position == position + 16


def test_an_error_belongs_to_its_batch():
    """A batch that is read ahead but never asked for may be damaged."""
    loader = DataLoader(Recorded(breaks_at=32), 2, 8)
    loader.next_batch()
    loader.next_batch()
    wait(loader)
    with pytest.raises(UserError, match="a damaged shard"):
        loader.next_batch()
    assert loader.position == 32
