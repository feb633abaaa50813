"""A shard's file has exactly the bytes that its header promises, or it is refused."""

import numpy as np
import pytest
from helpers import text_tokens

from nanogpt.common import UserError
from nanogpt.shards import open_shard

DAMAGES = {
    "a token more": lambda data: data + b"\0\0",
    "a byte more": lambda data: data + b"\0",
    "another file's bytes behind it": lambda data: data + data,
    "a smaller number in its header": lambda data: data.replace(b"(1000,)", b"( 999,)", 1),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_longer_than_it_says(damage, tmp_path):
    """fineweb.py never writes a file with more bytes than its header promises."""
    path = tmp_path / "x_train_000001.npy"
    np.save(path, text_tokens(1000))
    whole = path.read_bytes()
    data = DAMAGES[damage](whole)
    assert data != whole
    path.write_bytes(data)
    with pytest.raises(UserError, match="x_train_000001.npy is not a complete shard") as error:
        open_shard(path)
    n = 999 if "smaller" in damage else 1000
    assert f"{len(data)} bytes where {n} tokens need {len(whole) + 2 * (n - 1000)}" in str(
        error.value)


def test_cut_anywhere(tmp_path):
    """An interrupted copy leaves the beginning of a file: refused wherever it ends."""
    path = tmp_path / "x_train_000001.npy"
    np.save(path, text_tokens(5))
    whole = path.read_bytes()
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        with pytest.raises(UserError, match="is not a complete shard"):
            open_shard(path)
    path.write_bytes(whole)
    assert np.array_equal(open_shard(path).open(), text_tokens(5))
