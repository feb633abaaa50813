"""A shard's contents are held against the manifest when it is first read, and not before."""

import numpy as np
import pytest
from helpers import (
    TINY,
    load_streams,
    main_here,
    refusal,
    sign_shards,
    start,
    write_shards,
)

import train_gpt2
from common import UserError, digest
from train_gpt2 import read_log

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path):
    """A validation shard, and four training shards of 1,000 tokens, with their checksums."""
    folder = write_shards(tmp_path / "shards", n_train=4000, n_val=1000, shards=4)
    return sign_shards(folder)


def change(path, i, id):
    tokens = np.load(path)
    tokens[i] = id
    np.save(path, tokens)


def swap(a, b):
    a_bytes, b_bytes = a.read_bytes(), b.read_bytes()
    a.write_bytes(b_bytes)
    b.write_bytes(a_bytes)


@pytest.mark.parametrize("shuffle", [False, True])
def test_another_shard_in_its_place_is_found_at_the_first_read(shuffle, folder):
    """Two of the same size, swapped; the others are read as ever."""
    swap(folder / "text_train_000002.npy", folder / "text_train_000003.npy")
    train, val = load_streams(folder, shuffle=shuffle)
    train.check()
    val.check()
    refused = 0
    for _, _, position in sorted((*train.place(p)[:2], p) for p in range(0, 4000, 100)):
        name = train.shards[train.place(position)[1]].name
        if name.endswith(("2.npy", "3.npy")):
            refused += 1
            with pytest.raises(UserError, match=f"{name} is not the file that its manifest lists"):
                train.read(position, 50)
        else:
            assert len(train.read(position, 50)) == 50
    assert refused == 20


def test_one_changed_id_is_found(folder):
    change(folder / "text_train_000001.npy", 999, 7)
    train, _ = load_streams(folder)
    with pytest.raises(UserError, match="is not the file that its manifest lists"):
        train.read(0, 10)


def test_an_id_past_the_vocabulary_is_found_too(folder):
    """The manifest may agree with the file, and both be wrong."""
    change(folder / "text_train_000001.npy", 999, 300)
    sign_shards(folder)
    train, _ = load_streams(folder)
    train.check()
    with pytest.raises(UserError, match="holds the id 300"):
        train.read(0, 10)


def test_it_is_looked_at_once(folder, monkeypatch):
    looked = []
    monkeypatch.setattr(train_gpt2, "digest", lambda path: looked.append(path) or digest(path))
    train, _ = load_streams(folder, shuffle=True)
    train.check()
    assert looked == [], "the start reads nothing"
    for position in range(0, 12_000, 77):
        train.read(position, 50)
    assert sorted(looked) == [shard.name for shard in train.shards]


def test_without_checksums_all_is_looked_at_before_the_start(tmp_path):
    folder = write_shards(tmp_path / "shards")
    change(folder / "text_train_000002.npy", 19_999, 300)
    train, _ = load_streams(folder)
    with pytest.raises(UserError, match="holds the id 300"):
        train.check()


def test_the_run_ends_in_one_line_and_can_go_on(folder, tmp_path, monkeypatch, capsys):
    """The third shard is damaged: steps on the first two, a checkpoint, one line. Mended, the run
    goes on from there."""
    path = folder / "text_train_000003.npy"
    good = path.read_bytes()
    change(path, 5, 7)
    flags = [*TINY, "--data", folder, "--val-tokens", 512, "--sample-tokens", 0, "--max-steps", 7,
             "--checkpoint-every", 2, "--out-dir", tmp_path / "run"]
    said = refusal(train_gpt2.main, *flags, monkeypatch=monkeypatch, capsys=capsys)
    assert f"{path} is not the file that its manifest lists" in said
    path.write_bytes(good)
    done = start("train_gpt2.py", *flags, "--resume")
    assert done.returncode == 0, done.stderr
    assert "resumed    | at step 2 of" in done.stdout
    main_here(monkeypatch, *flags[:-1], tmp_path / "unbroken")
    assert read_log(tmp_path / "run" / "log.txt")["train"] == read_log(
        tmp_path / "unbroken" / "log.txt")["train"]
