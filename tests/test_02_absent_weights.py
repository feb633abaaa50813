"""A folder that lacks weights of its config.json is refused, not filled up with random numbers."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanogpt.common import UserError
from train_gpt2 import GPT


@pytest.fixture
def folder(hf_folder, tmp_path):
    shutil.copytree(hf_folder, tmp_path / "model")
    return tmp_path / "model"


def change_state(folder, change):
    state = load_file(folder / "model.safetensors")
    save_file(change(state), folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", [
    "transformer.h.1.mlp.c_fc.weight", "transformer.h.0.attn.c_attn.bias",
    "transformer.ln_f.weight", "transformer.wte.weight", "transformer.wpe.weight"])
def test_a_weight_is_absent(name, folder):
    """transformers would warn and go on with random numbers; the one that is absent is named."""
    change_state(folder, lambda state: {k: v for k, v in state.items() if k != name})
    with pytest.raises(UserError, match="model lacks weights of its config.json") as error:
        GPT.from_pretrained(folder)
    assert "\n" not in str(error.value)
    names = name, name.replace("transformer.wte", "lm_head")  # the shared matrix has two
    assert any(name in str(error.value) for name in names)


def test_more_layers_than_weights(folder):
    change_config(folder, n_layer=4)
    with pytest.raises(UserError, match=r"lacks weights .* transformer\.h\.3\."):
        GPT.from_pretrained(folder)


@pytest.mark.parametrize("sizes", [dict(n_embd=32), dict(n_positions=32), dict(vocab_size=300)])
def test_other_sizes_than_the_weights(sizes, folder):
    change_config(folder, **sizes)
    with pytest.raises(UserError) as error:
        GPT.from_pretrained(folder)
    assert "\n" not in str(error.value) and "model" in str(error.value)


def test_a_whole_folder_is_taken(folder):
    """The matrix that writes tokens is in no file: it is the one that reads them."""
    model = GPT.from_pretrained(folder)
    assert torch.equal(model.lm_head.weight, model.transformer.wte.weight)
