"""The error names the micro-batch at fault: its rank, its position in the data, its shard."""

import math
import os

import numpy as np
import pytest
from helpers import (
    ROOT,
    TINY,
    free_port,
    lively_gpt,
    main_here,
    stream_of,
    text_tokens,
    together,
    update,
    write_shards,
)

import train_gpt2
from nanogpt.common import UserError
from train_gpt2 import DataLoader, configure_optimizer

BAD = 0  # a byte that no text has


def poisoned(self, idx, targets=None, forward=train_gpt2.GPT.forward):
    """A network whose loss is NaN when it reads the bad token."""
    logits, loss = forward(self, idx, targets)
    return logits, loss * (math.nan if (idx == BAD).any() else 1) if loss is not None else None


@pytest.mark.parametrize("token", [64, 127, 128, 300, 511])
def test_the_micro_batch_is_found(token, monkeypatch):
    """One of eight micro-batches of 64 tokens has the bad token; it is in the second shard."""
    monkeypatch.setattr(train_gpt2.GPT, "forward", poisoned)
    tokens = text_tokens(640)
    tokens[64 + token] = BAD
    model = lively_gpt()
    loader = DataLoader(stream_of(tokens, parts=10), 4, 16, position=64)
    with pytest.raises(UserError) as error:
        update(model, loader, configure_optimizer(model, 0.1, 1e-3), 1e-3, steps=8)
    begins = 64 + token // 64 * 64
    assert f"from the 64 tokens of rank 0 at {begins} (token 0 of part {begins // 64}" in str(
        error.value)
    assert BAD in loader.stream.read(begins, 64)  # the error says where to look


def test_a_gradient_too_large_for_its_norm_is_found(monkeypatch):
    """Every gradient is finite, but the sum of their squares is not."""
    def steep(self, idx, targets=None, forward=train_gpt2.GPT.forward):
        logits, loss = forward(self, idx, targets)
        wild = self.transformer.ln_f.bias.sum() * 1e30
        return logits, loss + (wild - wild.detach()) * (idx == BAD).any()

    monkeypatch.setattr(train_gpt2.GPT, "forward", steep)
    tokens = text_tokens(640)
    tokens[200] = BAD
    model = lively_gpt()
    with pytest.raises(UserError, match="gradient norm inf .* of rank 0 at 192"):
        update(model, DataLoader(stream_of(tokens), 4, 16),
               configure_optimizer(model, 0.1, 1e-3), 1e-3, steps=8)


def test_what_does_not_come_again_is_the_machines(monkeypatch):
    calls = []

    def once(self, idx, targets=None, forward=train_gpt2.GPT.forward):
        logits, loss = forward(self, idx, targets)
        calls.append(1)
        return logits, loss * (math.nan if len(calls) == 2 else 1)

    monkeypatch.setattr(train_gpt2.GPT, "forward", once)
    model = lively_gpt()
    with pytest.raises(UserError, match="recomputing the batch gave finite values"):
        update(model, DataLoader(stream_of(text_tokens(640)), 4, 16),
               configure_optimizer(model, 0.1, 1e-3), 1e-3, steps=4)


def a_rank(rank, world, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank),
                   "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    train_gpt2.GPT.forward = poisoned
    os.chdir(ROOT)
    with pytest.MonkeyPatch.context() as patch:
        try:
            main_here(patch, *TINY, "--data", folder / "shards", "--B", 2, "--val-tokens", 512,
                      "--sample-tokens", 0, "--out-dir", folder / "run", "--max-steps", 9)
        except UserError as error:
            (folder / f"{rank}.txt").write_text(str(error))
        os._exit(0)  # no clean-up: the other rank may be gone


def test_both_ranks_name_the_one(tmp_path):
    """Token 1,060 of the second shard is bad, at position 3,060 of the data. That is in step 5,
    the last of its eight micro-batches of 64 tokens, which is rank 1's fourth."""
    write_shards(tmp_path / "shards", n_train=8000, shards=4)
    path = tmp_path / "shards" / "text_train_000002.npy"
    tokens = np.load(path)
    tokens[1060] = BAD
    np.save(path, tokens)
    together(a_rank, 2, free_port(), tmp_path)
    for rank in range(2):
        said = (tmp_path / f"{rank}.txt").read_text()
        assert "at position 2,560 of the data" in said
        assert f"from the 64 tokens of rank 1 at 3,008 (token 1,008 of {path} in its" in said
