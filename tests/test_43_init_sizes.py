"""The log and the checkpoint hold the sizes that the network has, not those of the flags."""

import json

from helpers import TINY, lively_gpt, main_here, write_shards

from nanogpt.report import read_log


def test_sizes_in_the_log_are_the_networks(tmp_path, monkeypatch):
    """--init-from sets them; every other setting is as the flags say."""
    lively_gpt(block_size=64, n_layer=1, n_head=4, n_embd=64).save_pretrained(tmp_path / "model")
    main_here(monkeypatch, *TINY, "--data", write_shards(tmp_path / "shards"), "--out-dir",
              tmp_path / "run", "--max-steps", 1, "--val-tokens", 512, "--sample-tokens", 0,
              "--init-from", tmp_path / "model")
    header = read_log(tmp_path / "run" / "log.txt")["run"]
    state = tmp_path / "run" / "checkpoint_000001" / "state.json"
    assert json.loads(state.read_text(encoding="utf-8"))["config"] == header["config"]
    config = header["config"]
    assert (config["n_layer"], config["n_head"], config["n_embd"]) == (1, 4, 64)
    assert (config["T"], config["max_lr"], config["max_steps"]) == (32, 3e-3, 1)
    assert header["parameters"] == 257 * 64 + 64 * 64 + 12 * 64 * 64 + 13 * 64 + 2 * 64


def test_without_init_from_they_are_the_flags(tmp_path, monkeypatch):
    main_here(monkeypatch, *TINY, "--data", write_shards(tmp_path / "shards"), "--out-dir",
              tmp_path / "run", "--max-steps", 1, "--val-tokens", 512, "--sample-tokens", 0)
    config = read_log(tmp_path / "run" / "log.txt")["run"]["config"]
    assert (config["n_layer"], config["n_head"], config["n_embd"]) == (2, 2, 32)
