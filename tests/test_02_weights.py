"""GPT-2's weights come in from transformers' layout, whole, or not at all."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers import small_gpt
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel

from nanogpt.common import UserError
from train_gpt2 import GPT
from nanogpt.weights import TRANSPOSED


def test_every_tensor_is_equal(hf_folder):
    theirs = GPT2LMHeadModel.from_pretrained(hf_folder).state_dict()
    ours = GPT.from_pretrained(hf_folder).state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        expected = theirs[name].t() if name.endswith(TRANSPOSED) else theirs[name]
        assert torch.equal(tensor, expected), name


def test_old_checkpoints_hold_masks_too(hf_folder):
    """transformers before 4.3x stored the causal mask in every layer; the hub's files do still."""
    theirs = GPT2LMHeadModel.from_pretrained(hf_folder).state_dict()
    expected = GPT.from_pretrained(hf_folder).state_dict()
    for layer in range(3):
        theirs[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 64, 64).tril()
        theirs[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    ours = small_gpt(block_size=64, vocab_size=50257, n_layer=3, n_head=4, n_embd=64)
    ours.load_transformers_state(theirs)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_other_names_are_refused(hf_folder):
    state = GPT2LMHeadModel.from_pretrained(hf_folder).state_dict()
    state["transformer.h.0.attn.rotary"] = torch.zeros(1)
    ours = small_gpt(block_size=64, vocab_size=50257, n_layer=3, n_head=4, n_embd=64)
    with pytest.raises(UserError, match="holds transformer.h.0.attn.rotary, which GPT-2"):
        ours.load_transformers_state(state)


def test_unknown_model_is_refused():
    with pytest.raises(UserError, match="no model gpt5: choose gpt2, gpt2-medium"):
        GPT.from_pretrained("gpt5")


@pytest.mark.parametrize("damage", [
    lambda f: (f / "config.json").unlink(),
    lambda f: (f / "config.json").write_text("{"),
    lambda f: (f / "model.safetensors").unlink(),
    lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5000]),
], ids=["no config", "broken config", "no weights", "cut weights"])
def test_damaged_folder_is_refused(damage, hf_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(hf_folder, folder)
    damage(folder)
    with pytest.raises(UserError) as error:
        GPT.from_pretrained(folder)
    assert "\n" not in str(error.value) and "model" in str(error.value)


def test_pickled_weights_are_not_opened(hf_folder, tmp_path):
    """A folder with nothing but a pickle is refused, even a harmless one."""
    folder = tmp_path / "model"
    shutil.copytree(hf_folder, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    Path(folder / "model.safetensors").unlink()
    with pytest.raises(UserError):
        GPT.from_pretrained(folder)
