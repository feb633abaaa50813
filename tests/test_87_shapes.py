"""A checkpoint whose files are in order and whose tensors are not this network's is passed over."""

import json
import shutil

import pytest
import torch
from helpers import TINY, lively_gpt, main_here, write_shards
from safetensors.torch import load_file, save_file

import train_gpt2
from train_gpt2 import Damaged, check_shapes, digest

pytestmark = pytest.mark.slow

RUN = [*TINY, "--max-steps", 2, "--val-tokens", 512, "--sample-tokens", 0, "--checkpoint-every", 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of 2 steps whose checkpoints are at 1 and 2, and its shards."""
    folder = tmp_path_factory.mktemp("shapes")
    with pytest.MonkeyPatch.context() as monkeypatch:
        main_here(monkeypatch, *RUN, "--data", write_shards(folder / "shards"), "--out-dir",
                  folder / "run")
    return folder


def other_weights(folder):
    lively_gpt(block_size=32, n_embd=64).save_pretrained(folder)


def change_state(folder, **changes):
    state = load_file(folder / "state.safetensors")
    save_file({name: value for name, value in (state | changes).items() if value is not None},
              folder / "state.safetensors")


DAMAGES = {
    "other weights": other_weights,
    "other average": lambda f: change_state(f, **{"exp_avg.transformer.ln_f.weight":
                                                  torch.zeros(31)}),
    "an average less": lambda f: change_state(f, **{"exp_avg_sq.transformer.wte.weight": None}),
    "no safetensors": lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 100),
    "empty file": lambda f: (f / "state.safetensors").write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_one_before_is_taken(damage, folder, tmp_path, monkeypatch, capsys):
    shutil.copytree(folder / "run", tmp_path / "run")
    newest = tmp_path / "run" / "checkpoint_000002"
    DAMAGES[damage](newest)
    files = {path.name: digest(path) for path in newest.iterdir() if path.name != "manifest.json"}
    (newest / "manifest.json").write_text(json.dumps(files))  # all in order, as far as bytes go
    main_here(monkeypatch, *RUN, "--data", folder / "shards", "--out-dir", tmp_path / "run",
              "--resume")
    said = capsys.readouterr().out
    assert f"passed over {newest}: " in said
    assert "resumed    | at step 1 of" in said


def test_the_networks_own_is_taken(tmp_path):
    """Before the first update as well, when the optimizer has no averages yet."""
    model = lively_gpt()
    optimizer = train_gpt2.configure_optimizer(model, 0.1, 1e-3)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for updates in 0, 1:
        folder = tmp_path / str(updates)
        train_gpt2.save_checkpoint(folder, model, optimizer, scaler, updates, 0,
                                   train_gpt2.TrainConfig())
        check_shapes(folder, model)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
    with pytest.raises(Damaged, match="wte.weight has the shape"):
        check_shapes(folder, lively_gpt(vocab_size=300))
