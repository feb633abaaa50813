"""--shuffle-rows: every row of a batch is a window from a random place, each once an epoch."""

import numpy as np
import pytest
from helpers import TINY, load_streams, small_gpt, stream_of, text_tokens, training, write_shards

import train_gpt2
from nanogpt.report import describe

T = 16


def rows_stream(n=1000, seed=5, parts=3):
    """A stream whose tokens are their own positions, with rows from random places."""
    stream = stream_of(np.arange(n), vocab_size=2**16, parts=parts)
    stream.row_seed = seed
    return stream


@pytest.mark.parametrize("n", [1000, 1001, 1007, 1015, 40, 33, 32, 18, 17])
def test_an_epoch_has_every_window_once(n):
    stream = rows_stream(n)
    windows = max(1, (n - 1) // T - 1)
    for epoch in range(3):
        starts = [stream.start(T * (epoch * windows + i), T) for i in range(windows)]
        offset = min(starts)
        assert 0 <= offset < T and sorted(starts) == list(range(offset, offset + T * windows, T))
        assert max(starts) + T + 1 <= n  # with the last row's last target


def test_orders_and_offsets_differ_from_epoch_to_epoch():
    stream = rows_stream()
    n = (1000 - 1) // T - 1
    epochs = [[stream.start(T * (epoch * n + i), T) for i in range(n)] for epoch in range(8)]
    assert len({tuple(np.argsort(starts)) for starts in epochs}) == 8
    assert len({min(starts) for starts in epochs}) > 3
    assert epochs[0] != [rows_stream(seed=6).start(T * i, T) for i in range(n)]


@pytest.mark.parametrize("B, world", [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (1, 4)])
def test_the_same_rows_for_any_B_and_ranks(B, world):
    loaders = [train_gpt2.DataLoader(rows_stream(), B, T, rank, world) for rank in range(world)]
    rows, targets = [], []
    while len(rows) < 100:
        for loader in loaders:
            x, y = loader.next_batch()
            rows, targets = rows + x.tolist(), targets + y.tolist()
    reference = rows_stream()
    for i, (x, y) in enumerate(zip(rows, targets, strict=True)):
        start = reference.start(T * i, T)
        assert x == list(range(start, start + T)) and y == list(range(start + 1, start + T + 1))


def test_without_it_rows_follow_each_other():
    stream = stream_of(np.arange(200), vocab_size=2**16)
    x, y = stream.rows(10, 3, T)
    assert x.flatten().tolist() == list(range(10, 58)) == (y.flatten() - 1).tolist()


def test_the_flag_and_the_seed_decide(tmp_path):
    folder = write_shards(tmp_path / "data")
    starts = {}
    for flags in (), ("--shuffle-rows",), ("--shuffle-rows", "--seed", "2"):
        train, val = load_streams(folder, *flags)
        assert val.row_seed is None
        starts[flags] = [train.start(8 * i, 8) for i in range(50)]
    assert starts[()] == list(range(0, 400, 8))
    assert len(set(map(tuple, starts.values()))) == 3


@pytest.mark.parametrize("flags, said", [
    ((), "in the order on disk"), (("--shuffle",), "shuffled"),
    (("--shuffle-rows",), "rows from random places"),
    (("--shuffle", "--shuffle-rows"), "rows from random places")])
def test_the_table_before_the_first_step_says_so(flags, said):
    config = train_gpt2.parse_args([*TINY, *flags])
    stream = stream_of(text_tokens(6000))
    t = training(small_gpt(), train_gpt2.DataLoader(stream, config.B, config.T), max_steps=9)
    rows = dict(describe(config, t, train_gpt2.Exam(stream, None, [])))
    assert rows["training"].endswith(f", {said}")
