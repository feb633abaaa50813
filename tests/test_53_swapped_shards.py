"""Shards that have the right sizes and the wrong contents are refused by their checksums."""

import numpy as np
import pytest
from helpers import fineweb, load_streams, make_documents, sign_shards, write_parquet, write_shards

from nanogpt.common import UserError


@pytest.fixture
def folder(tmp_path):
    """A validation shard, and four training shards of 1,000 tokens, with their checksums."""
    return sign_shards(write_shards(tmp_path / "shards", n_train=4000, n_val=1000, shards=4))


def look_at_all(folder):
    for stream in load_streams(folder):
        stream.check()
        stream.read(0, stream.n_tokens)


def swap(folder):
    """Two of the same size: every size in the manifest is right."""
    a, b = (folder / f"text_train_00000{i}.npy" for i in (2, 3))
    a_bytes, b_bytes = a.read_bytes(), b.read_bytes()
    a.write_bytes(b_bytes)
    b.write_bytes(a_bytes)


def change_an_id(folder, id=7):
    tokens = np.load(folder / "text_train_000002.npy")
    tokens[999] = id
    np.save(folder / "text_train_000002.npy", tokens)


def other_header(folder):
    """The same tokens as numpy writes them in another version of its format."""
    tokens = np.load(folder / "text_train_000002.npy")
    with open(folder / "text_train_000002.npy", "wb") as file:
        np.lib.format.write_array(file, tokens, version=(2, 0))


@pytest.mark.parametrize("damage", [swap, change_an_id, other_header])
def test_what_the_manifest_does_not_list_is_refused(damage, folder):
    look_at_all(folder)
    damage(folder)
    with pytest.raises(UserError, match="text_train_000002.npy is not the file that its manifest"):
        look_at_all(folder)


def test_a_manifest_that_agrees_does_not_make_ids_right(folder):
    change_an_id(folder, id=300)
    with pytest.raises(UserError, match="text_train_000002.npy holds the id 300"):
        look_at_all(sign_shards(folder))


def test_without_checksums_nothing_is_asked(tmp_path):
    """Older shards, and llm.c's, have none."""
    folder = write_shards(tmp_path / "shards", n_train=4000, n_val=1000, shards=4)
    swap(folder)
    look_at_all(folder)


def test_what_fineweb_writes_is_taken(tmp_path):
    source = write_parquet(tmp_path / "docs", make_documents(75))
    assert fineweb(source, tmp_path / "out", "--shard-size", 4000).returncode == 0
    look_at_all(tmp_path / "out")
