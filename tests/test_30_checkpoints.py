"""Checkpoints: the same logits when they come back, in transformers too; whole or absent."""

import json

import pytest
import torch
from helpers import CPU, TINY, lively_gpt, no_scaler, start, stream_of, text_tokens, write_shards
from transformers import GPT2LMHeadModel

import train_gpt2
from common import whole
from train_gpt2 import GPT, DataLoader, configure_optimizer, save_checkpoint, train_step


def test_round_trip_is_exact(tmp_path):
    model = lively_gpt()
    model.save_pretrained(tmp_path)
    back = GPT.from_pretrained(tmp_path)
    assert back.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    assert back.lm_head.weight is back.transformer.wte.weight


def test_transformers_opens_it(tmp_path):
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


def training(model):
    optimizer = configure_optimizer(model, 0.1, 1e-3)
    loader = DataLoader(stream_of(text_tokens(5000)), 4, 16)

    def steps(n):
        return [train_step(model, loader, optimizer, no_scaler(), 1e-3, 2, CPU, torch.float32)
                for _ in range(n)]
    return optimizer, loader, steps


def test_state_holds_all_that_training_needs(tmp_path):
    """Put together again from the folder alone, the next steps are the same to the bit."""
    config = train_gpt2.parse_args(TINY)
    model = lively_gpt()
    optimizer, loader, steps = training(model)
    steps(3)
    save_checkpoint(tmp_path / "c", model, optimizer, no_scaler(), 3, loader.position, config)
    expected = steps(3)

    state = torch.load(tmp_path / "c" / "state.pt", weights_only=True)
    assert state["step"] == 3 and state["config"]["n_embd"] == 32
    model = GPT.from_pretrained(tmp_path / "c")
    optimizer, loader, steps = training(model)
    optimizer.load_state_dict(state["optimizer"])
    loader.position = state["position"]
    assert steps(3) == expected


def test_compiled_or_wrapped_the_names_are_plain(tmp_path):
    """The module itself is saved: no `_orig_mod.` or `module.` in the names, under two ranks."""
    folder = write_shards(tmp_path / "shards")
    done = start("train_gpt2.py", *TINY, "--data", folder, "--out-dir", tmp_path / "run",
                 "--max-steps", 4, "--checkpoint-every", 2, "--eval-every", 4, ranks=2)
    assert done.returncode == 0, done.stderr
    folders = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert folders == ["checkpoint_000002", "checkpoint_000004", "curves.png", "log.txt"]
    for name in folders[:2]:
        files = sorted(path.name for path in (tmp_path / "run" / name).iterdir())
        assert files == ["config.json", "model.safetensors", "state.pt"]
    model = GPT.from_pretrained(tmp_path / "run" / "checkpoint_000004")
    # the logged validation loss is this model's
    config = train_gpt2.parse_args([*TINY, "--data", str(folder)])
    _, val = train_gpt2.load_data(config)
    loss = train_gpt2.validate(model, val, config.val_tokens, 8, 32, CPU, torch.float32)
    log = train_gpt2.read_log(tmp_path / "run" / "log.txt")
    assert log["val"][1][-1] == pytest.approx(loss, abs=1e-6)
    done = start("train_gpt2.py", *TINY, "--data", folder, "--out-dir", tmp_path / "second",
                 "--max-steps", 1, "--init-from", tmp_path / "run" / "checkpoint_000004")
    assert done.returncode == 0 and f"val {loss:.4f}" in done.stdout


def test_whole_or_absent(tmp_path):
    """A file or folder appears when the block ends; an error leaves what was there before."""
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "part").write_text("old")
    for error in True, False:
        for name in "file", "folder":
            try:
                with whole(tmp_path / name) as path:
                    if name == "folder":
                        path.mkdir()
                        path = path / "part"
                    path.write_text("new")
                    if error:
                        raise RuntimeError
            except RuntimeError:
                pass
        text = "old" if error else "new"
        assert (tmp_path / "file").read_text() == text
        assert (tmp_path / "folder" / "part").read_text() == text
        assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_config_json_is_plain(tmp_path):
    lively_gpt().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert (config["n_positions"], config["vocab_size"], config["eos_token_id"]) == (16, 257, 256)
