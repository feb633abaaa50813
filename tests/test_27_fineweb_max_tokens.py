"""--max-tokens: the first so many tokens of the stream, to the token, and no more work."""

import json

import numpy as np
import pytest
from helpers import (
    contents,
    expected_tokens,
    fineweb,
    killed,
    make_documents,
    refused,
    stopped,
    tokens_of,
    write_parquet,
)

import fineweb as program


@pytest.mark.parametrize("n", [5555, 4000, 2001, 10**6])
def test_max_tokens(n, tmp_path):
    """Within a shard, at the end of one, one token after the first, more than there are."""
    documents = make_documents(75)
    done = fineweb(write_parquet(tmp_path / "docs", documents), tmp_path / "out",
                   "--shard-size", 2000, "--max-tokens", n)
    assert done.returncode == 0, done.stderr
    expected = expected_tokens(documents)[:n]
    assert tokens_of(tmp_path / "out").tolist() == expected
    paths = sorted((tmp_path / "out").glob("*.npy"), key=lambda path: path.name[-10:])
    sizes = [len(np.load(path)) for path in paths]
    assert set(sizes[:-1]) <= {2000} and 0 < sizes[-1] <= 2000
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["max_tokens"], manifest["complete"]) == (n, True)
    assert (manifest["tokens"], manifest["documents"]) == (len(expected), expected.count(256))
    assert [shard["tokens"] for shard in manifest["shards"]] == sizes


def test_no_more_is_read_than_is_needed(tmp_path, monkeypatch):
    """The first of 100 row groups is enough; the two workers' queue holds four."""
    groups, tokenise = [], program.tokenise

    def counted(path, group, tokenizer):
        groups.append((path, group))
        return tokenise(path, group, tokenizer)

    monkeypatch.setattr(program, "tokenise", counted)
    source = write_parquet(tmp_path / "docs", make_documents(300), row_group_size=3)
    assert fineweb(source, tmp_path / "out", "--max-tokens", 100).returncode == 0
    assert 1 <= len(groups) <= 4


@pytest.mark.parametrize("n", [1, 2])
def test_stopped_and_started_again_the_same_bytes(n, tmp_path):
    """What was written before the stop counts."""
    source = write_parquet(tmp_path / "docs", make_documents(75))
    args = ["--shard-size", 2000, "--max-tokens", 5555]
    assert fineweb(source, tmp_path / "whole", *args).returncode == 0
    stopped(n, source, tmp_path / "out", *args)
    assert fineweb(source, tmp_path / "out", *args).returncode == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_another_number_does_not_touch_what_is_there(tmp_path):
    source, out = write_parquet(tmp_path / "docs", make_documents(50)), tmp_path / "out"
    assert fineweb(source, out, "--max-tokens", 5555).returncode == 0
    before = contents(out)
    refused(fineweb(source, out, "--max-tokens", 6000), "max_tokens = 5555, not 6000")
    refused(fineweb(source, out), "max_tokens = 5555, not None")
    assert contents(out) == before


def test_no_tokens_are_one_line(tmp_path):
    source, out = write_parquet(tmp_path / "docs", make_documents(5)), tmp_path / "out"
    for flag in "--max-tokens", "--shard-size", "--workers":
        refused(fineweb(source, out, flag, 0), f"{flag} 0", "give 1 or more")
    assert not out.exists()


@pytest.mark.slow
def test_killed_half_way_and_started_again_the_same_bytes(tmp_path):
    source = write_parquet(tmp_path / "docs", make_documents(4000), row_group_size=40)
    whole, out = tmp_path / "whole", tmp_path / "killed"
    args = ["--shard-size", 10_000, "--max-tokens", 900_123]
    assert fineweb(source, whole, *args).returncode == 0
    killed(source, out, *args)
    shards = len(list(out.glob("*.npy")))
    assert 3 <= shards < len(list(whole.glob("*.npy"))), "not killed half-way"
    (out / "docs_train_000002.npy").unlink()
    assert fineweb(source, out, *args).returncode == 0
    assert contents(out) == contents(whole)
