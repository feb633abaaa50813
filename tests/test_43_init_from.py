"""A run starts from a folder's weights, if they fit its tokens and its rows."""

import pytest
import torch
from helpers import (
    TINY,
    lively_gpt,
    main_here,
    offline,
    refusal,
    write_shards,
)

import train_gpt2
from train_gpt2 import parse_args
from nanogpt.report import read_log


def config(*flags):
    return parse_args([*TINY, *map(str, flags)])


def test_the_weights_are_the_folders(tmp_path):
    """All of them, and its sizes, whatever the flags say; more positions than --T are kept."""
    model = lively_gpt(block_size=48, n_layer=1, n_head=4, n_embd=64)
    model.save_pretrained(tmp_path / "model")
    ours = train_gpt2.init_model(config("--init-from", tmp_path / "model"))
    assert ours.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


def test_without_a_folder_they_are_random_from_the_seed():
    made = []
    for seed in 1, 1, 2:
        torch.manual_seed(seed)
        made.append(train_gpt2.init_model(config()).transformer.h[1].mlp.c_fc.weight)
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    c = train_gpt2.init_model(config("--T", 48, "--n-layer", 3)).config
    assert (c.block_size, c.vocab_size, c.n_layer, c.n_head, c.n_embd) == (48, 257, 3, 2, 32)


@pytest.mark.slow
def test_a_run_begins_where_another_ended(tmp_path, monkeypatch):
    """The first validation loss is the last one of the run before; then training changes it."""
    data = write_shards(tmp_path / "shards")
    flags = [*TINY, "--data", data, "--val-tokens", 512, "--sample-tokens", 0]
    main_here(monkeypatch, *flags, "--out-dir", tmp_path / "first", "--max-steps", 3)
    main_here(monkeypatch, *flags, "--out-dir", tmp_path / "second", "--max-steps", 1,
              "--init-from", tmp_path / "first" / "checkpoint_000003")
    first, second = (read_log(tmp_path / name / "log.txt")["val"][1]
                     for name in ("first", "second"))
    assert second[0] == first[-1] < first[0] and second[1] != second[0]


def test_the_heldout_endings_fit_the_networks_positions(tmp_path, monkeypatch):
    """HellaSwag's rows are cut to the positions of the weights, which may be more than --T."""
    lively_gpt(block_size=64).save_pretrained(tmp_path / "model")
    seen = []
    monkeypatch.setattr("hellaswag.load_run",
                        lambda config, enc, block_size, val: seen.append(block_size) or [])
    main_here(monkeypatch, *TINY, "--data", write_shards(tmp_path / "shards"), "--out-dir",
              tmp_path / "run", "--max-steps", 1, "--val-tokens", 512, "--sample-tokens", 0,
              "--init-from", tmp_path / "model")
    assert seen == [64]


@pytest.mark.parametrize("name, words", [
    ("nothing", "no model nothing: choose gpt2"),
    ("shards", "config.json"),
    ("other", "has 400 ids, the run 257"),
    ("short", "longer than the 16 positions"),
    ("gpt2", "cannot get the weights of gpt2")])
def test_weights_that_do_not_fit_are_refused(name, words, tmp_path, monkeypatch, capsys):
    """One line, before anything is written."""
    write_shards(tmp_path / "shards")
    lively_gpt(vocab_size=400).save_pretrained(tmp_path / "other")
    lively_gpt(block_size=16).save_pretrained(tmp_path / "short")
    offline(monkeypatch, tmp_path / "empty")
    monkeypatch.chdir(tmp_path)
    said = refusal(train_gpt2.main, *TINY, "--data", "shards", "--out-dir", "run", "--init-from",
                   name, monkeypatch=monkeypatch, capsys=capsys)
    assert words in said
    assert not (tmp_path / "run").exists()
