"""Three ranks resume to the bit, too: DDP must add their gradients in the same order as before."""

import shutil

import pytest
from helpers import TINY, start, write_shards

pytestmark = pytest.mark.slow

RUN = [*TINY, "--B", 4, "--total-batch-size", 768, "--max-steps", 6, "--eval-every", 6,
       "--val-tokens", 512, "--sample-tokens", 0, "--checkpoint-every", 2]


def test_three_ranks_resume_to_the_bit(tmp_path):
    """On two, the order of a sum does not matter. On three it depends on the place of a gradient in
    DDP's buckets, which DDP sorts anew after the first backward pass."""
    flags = [*RUN, "--data", write_shards(tmp_path / "shards"), "--out-dir", tmp_path / "run"]
    last, found = tmp_path / "run" / "checkpoint_000006", []
    for resume in [], ["--resume"]:
        done = start("train_gpt2.py", *flags, *resume, ranks=3)
        assert done.returncode == 0, done.stderr
        found.append([(last / f"{name}.safetensors").read_bytes() for name in ("model", "state")])
        for step in 4, 6:
            shutil.rmtree(last.with_name(f"checkpoint_{step:06d}"))
    assert "resumed    | at step 2 of" in done.stdout
    assert found[0] == found[1]
