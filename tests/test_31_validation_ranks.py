"""Ranks share validation's rows, and together find what one process would have found."""

import re

import numpy as np
import pytest
import torch
from helpers import CPU, TINY, lively_gpt, small_gpt, start, stream_of, text_tokens, write_shards

import train_gpt2
from train_gpt2 import validate
from nanogpt.ranks import Ranks


@pytest.mark.parametrize("world", [2, 3, 8, 30])
def test_ranks_share_the_rows(world, monkeypatch):
    """Each rank's sum, added up, over all rows: also where rows do not divide by ranks."""
    model, stream, n_rows = lively_gpt(), stream_of(text_tokens(1000)), 20
    sums, shares = [], []
    hook = model.register_forward_hook(lambda module, args, out: shares[-1].append(args[0]))
    monkeypatch.setattr(train_gpt2, "sum_over_ranks", lambda total, ranks: sums.append(total)
                        or total)
    for rank in range(world):
        shares.append([torch.empty((0, 16), dtype=torch.int64)])
        ranks = Ranks(torch.device("cpu"), False, rank, rank, world)
        validate(model, stream, n_rows * 16, 4, 16, ranks)
    monkeypatch.undo()
    hook.remove()
    rows = [torch.cat(share) for share in shares]
    assert torch.equal(torch.cat(rows), torch.from_numpy(stream.read(0, n_rows * 16)).view(-1, 16))
    assert max(map(len, rows)) - min(map(len, rows)) <= 1  # nobody waits for long
    expected = validate(model, stream, n_rows * 16, 4, 16, CPU)
    assert sum(sums).item() / n_rows == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_two_processes_print_what_one_does(tmp_path, monkeypatch):
    """Of 15 rows one process takes 7 and the other 8: the mean is over the rows of both."""
    monkeypatch.chdir(tmp_path)
    folder = write_shards(tmp_path / "shards", n_train=2000, n_val=500)
    done = start("train_gpt2.py", *TINY, "--data", "shards", "--max-steps", 1, ranks=2)
    assert done.returncode == 0, done.stderr
    first, _ = re.findall(r"\| val (\S+)", done.stdout)  # before the update, and after
    model, val = small_gpt(seed=1337, block_size=32), np.load(folder / "text_val_000000.npy")
    expected = validate(model, stream_of(val), 10**6, 15, 32, CPU)
    assert float(first) == pytest.approx(expected, abs=6e-5)  # four digits are printed
