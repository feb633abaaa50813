"""--seed: every document once, in an order that the seed alone decides, far from the source's."""

import json

import pytest
from helpers import (
    contents,
    fineweb,
    killed,
    make_documents,
    refused,
    stopped,
    tokens_of,
    write_parquet,
)


def texts(tokens):
    return bytes(t if t < 256 else 0 for t in tokens).split(b"\0")[1:]


def test_seed_shuffles_documents_and_nothing_else(tmp_path):
    """The same for the same seed, whatever the workers; another for another."""
    documents = make_documents(300)
    source = write_parquet(tmp_path / "docs", documents, row_group_size=3)  # two windows of groups
    streams = {}
    for name, args in {"a": ["--seed", 1], "again": ["--seed", 1, "--workers", 1],
                       "b": ["--seed", 2]}.items():
        done = fineweb(source, tmp_path / name, "--shard-size", 20_000, *args)
        assert done.returncode == 0, done.stderr
        streams[name] = tokens_of(tmp_path / name).tolist()
    assert streams["a"] == streams["again"] != streams["b"]
    in_order = [text.encode() for text in documents]
    assert sorted(texts(streams["a"])) == sorted(texts(streams["b"])) == sorted(in_order)
    # far from the source's order: a document's neighbour is rarely its old one
    place = {text: i for i, text in enumerate(in_order)}
    places = [place[text] for text in texts(streams["a"])]
    assert sum(b - a == 1 for a, b in zip(places, places[1:], strict=False)) < 15
    assert json.loads((tmp_path / "b" / "manifest.json").read_text())["order_seed"] == 2


def test_documents_of_a_window_are_mixed(tmp_path):
    """Any ten documents in a row come from three or more of the window's eight row groups."""
    documents = [f"{i:02d}" for i in range(80)]
    source = write_parquet(tmp_path / "docs", documents, row_group_size=10)
    assert fineweb(source, tmp_path / "out", "--seed", 0).returncode == 0
    order = [int(text) for text in texts(tokens_of(tmp_path / "out"))]
    assert sorted(order) == list(range(80))
    assert all(len({i // 10 for i in order[k : k + 10]}) >= 3 for k in range(71))


def test_without_a_seed_the_sources_order(tmp_path):
    documents = make_documents(75)
    source = write_parquet(tmp_path / "docs", documents)
    assert fineweb(source, tmp_path / "out", "--shard-size", 5000).returncode == 0
    assert texts(tokens_of(tmp_path / "out")) == [text.encode() for text in documents]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["order_seed"] is None


@pytest.mark.parametrize("n", [1, 3, 9])
def test_stopped_and_started_again_the_same_bytes(n, tmp_path):
    """In the first window or in the second, which begins again with its own order."""
    source = write_parquet(tmp_path / "docs", make_documents(300), row_group_size=3)
    args = ["--shard-size", 7000, "--seed", 1]
    assert fineweb(source, tmp_path / "whole", *args).returncode == 0
    stopped(n, source, tmp_path / "out", *args)
    assert fineweb(source, tmp_path / "out", *args).returncode == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_another_seed_does_not_touch_what_is_there(tmp_path):
    source, out = write_parquet(tmp_path / "docs", make_documents(50)), tmp_path / "out"
    assert fineweb(source, out, "--shard-size", 2000).returncode == 0
    before = contents(out)
    refused(fineweb(source, out, "--shard-size", 2000, "--seed", 1), "order_seed = None, not 1")
    assert contents(out) == before


def test_a_seed_below_zero_is_one_line(tmp_path):
    source, out = write_parquet(tmp_path / "docs", make_documents(5)), tmp_path / "out"
    refused(fineweb(source, out, "--seed", -1), "--seed -1", "give 0 or more")
    assert not out.exists()


@pytest.mark.slow
def test_killed_half_way_and_started_again_the_same_bytes(tmp_path):
    source = write_parquet(tmp_path / "docs", make_documents(4000), row_group_size=40)
    whole, out = tmp_path / "whole", tmp_path / "killed"
    args = ["--shard-size", 10_000, "--seed", 1]
    assert fineweb(source, whole, *args).returncode == 0
    killed(source, out, *args)
    shards = len(list(out.glob("*.npy")))
    assert 3 <= shards < len(list(whole.glob("*.npy"))), "not killed half-way"
    (out / "docs_train_000002.npy").unlink()
    assert fineweb(source, out, *args).returncode == 0
    assert contents(out) == contents(whole)
