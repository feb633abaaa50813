"""A folder's files are train and validation shards by their names, in the order of their names."""

import numpy as np
import pytest
from helpers import TINY, load_streams, manual_documents, may_not_be_listed, start, text_tokens

from nanogpt.common import UserError
from train_gpt2 import load_data, parse_args


def test_shards_in_the_order_of_their_names(tmp_path):
    for i in 3, 10, 1, 2:
        np.save(tmp_path / f"x_train_{i:06d}.npy", np.full(i, i, dtype=np.uint16))
    np.save(tmp_path / "x_val_000000.npy", np.full(12, 7, dtype=np.uint16))
    (tmp_path / "notes.txt").write_text("not a shard")
    (tmp_path / "x_train_000004.npy.tmp").write_text("not a whole one")
    np.save(tmp_path / "lengths.npy", np.zeros(3))
    train, val = load_streams(tmp_path)
    assert [shard.n_tokens for shard in train.shards] == [1, 2, 3, 10]
    assert train.read(0, 16).tolist() == [1] + [2] * 2 + [3] * 3 + [10] * 10
    assert [shard.n_tokens for shard in val.shards] == [12]
    assert val.read(0, 12).tolist() == [7] * 12


def test_missing_folder_missing_split(tmp_path):
    with pytest.raises(UserError, match='run "python fineweb.py", or try'):
        load_streams(tmp_path / "nowhere")
    np.save(tmp_path / "x_train_000001.npy", text_tokens(100))
    with pytest.raises(UserError, match="no val shards"):
        load_streams(tmp_path)
    (tmp_path / "x_train_000001.npy").rename(tmp_path / "x_val_000001.npy")
    with pytest.raises(UserError, match="no train shards"):
        load_streams(tmp_path)


def test_a_folder_that_may_not_be_listed_is_not_taken_for_an_empty_one(tmp_path, monkeypatch):
    np.save(tmp_path / "x_train_000001.npy", text_tokens(100))
    may_not_be_listed(monkeypatch, tmp_path)
    with pytest.raises(PermissionError):  # run() makes it a line that names the folder
        load_streams(tmp_path)


def test_a_damaged_shard_stops_the_run(tmp_path):
    """Every shard is opened before a run starts, not when training comes to it."""
    for name in "x_val_000000", "x_train_000001", "x_train_000002":
        np.save(tmp_path / f"{name}.npy", text_tokens(100))
    (tmp_path / "x_train_000002.npy").write_bytes(b"damaged")
    with pytest.raises(UserError, match="x_train_000002.npy is not a complete shard"):
        load_streams(tmp_path)


def test_a_missing_folder_is_one_line_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = start("train_gpt2.py", *TINY, "--data", "nowhere")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "no train shards in nowhere" in done.stderr
    assert not list(tmp_path.iterdir())


def test_pythons_manual():
    """Without any file there is Python's manual, in bytes: text for training and for validation."""
    train, val = manual_documents()
    assert sum(map(len, train)) > 250_000 and sum(map(len, val)) > 2_000
    assert "statement" in "".join(train)
    streams = load_streams("pydoc")
    for stream in streams:
        assert [shard.name for shard in stream.shards] == [
            "pydoc_train" if stream is streams[0] else "pydoc_val"]
        assert np.array_equal(stream.read(0, 3 * stream.n_tokens // 2)[: stream.n_tokens],
                              stream.shards[0].open())
        assert stream.shards[0].open().max() == 256


def test_pythons_manual_is_bytes():
    with pytest.raises(UserError, match="pydoc was made with tokenizer bytes"):
        load_data(parse_args(["--data", "pydoc", "--vocab-size", "50257"]))
