"""Without --max-steps a run is one epoch of the shards found: whole batches with their targets."""

import math
import re

import pytest
from helpers import TINY, load_streams, start, write_shards

from nanogpt.common import UserError


def test_an_epoch_is_derived_from_the_shards_found(tmp_path, monkeypatch):
    """(4,608 - 1) // 512 steps: the last token is a target only, so 9 x 512 make 8 steps, not 9."""
    monkeypatch.chdir(tmp_path)
    write_shards(tmp_path / "shards", n_train=4608, n_val=500)
    done = start("train_gpt2.py", *TINY, "--data", "shards")
    assert done.returncode == 0, done.stderr
    assert re.search(r"\b8 (steps )?= 0.89 epochs", done.stdout)
    taken = re.findall(r"^step +(\d+) \| loss .* lr (\S+)", done.stdout, re.M)
    assert [int(step) for step, _ in taken] == list(range(8))
    # the schedule ends with the epoch: 2 steps of warm-up, 6 of cosine from 3e-3 down to 3e-4
    last = 3e-4 + 0.5 * (1 + math.cos(math.pi * 5 / 6)) * (3e-3 - 3e-4)
    assert float(taken[-1][1]) == pytest.approx(last, rel=5e-3)  # three digits are printed
    assert "4,608 tokens in 2 shards" in done.stdout


def test_too_few_training_tokens(tmp_path):
    """A batch of 512 has 512 targets, the last of them a token further: 513 are needed."""
    for n, enough in (512, False), (513, True):
        folder = write_shards(tmp_path / str(n), n_train=n, n_val=40)
        if enough:
            load_streams(folder, "--total-batch-size", "512")
            continue
        with pytest.raises(UserError, match="512 training tokens, less than one batch of 512"):
            load_streams(folder, "--total-batch-size", "512")
        load_streams(folder, "--total-batch-size", "256")
