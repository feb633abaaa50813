"""Every id is checked against the vocabulary before a run starts, in chunks, to the last one."""

import numpy as np
import pytest
from helpers import TINY, start, stream_of, text_tokens, write_shards

from nanogpt.common import UserError
from nanogpt.shards import TokenStream


def test_id_past_the_vocabulary_is_named():
    tokens = np.arange(200)
    tokens[5] = 256  # the last id that there is
    stream_of(tokens, parts=4).check()
    tokens[170] = 257  # in the last shard, far from where a run begins
    with pytest.raises(UserError, match="part 3 holds the id 257, and the vocabulary ends at 256"):
        stream_of(tokens, parts=4).check()


@pytest.mark.parametrize("place", [0, 63, 64, 500, 959, 960, 999])
def test_every_chunk_is_looked_through(place, monkeypatch):
    """CHUNK tokens are checked at a time: up to both ends, and in the last chunk too."""
    monkeypatch.setattr(TokenStream, "CHUNK", 64)
    tokens = text_tokens(1000)
    stream_of(tokens).check()
    tokens[place] = 999
    with pytest.raises(UserError, match="999"):
        stream_of(tokens).check()


@pytest.mark.parametrize("file", ["text_val_000000", "text_train_000002"])
def test_a_run_looks_before_it_starts(file, tmp_path, monkeypatch):
    """main() checks both streams before training, and before anything is written."""
    monkeypatch.chdir(tmp_path)
    path = write_shards(tmp_path / "shards", n_train=4000, n_val=600) / f"{file}.npy"
    tokens = np.load(path)
    tokens[-1] = 50256
    np.save(path, tokens)
    done = start("train_gpt2.py", *TINY, "--data", "shards", "--max-steps", 1)
    assert done.returncode == 2
    assert f"{file}.npy holds the id 50256, and the vocabulary ends at 256" in done.stderr
    assert "step" not in done.stdout and len(list(tmp_path.iterdir())) == 1
