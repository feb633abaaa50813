"""A resume that cannot be the same run is refused before the first step."""

import pytest
from helpers import TINY, lively_gpt, main_here, refusal, write_shards

import train_gpt2

RUN = [*TINY, "--val-tokens", 512, "--sample-tokens", 0, "--hellaswag", "none"]


@pytest.mark.parametrize("shorter, steps", [
    (["--max-steps", 3], 3), (["--total-batch-size", 2048], 2)])
def test_shorter_than_the_run_is(shorter, steps, tmp_path, monkeypatch, capsys):
    """An epoch of 9 steps; a larger batch makes 2 of it, less than have been made."""
    run = [*RUN, "--data", write_shards(tmp_path / "shards", n_train=5000), "--out-dir",
           tmp_path / "run"]
    main_here(monkeypatch, *run)
    said = refusal(train_gpt2.main, *run, "--resume", *shorter, monkeypatch=monkeypatch,
                   capsys=capsys)
    assert f"--max-steps {steps}: " in said and "is at step 9: give more" in said


def test_weights_with_more_positions_than_tokens(tmp_path, monkeypatch, capsys):
    """Begun with --init-from, whose network has 64 positions; --T is 32."""
    lively_gpt(block_size=64, n_embd=32).save_pretrained(tmp_path / "weights")
    run = [*RUN, "--data", write_shards(tmp_path / "shards"), "--out-dir", tmp_path / "run"]
    main_here(monkeypatch, *run, "--max-steps", 2, "--init-from", tmp_path / "weights")
    said = refusal(train_gpt2.main, *run, "--max-steps", 4, "--resume", monkeypatch=monkeypatch,
                   capsys=capsys)
    assert "wpe.weight is (64, 32), not (32, 32): give the same --init-from" in said
