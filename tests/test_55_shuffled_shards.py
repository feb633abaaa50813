"""Every epoch takes all the shards, each whole, in a new order that the seed determines."""

from collections import Counter

import numpy as np
import pytest
from helpers import load_streams, stream_of, text_tokens, write_shards

from train_gpt2 import DataLoader


def test_shuffling_shuffles_shards():
    tokens = np.concatenate([[256, part] for part in range(50)])  # 50 documents of one token
    stream = stream_of(tokens, seed=1, parts=10)
    first_of_shards = [set(stream.read(e * 100, 10)) - {256} for e in range(6)]
    assert len({min(s) // 5 for s in first_of_shards}) > 1  # not always the first shard
    for e in range(6):
        assert sorted(stream.read(e * 100, 100)) == sorted(tokens)


def test_every_order_of_the_shards_comes_equally_often():
    """Three shards have six orders: each comes in a sixth of 600 epochs, within five deviations."""
    stream = stream_of(np.repeat([1, 2, 3], 4), seed=1, parts=3)
    orders = Counter()
    for epoch in range(600):
        read = stream.read(12 * epoch, 12)
        assert np.array_equal(read, np.repeat(read[::4], 4))  # no shard begins before another ends
        orders[tuple(read[::4])] += 1
    assert len(orders) == 6 and all(len(set(order)) == 3 for order in orders)
    assert all(abs(n - 100) < 5 * (600 * 1 / 6 * 5 / 6) ** 0.5 for n in orders.values()), orders


def test_the_order_depends_on_seed_and_epoch_alone():
    """A stream that reads back and forth finds what a fresh one finds: no state is carried."""
    tokens = text_tokens(2000)
    stream = stream_of(tokens, seed=3, parts=8)
    for position in np.random.default_rng(0).integers(0, 40_000, size=60).tolist():
        fresh = stream_of(tokens, seed=3, parts=8)
        assert np.array_equal(stream.read(position, 300), fresh.read(position, 300))
    assert not np.array_equal(stream_of(tokens, seed=4, parts=8).read(0, 2000),
                              stream.read(0, 2000))


@pytest.mark.parametrize("portion", [7, 499, 500, 2001])
def test_reading_across_shuffled_shards_in_any_portions(portion):
    stream = stream_of(text_tokens(2000), seed=3, parts=4)
    whole = stream.read(0, 5000)
    portions = [stream.read(i, portion) for i in range(0, 5000, portion)]
    assert np.array_equal(np.concatenate(portions)[:5000], whole)


def test_targets_are_ahead_of_inputs_across_epochs():
    """The last target of an epoch is the next epoch's first token, in its order."""
    loader = DataLoader(stream_of(range(60), seed=2, parts=6), B=2, T=4)
    batches = [loader.next_batch() for _ in range(20)]
    x, y = (np.concatenate([batch[i].flatten() for batch in batches]) for i in (0, 1))
    assert np.array_equal(x[1:], y[:-1])
    assert sorted(x[:60]) == sorted(x[60:120]) == list(range(60))


def test_training_is_shuffled_where_it_is_wanted_and_validation_never(tmp_path):
    """--shuffle hands --seed to the training stream; --no-shuffle keeps the order on disk."""
    folder = write_shards(tmp_path, n_train=800, n_val=160, shards=8, manifest=False)
    for i in 1, 2, 3:  # one shard has one order: validation must have several to show it
        np.save(folder / f"text_val_{i:06d}.npy", text_tokens(160, seed=10 + i))
    disk = np.concatenate([np.load(p) for p in sorted(folder.glob("*_train_*.npy"))])
    val_on_disk = np.concatenate([np.load(p) for p in sorted(folder.glob("*_val_*.npy"))])
    for shuffle in False, True:
        train, val = load_streams(folder, "--seed", "5", shuffle=shuffle)
        epochs = train.read(0, 800), train.read(800, 800)
        assert np.array_equal(epochs[0], disk) == np.array_equal(epochs[1], disk) != shuffle
        assert np.array_equal(sorted(epochs[1]), sorted(disk))
        assert np.array_equal(val.read(0, 3 * 640), np.tile(val_on_disk, 3))
    other, _ = load_streams(folder, "--seed", "6", shuffle=True)
    assert not np.array_equal(other.read(0, 800), train.read(0, 800))
