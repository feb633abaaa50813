"""Repeating the command costs nothing; another command does not touch what is there."""

import numpy as np
import pytest
from helpers import contents, fineweb, make_documents, refused, write_parquet

import fineweb as program


def test_a_rerun_is_free(tmp_path, monkeypatch):
    """It says what the first run said, reads no document and touches no file."""
    source, out = write_parquet(tmp_path / "docs", make_documents(50)), tmp_path / "out"
    first = fineweb(source, out, "--shard-size", 2000)
    assert first.returncode == 0, first.stderr
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    monkeypatch.setattr(program, "tokenise", None)
    monkeypatch.setattr(program, "write_shard", None)
    done = fineweb(source, out, "--shard-size", 2000)
    assert done.returncode == 0 and "tokens of 50 documents" in done.stdout
    assert done.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_the_sources_folder_may_have_moved(tmp_path):
    """What counts is the names and sizes of its files, not where they are."""
    source, out = write_parquet(tmp_path / "docs", make_documents(50)), tmp_path / "out"
    assert fineweb(source, out, "--shard-size", 2000).returncode == 0
    before = contents(out)
    source = source.rename(tmp_path / "moved")
    done = fineweb(source, out, "--shard-size", 2000)
    assert done.returncode == 0, done.stderr
    assert contents(out) == before


def test_nothing_of_another_run_is_overwritten(tmp_path):
    """The message names what differs and both its values."""
    source, out = write_parquet(tmp_path / "docs", make_documents(50)), tmp_path / "out"
    assert fineweb(source, out, "--shard-size", 2000).returncode == 0
    before = contents(out)
    refused(fineweb(source, out, "--shard-size", 3000), "shard_size = 2000, not 3000")
    refused(fineweb(write_parquet(tmp_path / "other", make_documents(9)), out, "--shard-size",
                    2000), "files")
    assert contents(out) == before
    (out / "manifest.json").unlink()
    refused(fineweb(source, out, "--shard-size", 2000), "no manifest.json")
    assert contents(out).items() <= before.items()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"tokenizer": "bytes"}', "\xff"])
def test_no_manifest_of_ours_is_one_line(text, tmp_path):
    """From another program or damaged: it is left alone, and so are the files next to it."""
    source, out = write_parquet(tmp_path / "docs", make_documents(5)), tmp_path / "out"
    out.mkdir()
    (out / "manifest.json").write_bytes(text.encode("latin-1"))
    refused(fineweb(source, out), "is not a manifest that fineweb.py wrote", "another --out")
    assert contents(out) == {"manifest.json": text.encode("latin-1")}


def test_a_shard_that_may_not_be_read_is_not_made_again(tmp_path, monkeypatch):
    """Another user's, say: it is whole, and so are those after it."""
    source, out = write_parquet(tmp_path / "docs", make_documents(75)), tmp_path / "out"
    assert fineweb(source, out, "--shard-size", 4000).returncode == 0
    before = contents(out)

    def denied(*args, **more):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(np.lib.format, "open_memmap", denied)
    refused(fineweb(source, out, "--shard-size", 4000), "cannot read", "docs_val_000000.npy",
            "Permission denied", "fix that")
    assert contents(out) == before
