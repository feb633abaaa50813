"""Weights come back from their folder the same to the bit, and transformers opens it too."""

import json
import os

import pytest
import safetensors.torch
import torch
from helpers import (
    bytes_encoded,
    count_by_hand,
    four_endings,
    lively_gpt,
    write_jsonl,
)
from safetensors.torch import load_file

import hellaswag
from train_gpt2 import GPT


def test_round_trip_is_exact(tmp_path):
    model = lively_gpt()
    model.save_pretrained(tmp_path)
    back = GPT.from_pretrained(tmp_path)
    assert back.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    assert back.lm_head.weight is back.transformer.wte.weight


def test_transformers_opens_it(tmp_path):
    """All weights found, none left over; the same logits; no dropout; and back from theirs."""
    from transformers import GPT2LMHeadModel

    model = lively_gpt()
    model.save_pretrained(tmp_path)
    hf, info = GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    idx = torch.randint(257, (2, 16))
    with torch.no_grad():
        torch.testing.assert_close(hf.eval()(idx).logits, model(idx)[0], atol=1e-5, rtol=0)
        assert torch.equal(hf.train()(idx).logits, hf.eval()(idx).logits)  # no dropout
    hf.save_pretrained(tmp_path / "theirs")
    again = GPT.from_pretrained(tmp_path / "theirs")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_the_file_is_of_the_published_shapes(tmp_path):
    """Conv1D's matrices are stored transposed, the shared matrix once, and saving does not change
    the weights in training."""
    model = lively_gpt()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "a" / "b")
    state = load_file(tmp_path / "a" / "b" / "model.safetensors")
    assert set(state) == set(before) - {"lm_head.weight"}
    assert state["transformer.h.1.attn.c_attn.weight"].shape == (32, 96)
    assert state["transformer.h.1.mlp.c_proj.weight"].shape == (128, 32)
    assert torch.equal(state["transformer.h.1.mlp.c_fc.weight"],
                       model.transformer.h[1].mlp.c_fc.weight.t())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) and tensor.shape == before[name].shape
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == [
        "config.json", "model.safetensors"]


def test_config_json_is_plain(tmp_path):
    lively_gpt().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert (config["n_positions"], config["vocab_size"], config["eos_token_id"]) == (16, 257, 256)
    assert config["model_type"] == "gpt2" and config["activation_function"] == "gelu_new"
    assert (config["n_layer"], config["n_head"], config["n_embd"]) == (2, 2, 32)


def test_hellaswag_scores_our_folder(tmp_path, monkeypatch, capsys):
    """With the same counts as for our network itself."""
    model, examples = lively_gpt(block_size=64), four_endings(12)
    model.save_pretrained(tmp_path / "model")
    path = write_jsonl(tmp_path / "h.jsonl", examples)
    expected = hellaswag.count_correct(model, bytes_encoded(examples), torch.device("cpu"))
    assert expected[:2].tolist() == count_by_hand(model, examples)
    monkeypatch.setattr("sys.argv", ["hellaswag.py", "--model", str(tmp_path / "model"), "--data",
                                     str(path), "--device", "cpu"])
    hellaswag.main()
    said = capsys.readouterr().out
    for name, count in zip(("acc", "acc_norm"), expected.tolist(), strict=False):
        p = count / 12
        assert (f"{name:8s} {p:.4f} +- {hellaswag.standard_error(p, 12):.4f}  ({count:.0f} of 12)"
                in said)


def test_a_full_disk_is_an_oserror(tmp_path, monkeypatch):
    """safetensors raises its own kind of error, which would end in a traceback."""
    def full(*args):
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space left on device.*model.safetensors") as error:
        lively_gpt().save_pretrained(tmp_path)
    assert error.value.errno == 28


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077, 0o027])
def test_others_may_read_what_the_umask_lets_them_read(umask, tmp_path):
    """safetensors makes files that only their owner can read."""
    before = os.umask(umask)
    try:
        lively_gpt().save_pretrained(tmp_path / "model")
    finally:
        os.umask(before)
    for path in (tmp_path / "model").iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask, path.name
