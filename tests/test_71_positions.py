"""A run begun from weights with more positions than --T resumes with the same weights named."""

from helpers import TINY, lively_gpt, main_here, refusal, write_shards

import train_gpt2

RUN = [*TINY, "--val-tokens", 512, "--sample-tokens", 0, "--hellaswag", "none"]


def test_weights_with_more_positions_than_tokens(tmp_path, monkeypatch, capsys):
    """Begun with --init-from, whose network has 64 positions; --T is 32."""
    lively_gpt(block_size=64, n_embd=32).save_pretrained(tmp_path / "weights")
    run = [*RUN, "--max-steps", 2, "--data", write_shards(tmp_path / "shards"), "--out-dir",
           tmp_path / "run"]
    main_here(monkeypatch, *run, "--init-from", tmp_path / "weights")
    said = refusal(train_gpt2.main, *run, "--max-steps", 4, "--resume",
                   monkeypatch=monkeypatch, capsys=capsys)
    assert "has 64 positions: give the same --init-from as before" in said
