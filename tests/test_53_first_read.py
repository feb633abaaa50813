"""A shard's contents are compared with the manifest when it is first read, and not before."""

from collections import Counter

import numpy as np
import pytest
import torch
from helpers import (
    TINY,
    load_streams,
    main_here,
    refusal,
    sign_shards,
    small_gpt,
    start,
    write_shards,
)

import train_gpt2
from nanogpt.common import UserError
from nanogpt.disk import digest
from nanogpt.ranks import Ranks
from nanogpt.shards import TokenStream
from nanogpt.report import read_log

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
    """Two of the same size, swapped; the others are read as before."""
    swap(folder / "text_train_000002.npy", folder / "text_train_000003.npy")
    train, val = load_streams(folder, shuffle=shuffle)
    train.check()
    val.check()
    said = Counter()
    for position in range(0, 4000, 100):
        try:
            said[len(train.read(position, 50))] += 1
        except UserError as error:
            said[str(error).partition(" is not the file that its manifest lists")[0]] += 1
    assert said == {50: 20, str(folder / "text_train_000002.npy"): 10,
                    str(folder / "text_train_000003.npy"): 10}


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
    monkeypatch.setattr("nanogpt.shards.digest", lambda path: looked.append(path) or digest(path))
    train, _ = load_streams(folder, shuffle=True)
    train.check()
    assert looked == [], "the start reads nothing"
    for position in range(0, 12_000, 77):
        train.read(position, 50)
    assert sorted(looked) == [shard.name for shard in train.shards]


def test_who_need_not_compare_reads_at_once(folder, monkeypatch):
    """With verify=False a shard is read as it is, and its file is not hashed."""
    looked = []
    monkeypatch.setattr("nanogpt.shards.digest", lambda path: looked.append(path) or digest(path))
    for name in "text_train_000001.npy", "text_val_000000.npy":
        change(folder / name, 999, 7)
    for stream in load_streams(folder, verify=False):
        path = stream.shards[0].name
        assert np.array_equal(stream.read(0, 1000), np.load(path)) and looked == []
    for stream in load_streams(folder, verify=True):
        with pytest.raises(UserError, match="is not the file that its manifest lists"):
            stream.read(0, 1000)
        assert looked.pop() == stream.shards[0].name


def test_who_compares_looks_for_all_ranks(folder):
    """The change lies where rank 1 of 2 reads; rank 0, which reads another shard, finds it."""
    change(folder / "text_train_000002.npy", 999, 7)
    train, val = load_streams(folder)
    T = train.shards[0].n_tokens - 1
    with pytest.raises(UserError, match="text_train_000002.npy is not the file"):
        train_gpt2.DataLoader(train, 1, T, 0, 2).next_batch()
    train, _ = load_streams(folder, verify=False)
    x, _ = train_gpt2.DataLoader(train, 1, T, 1, 2).next_batch()
    assert x.shape == (1, T)


def test_validation_is_looked_at_for_all_ranks(folder):
    """Two validation shards, the second read by rank 1 of 2 alone."""
    shards = load_streams(folder)[0].shards[:2]
    change(folder / "text_train_000002.npy", 999, 7)
    stream = TokenStream(shards, 257)
    with pytest.raises(UserError, match="text_train_000002.npy is not the file"):
        train_gpt2.validate(small_gpt(), stream, stream.n_tokens, 4, 16,
                            Ranks(torch.device("cpu"), True, 0, 0, 2))


def test_one_rank_on_a_machine_compares(monkeypatch, capsys):
    """Four ranks on two machines: one rank checks each machine's disk."""
    compared = []

    def load_data(config, verify):
        compared.append(verify)
        raise UserError("this is enough")

    monkeypatch.setattr(train_gpt2, "load_data", load_data)
    for rank in range(4):
        ranks = Ranks(torch.device("cpu"), False, rank, rank % 2, 4)
        monkeypatch.setattr(train_gpt2, "init_ranks", lambda *names, ranks=ranks: ranks)
        refusal(train_gpt2.main, *TINY, "--B", 4, monkeypatch=monkeypatch, capsys=capsys)
    assert compared == [True, False, True, False]


def test_without_checksums_all_is_looked_at_before_the_start(tmp_path):
    folder = write_shards(tmp_path / "shards")
    change(folder / "text_train_000002.npy", 19_999, 300)
    train, _ = load_streams(folder)
    with pytest.raises(UserError, match="holds the id 300"):
        train.check()


def test_the_run_ends_in_one_line_and_can_go_on(folder, tmp_path, monkeypatch, capsys):
    """The third shard is damaged: steps on the first two, a checkpoint, one line. Once it is
    repaired, the run resumes from there."""
    path = folder / "text_train_000003.npy"
    good = path.read_bytes()
    change(path, 5, 7)
    flags = [*TINY, "--data", folder, "--val-tokens", 512, "--sample-tokens", 0, "--max-steps", 7,
             "--checkpoint-every", 2, "--out-dir", tmp_path / "run"]
    said = refusal(train_gpt2.main, *flags, monkeypatch=monkeypatch, capsys=capsys)
    assert f"{path} is not the file that its manifest lists" in said
    assert (tmp_path / "run" / "checkpoint_000002").exists()
    path.write_bytes(good)
    done = start("train_gpt2.py", *flags, "--resume")
    assert done.returncode == 0, done.stderr
    assert "resumed    | at step 2 of" in done.stdout
    main_here(monkeypatch, *flags[:-1], tmp_path / "unbroken")
    assert read_log(tmp_path / "run" / "log.txt")["train"] == read_log(
        tmp_path / "unbroken" / "log.txt")["train"]
