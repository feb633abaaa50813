"""Shards: end to end they are the documents' tokens, whatever the sizes; a file whole or absent."""

import errno
import io
import os

import numpy as np
import pytest
from helpers import (
    contents,
    expected_tokens,
    fineweb,
    make_documents,
    may_not_be_listed,
    refused,
    tokens_of,
    write_parquet,
)

from nanogpt.common import UserError
from nanogpt.disk import check_writable, whole


def test_round_trip(tmp_path):
    """All shards but the last are of --shard-size; the first is val, those after it are train."""
    documents = make_documents(75)
    source = write_parquet(tmp_path / "docs", documents)
    done = fineweb(source, tmp_path / "out", "--shard-size", 4000)
    assert done.returncode == 0, done.stderr
    assert tokens_of(tmp_path / "out").tolist() == expected_tokens(documents)
    paths = sorted((tmp_path / "out").glob("*.npy"), key=lambda path: path.name[-10:])
    assert [path.name for path in paths] == [
        f"docs_{'train' if i else 'val'}_{i:06d}.npy" for i in range(len(paths))]
    shards = [np.load(path) for path in paths]
    assert all(shard.dtype == np.uint16 and shard.ndim == 1 for shard in shards)
    assert {len(shard) for shard in shards[:-1]} == {4000} and 0 < len(shards[-1]) <= 4000
    assert f" {len(shards)} shards" in done.stdout


def test_any_document_length_and_empty_documents(tmp_path):
    """A document longer than a shard goes on in the next ones."""
    documents = ["", "x" * 12_345, None, "", "y", "z " * 3000]
    done = fineweb(write_parquet(tmp_path / "docs", documents, files=1, row_group_size=2),
                   tmp_path / "out", "--shard-size", 1000)
    assert done.returncode == 0, done.stderr
    texts = [document for document in documents if document is not None]
    assert tokens_of(tmp_path / "out").tolist() == expected_tokens(texts)


@pytest.mark.parametrize(("size", "lengths"), [
    (10, [10] * 4), (9, [9] * 4 + [4]), (39, [39, 1]), (1, [1] * 40)])
def test_the_last_shard_holds_the_rest(size, lengths, tmp_path):
    """A shard size that the source divides by leaves no empty shard at the end."""
    source = write_parquet(tmp_path / "docs", ["xyz"] * 10)  # 40 tokens
    assert fineweb(source, tmp_path / "out", "--shard-size", size).returncode == 0
    paths = sorted((tmp_path / "out").glob("*.npy"), key=lambda path: path.name[-10:])
    assert [len(np.load(path)) for path in paths] == lengths


def test_what_cannot_be_written_is_one_line(tmp_path):
    """A shard size of nothing, a source without documents, a folder that cannot be."""
    source, out = write_parquet(tmp_path / "docs", make_documents(5)), tmp_path / "out"
    refused(fineweb(source, out, "--shard-size", 0), "--shard-size 0")
    refused(fineweb(source, ""), "--out is empty")
    assert not out.exists()
    (tmp_path / "file").write_text("")
    refused(fineweb(source, tmp_path / "file" / "out"), "cannot write to")
    done = fineweb(write_parquet(tmp_path / "none", [None] * 3), out)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: ")
    assert "holds no documents" in done.stderr.splitlines()[-1]
    assert not list(out.iterdir())


def test_nothing_is_overwritten(tmp_path):
    """Shards of other documents would mix with those that are there, and be trained on."""
    out, args = tmp_path / "out", ["--shard-size", 1000]
    assert fineweb(write_parquet(tmp_path / "docs", make_documents(50)), out, *args).returncode == 0
    before = contents(out)
    assert len(before) > 3
    done = fineweb(write_parquet(tmp_path / "others", make_documents(5, seed=1)), out, *args)
    refused(done, str(out), "choose another --out, or remove that folder")
    assert contents(out) == before


def test_a_writable_folder_is_made_and_left_empty(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert not list((tmp_path / "a" / "b").iterdir())
    check_writable(tmp_path / "a")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_a_file_is_whole_or_absent(tmp_path):
    """It appears when the block ends; an error leaves what was there before and nothing beside."""
    for before in None, "old":
        for error in True, False:
            try:
                with whole(tmp_path / "file") as path:
                    path.write_text("new")
                    assert path != tmp_path / "file" and path.parent == tmp_path
                    names = [path.name, *(["file"] if before else [])]
                    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
                    if error:
                        raise RuntimeError
            except RuntimeError:
                assert error
            text = before if error else "new"
            assert [path.name for path in tmp_path.iterdir()] == (["file"] if text else [])
            assert not text or (tmp_path / "file").read_text() == text
        (tmp_path / "file").write_text("old")


def test_a_block_that_wrote_no_file_does_not_hide_its_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), whole(tmp_path / "file"):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_shard_larger_than_any_memory_is_refused(tmp_path):
    source = write_parquet(tmp_path / "docs", make_documents(2))
    for size in 2**62, 10**30:
        done = fineweb(source, tmp_path / "out", "--shard-size", size)
        assert done.returncode == 2 and f"--shard-size {size}: give" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("call", ["open", "replace"])
@pytest.mark.parametrize("number, way_out", [
    (errno.ENOSPC, "make room there"), (errno.EDQUOT, "make room there"),
    (errno.EACCES, "choose another folder"), (errno.EROFS, "choose another folder"),
    (errno.EIO, "choose another folder")])
def test_all_that_a_program_does_there_is_tried(call, number, way_out, tmp_path, monkeypatch):
    """Room is the way out of a full disk or quota alone."""
    def fails(*args, **more):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr({"open": io, "replace": os}[call], call, fails)
    with pytest.raises(UserError) as said:
        check_writable(tmp_path)
    assert str(said.value) == f"cannot write to {tmp_path} ({os.strerror(number)}): {way_out}"
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_may_not_be_listed_is_not_taken_for_an_empty_one(tmp_path, monkeypatch):
    """Its shards would be written over."""
    source = write_parquet(tmp_path / "docs", make_documents(2))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/docs_val_000000.npy").write_bytes(b"mine")
    may_not_be_listed(monkeypatch, tmp_path / "out")
    refused(fineweb(source, tmp_path / "out"), "Permission denied", str(tmp_path / "out"))
    monkeypatch.undo()
    assert contents(tmp_path / "out") == {"docs_val_000000.npy": b"mine"}
