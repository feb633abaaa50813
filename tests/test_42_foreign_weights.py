"""A config.json that is missing, broken, or of another network is refused before anything loads."""

import json
import shutil

import pytest
import torch
from helpers import lively_gpt
from safetensors.torch import load_file, save_file

from nanogpt.common import UserError
from train_gpt2 import GPT


@pytest.fixture
def folder(tmp_path):
    lively_gpt().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop_a_weight(folder):
    state = load_file(folder / "model.safetensors")
    del state[next(k for k in state if "h.1.mlp.c_fc.weight" in k)]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


DAMAGES = {
    "no config": lambda f: (f / "config.json").unlink(),
    "broken config": lambda f: (f / "config.json").write_text("{"),
    "bottomless config": lambda f: (f / "config.json").write_text("[" * 10**5),
    "config is a list": lambda f: (f / "config.json").write_text("[]"),
    "config is binary": lambda f: (f / "config.json").write_bytes(bytes(range(256))),
    "another network": lambda f: change_config(f, model_type="llama"),
    "another activation": lambda f: change_config(f, activation_function="relu"),
    "other sizes": lambda f: change_config(f, n_embd=128),
    "more layers than weights": lambda f: change_config(f, n_layer=4),
    "no weights": lambda f: (f / "model.safetensors").unlink(),
    "cut weights": lambda f: (f / "model.safetensors").write_bytes(
        (f / "model.safetensors").read_bytes()[:5000]),
    "a weight is absent": drop_a_weight,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_foreign_folder_is_refused(damage, folder):
    DAMAGES[damage](folder)
    with pytest.raises(UserError) as error:
        GPT.from_pretrained(folder)
    assert "\n" not in str(error.value)
    assert "model" in str(error.value)
    if "config" in damage:
        assert "is not a GPT-2's config.json" in str(error.value)


@pytest.mark.parametrize("key, value", [
    ("model_type", "llama"), ("activation_function", "relu"), ("activation_function", "gelu"),
    ("layer_norm_epsilon", 1e-6), ("n_inner", 100), ("tie_word_embeddings", False),
    ("scale_attn_weights", False), ("scale_attn_by_inverse_layer_idx", True)])
def test_the_setting_that_is_another_networks_is_named(key, value, folder):
    """Its weights have names and shapes like ours: they would load, and compute something else."""
    change_config(folder, **{key: value})
    with pytest.raises(UserError, match=f"config.json says {key} = {value}, and the network here"):
        GPT.from_pretrained(folder)


def test_a_config_may_leave_out_what_it_does_not_change(folder):
    """As the published ones do; only model_type must be there."""
    expected = GPT.from_pretrained(folder).state_dict()
    config = json.loads((folder / "config.json").read_text())
    sizes = ("model_type", "n_positions", "vocab_size", "n_layer", "n_head", "n_embd")
    for keys in sizes, sizes[1:]:
        (folder / "config.json").write_text(json.dumps({key: config[key] for key in keys}))
        if keys == sizes:
            model = GPT.from_pretrained(folder)
            assert all(torch.equal(model.state_dict()[k], v) for k, v in expected.items())
        else:
            with pytest.raises(UserError, match="says model_type = None"):
                GPT.from_pretrained(folder)


@pytest.mark.parametrize("key, value", [
    ("n_layer", "2"), ("n_embd", 0), ("vocab_size", 257.0), ("n_head", True), ("n_positions", -1)])
def test_a_size_that_is_no_size_is_named(key, value, folder):
    change_config(folder, **{key: value})
    with pytest.raises(UserError, match=f"says {key} = "):
        GPT.from_pretrained(folder)


def test_nothing_but_sizes_is_taken_from_a_config(folder, tmp_path, monkeypatch):
    """A stranger's config.json can name code, kernels on the hub, or a quantizer: none is used."""
    code = f"open({str(tmp_path / 'harm')!r}, 'w').close()\nclass Model: pass\n"
    (folder / "model.py").write_text(code)
    change_config(folder, auto_map={"AutoModelForCausalLM": "model.Model"},
                  quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True},
                  _attn_implementation="kernels-community/flash-attn", attn_implementation="x/y",
                  trust_remote_code=True, torch_dtype="model.Model", dtype="float16")
    expected = lively_gpt().state_dict()
    model = GPT.from_pretrained(folder)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert not (tmp_path / "harm").exists()


def test_what_transformers_saves_is_taken(hf_folder, tmp_path):
    shutil.copytree(hf_folder, tmp_path / "model")
    assert GPT.from_pretrained(tmp_path / "model").config.n_layer == 3


def test_nothing_is_said_beside_the_network(folder, capfd):
    """transformers may warn about end-of-text ids if the vocabulary is not GPT-2's."""
    GPT.from_pretrained(folder)
    assert capfd.readouterr() == ("", "")
