"""Stopped anywhere and started again: the same bytes as a run that never stopped."""

import json

import numpy as np
import pytest
from helpers import contents, fineweb, killed, make_documents, stopped, write_parquet

import fineweb as program


def long_and_short(folder):
    """Documents that fill many shards, and shards that hold many documents, over two files."""
    documents = [*make_documents(20), "x" * 5000, *make_documents(9, seed=1), "", "y" * 1999]
    return write_parquet(folder, documents, row_group_size=4)


@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_stopped_after_any_shard_and_started_again_the_same_bytes(n, tmp_path):
    """The next shard begins at a place within a row group, often within a document."""
    source = long_and_short(tmp_path / "docs")
    assert fineweb(source, tmp_path / "whole", "--shard-size", 1000).returncode == 0
    stopped(n, source, tmp_path / "out", "--shard-size", 1000)
    assert fineweb(source, tmp_path / "out", "--shard-size", 1000).returncode == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_stopped_again_and_again(tmp_path):
    source = long_and_short(tmp_path / "docs")
    assert fineweb(source, tmp_path / "whole", "--shard-size", 1000).returncode == 0
    for n in range(1, 6):
        stopped(n, source, tmp_path / "out", "--shard-size", 1000)
    assert fineweb(source, tmp_path / "out", "--shard-size", 1000).returncode == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    """No row group before the one where the next shard begins is read, no shard written anew."""
    source, out = write_parquet(tmp_path / "docs", make_documents(75)), tmp_path / "out"
    stopped(3, source, out, "--shard-size", 4000)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.npy")}
    (file, group), _ = json.loads((out / "manifest.json").read_text())["shards"][-1]["following"]
    assert (file, group) > (0, 0)
    groups, tokenise = [], program.tokenise

    def counted(path, group, tokenizer):
        groups.append((int(path[-11:-8]), group))  # .../001.parquet
        return tokenise(path, group, tokenizer)

    monkeypatch.setattr(program, "tokenise", counted)
    assert fineweb(source, out, "--shard-size", 4000).returncode == 0
    everything = [(file, group) for file in range(2) for group in range(4)]
    assert sorted(groups) == everything[everything.index((file, group)):]
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("lost", ["docs_val_000000.npy", "docs_train_000003.npy"])
@pytest.mark.parametrize("how", ["absent", "cut", "empty", "short"])
def test_a_shard_that_is_not_there_in_full_is_written_again(how, lost, tmp_path):
    """Also in a folder whose manifest says that it is complete."""
    source, out = write_parquet(tmp_path / "docs", make_documents(75)), tmp_path / "out"
    assert fineweb(source, out, "--shard-size", 3000).returncode == 0
    before = contents(out)
    (out / lost).unlink()
    if how == "short":
        np.save(out / lost, np.zeros(1000, np.uint16))
    elif how != "absent":
        (out / lost).write_bytes(before[lost][:-1] if how == "cut" else b"")
    assert fineweb(source, out, "--shard-size", 3000).returncode == 0
    assert contents(out) == before


def test_killed_before_or_after_the_last_manifest(tmp_path):
    """A shard that is written but not yet listed is written again; a source that fills its last
    shard exactly leaves no empty one."""
    documents = ["x" * 99] * 40  # 4,000 tokens
    source = write_parquet(tmp_path / "docs", documents)
    for folder in "whole", "again":
        assert fineweb(source, tmp_path / folder, "--shard-size", 1000).returncode == 0
    manifest = json.loads((tmp_path / "again" / "manifest.json").read_text())
    assert [shard["tokens"] for shard in manifest["shards"]] == [1000] * 4
    unlisted = manifest["shards"].pop()
    manifest |= {"complete": False, "tokens": 3000, "documents": 30}
    (tmp_path / "again" / "manifest.json").write_text(json.dumps(manifest))
    assert unlisted["following"] is None
    assert fineweb(source, tmp_path / "again", "--shard-size", 1000).returncode == 0
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")


def test_shards_keep_their_names_when_the_source_has_moved(tmp_path):
    source, out = write_parquet(tmp_path / "docs", make_documents(75)), tmp_path / "out"
    assert fineweb(source, tmp_path / "whole", "--shard-size", 4000).returncode == 0
    stopped(2, source, out, "--shard-size", 4000)
    source = source.rename(tmp_path / "moved")
    assert fineweb(source, out, "--shard-size", 4000).returncode == 0
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.slow
def test_killed_half_way_and_started_again_the_same_bytes(tmp_path):
    source = write_parquet(tmp_path / "docs", make_documents(4000), row_group_size=40)
    whole, out = tmp_path / "whole", tmp_path / "killed"
    assert fineweb(source, whole, "--shard-size", 10_000).returncode == 0
    killed(source, out, "--shard-size", 10_000)
    shards = len(list(out.glob("*.npy")))
    assert 3 <= shards < len(list(whole.glob("*.npy"))), "not killed half-way"
    # what a kill in the middle of writing leaves behind, and a shard that somebody lost
    (out / ".docs_train_000009.npy.tmp").write_bytes(b"half a shard")
    (out / "docs_train_000002.npy").unlink()
    assert fineweb(source, out, "--shard-size", 10_000).returncode == 0
    assert contents(out) == contents(whole)


@pytest.mark.parametrize("following", [None, [1], [[0], 3], [[0, "1"], 3], [[0, 1], -3], "x"])
def test_a_manifest_that_does_not_say_where_to_go_on_is_refused(following, tmp_path):
    source, out = write_parquet(tmp_path / "docs", make_documents(75)), tmp_path / "out"
    stopped(3, source, out, "--shard-size", 4000)
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["shards"][-1]["following"] = following
    (out / "manifest.json").write_text(json.dumps(manifest))
    before = contents(out)
    done = fineweb(source, out, "--shard-size", 4000)
    assert done.returncode == 2 and "is not a manifest that fineweb.py wrote" in done.stderr
    assert contents(out) == before


def test_a_shard_with_a_broken_header_is_written_again(tmp_path):
    """numpy parses headers as Python literals, and fails in Python's ways."""
    source, out = write_parquet(tmp_path / "docs", make_documents(75)), tmp_path / "out"
    assert fineweb(source, out, "--shard-size", 4000).returncode == 0
    before = contents(out)
    path = out / "docs_train_000002.npy"
    path.write_bytes(path.read_bytes().replace(b"(4000,)", b"(4000,}"))
    assert fineweb(source, out, "--shard-size", 4000).returncode == 0
    assert contents(out) == before
