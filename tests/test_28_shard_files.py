"""Training reads .npy shards from their files: whole ones, of uint16, in little memory."""

import os

import numpy as np
import pytest
from helpers import CAN_MEASURE, memory_of_reading, text_tokens

from nanogpt.common import UserError
from nanogpt.shards import open_shard


def test_a_file_holds_what_was_saved(tmp_path):
    tokens = text_tokens(1000)
    np.save(tmp_path / "a_train_000001.npy", tokens)
    shard = open_shard(tmp_path / "a_train_000001.npy")
    assert shard.n_tokens == 1000
    assert shard.open().dtype == np.uint16
    assert np.array_equal(shard.open(), tokens)


NPY_DAMAGES = {
    "cut short": lambda p: p.write_bytes(p.read_bytes()[:-100]),
    "cut in its header": lambda p: p.write_bytes(p.read_bytes()[:40]),
    "a huge shape": lambda p: p.write_bytes(p.read_bytes().replace(b"(1000,)", b"(9**99)", 1)),
    "an odd header": lambda p: p.write_bytes(p.read_bytes().replace(b"'descr'", b"[3]:{} ", 1)),
    "random bytes": lambda p: p.write_bytes(np.random.default_rng(0).bytes(5000)),
    "empty": lambda p: p.write_bytes(b""),
    "missing": lambda p: p.unlink(),
    "int64": lambda p: np.save(p, np.zeros(100, dtype=np.int64)),
    "big-endian": lambda p: np.save(p, np.zeros(100, dtype=">u2")),
    "two-dimensional": lambda p: np.save(p, np.zeros((10, 10), dtype=np.uint16)),
    "objects": lambda p: np.save(p, np.array([{}, {}], dtype=object), allow_pickle=True),
}


@pytest.mark.parametrize("damage", NPY_DAMAGES)
def test_damaged_npy_is_named(damage, tmp_path):
    """Whatever numpy raises for a file becomes a UserError of one line that names the file."""
    path = tmp_path / "x_train_000001.npy"
    np.save(path, text_tokens(1000))
    NPY_DAMAGES[damage](path)
    with pytest.raises(UserError, match="x_train_000001.npy is not a complete shard") as error:
        open_shard(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("left", [0, 500])
def test_a_shard_that_becomes_shorter_is_named(left, tmp_path):
    """Every read maps the file anew, so it is found even if it happens during a run."""
    path = tmp_path / "x_train_000001.npy"
    np.save(path, text_tokens(1000))
    shard = open_shard(path)
    os.truncate(path, left)
    with pytest.raises(UserError, match="x_train_000001.npy is shorter than it was"):
        shard.open()


@pytest.mark.skipif(not CAN_MEASURE, reason="the peak of memory is read and reset in Linux's /proc")
def test_memory_stays_below_20_MB_beyond_a_batch(tmp_path):
    """A shard of 100M tokens, read from end to end in the video's batches, is never in memory.

    Loading it as int64, as the video does, takes 800 MB; a mapping that is kept open instead of
    made anew for every read, 200 MB.
    """
    path = tmp_path / "big_train_000001.npy"
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint16, shape=(10**8,)).flush()
    assert 0 < memory_of_reading(path, step=64 * 1024) < 20e6


def test_a_shard_that_may_not_be_read_need_not_be_made_again(tmp_path, monkeypatch):
    np.save(tmp_path / "x_train_000001.npy", np.arange(5, dtype=np.uint16))

    def denied(*args, **more):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(np.lib.format, "open_memmap", denied)
    with pytest.raises(UserError, match="cannot read .*x_train_000001.npy: ask its owner"):
        open_shard(tmp_path / "x_train_000001.npy")
