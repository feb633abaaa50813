"""nanoGPT's train.bin and val.bin are shards: against the ids that were written."""

import numpy as np
import pytest
from helpers import load_streams, text_tokens, write_shards

from nanogpt.common import UserError
from nanogpt.shards import find_shards, open_shard


def nanogpts(folder, train, val):
    """A folder as nanoGPT's prepare.py writes it: tokens.tofile, and perhaps a pickle."""
    folder.mkdir()
    np.asarray(train, np.uint16).tofile(folder / "train.bin")
    np.asarray(val, np.uint16).tofile(folder / "val.bin")
    (folder / "meta.pkl").write_bytes(b"cos\nsystem\n(S'touch " + str(folder / "opened").encode()
                                      + b"'\ntR.")
    return folder


def test_nanogpts_files_are_read(tmp_path):
    """Its pickle is not."""
    folder = nanogpts(tmp_path / "a", text_tokens(5000), text_tokens(600, seed=1))
    train, val = load_streams(folder)
    assert train.read(0, 5000).tolist() == text_tokens(5000).tolist()
    assert val.read(0, 600).tolist() == text_tokens(600, seed=1).tolist()
    assert [len(shards) for shards in find_shards(folder, "gpt2")] == [1, 1]
    assert not (folder / "opened").exists()


def test_ids_past_the_vocabulary_are_refused(tmp_path):
    train, _ = load_streams(nanogpts(tmp_path / "a", [50256] * 99, [0] * 99))
    with pytest.raises(UserError, match=r"train.bin holds the id 50256, and the vocabulary ends"):
        train.check()


@pytest.mark.parametrize("name", ["x_train_000001.bin", "training.bin", "train.bin.bin"])
def test_other_names_need_a_header(name, tmp_path):
    text_tokens(5000).tofile(tmp_path / name)
    with pytest.raises(UserError, match="no llm.c header"):
        open_shard(tmp_path / name)


def test_half_a_token_is_refused(tmp_path):
    (tmp_path / "train.bin").write_bytes(b"\1" * 2001)
    with pytest.raises(UserError, match="2001 bytes where 1000 tokens need 2000"):
        open_shard(tmp_path / "train.bin")


def test_only_these_two_names(tmp_path):
    """Other files whose names end like them are no shards."""
    folder = write_shards(tmp_path / "a", manifest=False)
    for name in "my-train.bin", "train.npy", "val.txt", "train.bin.old":
        (folder / name).write_bytes(b"\1" * 100)
    assert [len(shards) for shards in find_shards(folder, "bytes")] == [2, 1]
