"""Rows past the vocabulary, which some add for speed, are left out; another tokenizer's are not."""

import pytest
import torch
from helpers import (
    TINY, count_by_hand, four_endings, lively_gpt, main_here, refusal, write_jsonl, write_shards,
)
from safetensors.torch import load_file, save_file

import hellaswag
import train_gpt2
from nanogpt.common import UserError

CPU = torch.device("cpu")


def padded(folder, ids, head=False):
    """A network of `ids` ids in a folder. head: its file has the shared matrix under both names."""
    model = lively_gpt(vocab_size=ids, block_size=64)
    model.save_pretrained(folder)
    if head:
        state = load_file(folder / "model.safetensors")
        wte = state["transformer.wte.weight"].clone()
        save_file(state | {"lm_head.weight": wte}, folder / "model.safetensors")
    return model


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("ids", [258, 264, 320, 384])
def test_the_first_rows_are_kept(ids, head, tmp_path, capsys):
    """Of the matrix, 257 rows; all other tensors as they are. It is said in one line, if at all."""
    full = padded(tmp_path / "model", ids, head)
    config = train_gpt2.parse_args([*TINY, "--init-from", str(tmp_path / "model")])
    ours = train_gpt2.init_model(config)
    assert capsys.readouterr().out == ""
    train_gpt2.init_model(config, True)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and f"model: left out {ids - 257} of {ids} ids" in said
    assert ours.config.vocab_size == 257
    for name, t in ours.state_dict().items():
        assert torch.equal(t, full.state_dict()[name][: len(t)]), name
    idx = torch.arange(32).view(2, 16)
    torch.testing.assert_close(ours(idx)[0], full(idx)[0][..., :257])


def test_a_run_trains_and_saves_257(tmp_path, monkeypatch):
    padded(tmp_path / "model", 264)
    main_here(monkeypatch, *TINY, "--data", write_shards(tmp_path / "shards"), "--out-dir",
              tmp_path / "run", "--max-steps", 1, "--val-tokens", 512, "--sample-tokens", 0,
              "--init-from", tmp_path / "model")
    saved = load_file(tmp_path / "run" / "checkpoint_000001" / "model.safetensors")
    assert saved["transformer.wte.weight"].shape == (257, 32)


@pytest.mark.parametrize("ids", [385, 250])
def test_others_are_refused(ids, tmp_path):
    """A whole tokenizer's worth more, or any fewer: other ids for other words."""
    padded(tmp_path / "model", ids)
    config = train_gpt2.parse_args([*TINY, "--init-from", str(tmp_path / "model")])
    with pytest.raises(UserError, match=f"has {ids} ids, the run 257"):
        train_gpt2.init_model(config)
    assert train_gpt2.GPT.from_pretrained(tmp_path / "model").config.vocab_size == ids


def test_a_matrix_smaller_than_its_config_says_is_refused(tmp_path):
    """264 in config.json, 260 rows in the file: it is damaged, not padded."""
    padded(tmp_path / "model", 260)
    path = tmp_path / "model" / "config.json"
    path.write_text(path.read_text().replace('"vocab_size": 260', '"vocab_size": 264'))
    config = train_gpt2.parse_args([*TINY, "--init-from", str(tmp_path / "model")])
    with pytest.raises(UserError, match="transformer.wte.weight has the shape"):
        train_gpt2.init_model(config)


@pytest.mark.parametrize("ids", [258, 384])
def test_hellaswag_scores_the_rest(ids, tmp_path, monkeypatch, capsys):
    """As the network with 257 rows is scored by hand, one row at a time."""
    padded(tmp_path / "model", ids)
    examples = four_endings()
    path = write_jsonl(tmp_path / "h.jsonl", examples)
    config = train_gpt2.parse_args([*TINY, "--init-from", str(tmp_path / "model")])
    right = count_by_hand(train_gpt2.init_model(config), examples)
    monkeypatch.setattr("sys.argv", ["hellaswag.py", "--model", str(tmp_path / "model"), "--data",
                                     str(path), "--device", "cpu"])
    hellaswag.main()
    first, *scores = capsys.readouterr().out.splitlines()
    assert f"model: left out {ids - 257} of {ids} ids" in first
    assert [f"({n:.0f} of 30)" in line for n, line in zip(right, scores, strict=True)] == [True] * 2


def test_the_number_alone_tells_nothing(tmp_path, monkeypatch, capsys):
    """Pythia has 50,304 ids, and another tokenizer."""
    import transformers

    transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(
        vocab_size=264, num_hidden_layers=1, num_attention_heads=2, hidden_size=8,
        intermediate_size=8, bos_token_id=0, eos_token_id=0)).save_pretrained(tmp_path / "model")
    path = write_jsonl(tmp_path / "h.jsonl", four_endings(3))
    capsys.readouterr()  # transformers' bar
    said = refusal(hellaswag.main, "--model", tmp_path / "model", "--data", path, "--device", "cpu",
                   monkeypatch=monkeypatch, capsys=capsys)
    assert "a vocabulary of 264 ids belongs to no known tokenizer" in said
