"""llm.c's .bin shards are read just as ours are."""

import numpy as np
import pytest
from helpers import load_streams, text_tokens

from nanogpt.common import UserError
from nanogpt.shards import open_shard


def write_bin(path, tokens, magic=20240520, version=1):
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(tokens)
    path.write_bytes(header.tobytes() + np.asarray(tokens, dtype="<u2").tobytes())
    return path


def test_our_shards_and_llm_cs_are_read_alike(tmp_path):
    tokens = text_tokens(1000)
    tokens[:2] = 50256, 65535  # neither bytes nor signed
    np.save(tmp_path / "a_train_000001.npy", tokens)
    for path in tmp_path / "a_train_000001.npy", write_bin(tmp_path / "a_train_000002.bin", tokens):
        shard = open_shard(path)
        assert shard.n_tokens == 1000
        assert np.array_equal(shard.open(), tokens)


def test_both_kinds_in_one_folder(tmp_path):
    """Files are ordered by name, whichever ending they have."""
    write_bin(tmp_path / "x_train_000001.bin", [1] * 10)
    np.save(tmp_path / "x_train_000002.npy", np.full(10, 2, dtype=np.uint16))
    write_bin(tmp_path / "x_train_000003.bin", [3] * 10)
    write_bin(tmp_path / "x_val_000000.bin", [0] * 10)
    train, val = load_streams(tmp_path)
    assert train.read(0, 30).tolist() == [1] * 10 + [2] * 10 + [3] * 10
    assert [shard.n_tokens for shard in val.shards] == [10]


BIN_DAMAGES = {
    "cut short": lambda p: p.write_bytes(p.read_bytes()[:-100]),
    "a byte short": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "longer than it says": lambda p: p.write_bytes(p.read_bytes() + b"more"),
    "another magic number": lambda p: write_bin(p, [1] * 9, magic=20240521),
    "another version": lambda p: write_bin(p, [1], version=2),
    "empty": lambda p: p.write_bytes(b""),
    "cut in its header": lambda p: p.write_bytes(p.read_bytes()[:1020]),
    "other bytes": lambda p: p.write_bytes(b"\1" * 3000),
    "an .npy file": lambda p: np.save(open(p, "wb"), text_tokens(1000)),
}


@pytest.mark.parametrize("damage", BIN_DAMAGES)
def test_damaged_bin_is_named(damage, tmp_path):
    path = write_bin(tmp_path / "x_train_000001.bin", text_tokens(1000))
    BIN_DAMAGES[damage](path)
    with pytest.raises(UserError, match="x_train_000001.bin is not a complete shard"):
        open_shard(path)
