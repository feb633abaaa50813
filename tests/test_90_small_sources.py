"""A source that fits into one shard is split: against the documents, and in whole runs."""

import json

import numpy as np
import pytest
from helpers import (
    TINY, contents, expected_tokens, fineweb, make_documents, refused, start, stopped, tokens_of,
    write_parquet,
)

from nanogpt.shards import find_shards


def halves(out):
    """The tokens of the two shards, validation's first, as lists."""
    names = sorted(path.name for path in out.glob("*.npy"))
    assert [name[-16:] for name in names] == ["train_000001.npy", "s_val_000000.npy"]
    return [np.load(out / name).tolist() for name in reversed(names)]


@pytest.mark.parametrize("n, share, picked", [
    (10, 0.1, [9]), (75, 0.1, range(9, 75, 10)), (100, 0.01, [99]), (3, 0.5, [1]),
    (40, 0.25, range(3, 40, 4)), (5, 0.8, [1, 2, 3, 4])])
def test_a_share_of_the_documents(n, share, picked, tmp_path):
    """Evenly spread, whole, in order: every tenth, for 0.1."""
    documents = make_documents(n)
    done = fineweb(write_parquet(tmp_path / "docs", documents), tmp_path / "out", "--val", share)
    assert done.returncode == 0, done.stderr
    val = [documents[i] for i in picked]
    train = [documents[i] for i in range(n) if i not in picked]
    assert halves(tmp_path / "out") == [expected_tokens(val), expected_tokens(train)]
    said = f"validation: {len(val)} of {n} documents, evenly spread\n"
    assert said in done.stdout and f"tokens of {n} documents in 2 shards" in done.stdout


@pytest.mark.parametrize("n, share, train", [(1, 0.1, 0.9), (9, 0.1, 0.9), (1, 0.5, 0.5),
                                             (99, 0.01, 0.99)])
def test_a_share_of_the_tokens(n, share, train, tmp_path):
    """Of fewer documents than that: the last tenth. nanoGPT cuts at int(0.9 n), too."""
    documents = ["x" * 99 for _ in range(n)]
    done = fineweb(write_parquet(tmp_path / "docs", documents), tmp_path / "out", "--val", share)
    assert done.returncode == 0, done.stderr
    tokens = expected_tokens(documents)
    cut = int(len(tokens) * train)
    assert halves(tmp_path / "out") == [tokens[cut:], tokens[:cut]]
    assert f"validation: the last {len(tokens) - cut} of {100 * n} tokens\n" in done.stdout


@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_no_half_is_empty(share, tmp_path):
    source = write_parquet(tmp_path / "docs", ["x"], files=1)
    assert fineweb(source, tmp_path / "out", "--val", share).returncode == 0
    assert halves(tmp_path / "out") == [[*b"x"], [256]]


def test_a_larger_source_is_not_split(tmp_path):
    """Its first shard is for validation, as in the video; what fits exactly is split."""
    documents = ["xyz"] * 20  # 80 tokens
    source = write_parquet(tmp_path / "docs", documents)
    for size, lengths in (79, [79, 1]), (80, [8, 72]):
        done = fineweb(source, tmp_path / str(size), "--shard-size", size)
        assert done.returncode == 0 and ("validation:" in done.stdout) == (size == 80)
        assert [len(half) for half in halves(tmp_path / str(size))] == lengths


def test_the_first_tokens_are_split(tmp_path):
    """With --max-tokens, what is left of the source."""
    source = write_parquet(tmp_path / "docs", ["xyz"] * 20)
    assert fineweb(source, tmp_path / "out", "--max-tokens", 50).returncode == 0
    expected = expected_tokens(["xyz"] * 20)
    assert halves(tmp_path / "out") == [expected[36:40], [*expected[:36], *expected[40:50]]]


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, "nan"])
def test_a_share_is_between_0_and_1(share, tmp_path):
    source = write_parquet(tmp_path / "docs", make_documents(5))
    refused(fineweb(source, tmp_path / "out", "--val", share), f"--val {float(share)}",
            "between 0 and 1")
    assert not (tmp_path / "out").exists()


def test_stopped_between_the_halves(tmp_path):
    source, out = write_parquet(tmp_path / "docs", make_documents(40)), tmp_path / "out"
    assert fineweb(source, tmp_path / "whole").returncode == 0
    stopped(1, source, out)
    assert not json.loads((out / "manifest.json").read_text())["complete"]
    assert fineweb(source, out).returncode == 0
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("lost", ["docs_val_000000.npy", "docs_train_000001.npy"])
def test_a_lost_half_is_written_again(lost, tmp_path):
    source, out = write_parquet(tmp_path / "docs", make_documents(40)), tmp_path / "out"
    assert fineweb(source, out).returncode == 0
    before = contents(out)
    (out / lost).unlink()
    assert fineweb(source, out).returncode == 0
    assert contents(out) == before


def test_a_rerun_is_free_and_another_share_is_refused(tmp_path):
    source, out = write_parquet(tmp_path / "docs", make_documents(40)), tmp_path / "out"
    first = fineweb(source, out)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    done = fineweb(source, out)
    assert done.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]
    refused(fineweb(source, out, "--val", 0.2), "val = 0.1, not 0.2")
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_a_lone_validation_shard_of_before_is_split(tmp_path):
    """fineweb.py used to write nothing else of such a source, and called it complete."""
    source, out = write_parquet(tmp_path / "docs", make_documents(40)), tmp_path / "out"
    assert fineweb(source, tmp_path / "new").returncode == 0
    out.mkdir()
    np.save(out / "docs_val_000000.npy", np.array(expected_tokens(make_documents(40)), np.uint16))
    manifest = json.loads((tmp_path / "new" / "manifest.json").read_text())
    manifest["shards"] = [{"file": "docs_val_000000.npy", "documents": 40, "sha256": "",
                           "tokens": len(expected_tokens(make_documents(40))), "following": None}]
    del manifest["val"], manifest["column"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert fineweb(source, out).returncode == 0
    assert tokens_of(out).tolist() == tokens_of(tmp_path / "new").tolist()
    assert [len(shards) for shards in find_shards(out, "bytes")] == [1, 1]


def test_nothing_to_split_is_refused(tmp_path):
    """One empty document is one token."""
    done = fineweb(write_parquet(tmp_path / "docs", [""], files=1), tmp_path / "out")
    assert done.returncode == 2 and "docs holds no documents" in done.stderr
    assert not list((tmp_path / "out").iterdir())


def test_from_a_small_source_to_a_model(tmp_path, monkeypatch):
    """Two commands."""
    monkeypatch.chdir(tmp_path)
    write_parquet(tmp_path / "docs", make_documents(60))
    assert fineweb("docs", "shards").returncode == 0
    done = start("train_gpt2.py", *TINY, "--data", "shards", "--out-dir", "log", "--max-steps", 3,
                 "--val-tokens", 512, "--checkpoint-every", 3)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "log" / "checkpoint_000003").is_dir()
