"""hellaswag.py takes nothing from a stranger's config.json that could name code or files."""

import json
import sys

import pytest
import torch
from helpers import lively_gpt
from safetensors.torch import load_file, save_file

import hellaswag
from nanogpt.common import UserError

CPU = torch.device("cpu")
KINDS = {  # what differs from the kind's defaults, so that a setting left out would show
    "gpt2": dict(n_positions=64, n_layer=2, n_head=2, n_embd=32, n_inner=48,
                 activation_function="relu", layer_norm_epsilon=1e-3,
                 scale_attn_by_inverse_layer_idx=True),
    "gpt_neox": dict(max_position_embeddings=64, num_hidden_layers=2, num_attention_heads=2,
                     hidden_size=32, intermediate_size=64, rotary_pct=0.5, rotary_emb_base=50.0,
                     use_parallel_residual=False, hidden_act="relu"),
    "llama": dict(max_position_embeddings=64, num_hidden_layers=2, num_attention_heads=2,
                  num_key_value_heads=1, hidden_size=32, intermediate_size=64, rope_theta=50.0,
                  rms_norm_eps=1e-3, tie_word_embeddings=True),
    "bloom": dict(n_layer=2, n_head=2, hidden_size=32, layer_norm_epsilon=1e-3),
}


def save(folder, kind):
    """A random network of transformers, in a folder. Returns it."""
    import transformers

    torch.manual_seed(0)
    ids = dict(vocab_size=257, bos_token_id=256, eos_token_id=256, pad_token_id=256)
    config = transformers.AutoConfig.for_model(kind, **KINDS[kind], **ids)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0, 0.2)
    model.save_pretrained(folder)
    return model


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("written", ["by transformers", "by hand"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_networks_own_settings_are_taken(kind, written, tmp_path):
    """The logits are those of transformers, which reads the whole file; also for a file of older
    versions, whose rotary settings had other names."""
    model, idx = save(tmp_path, kind), torch.arange(48).view(3, 16)
    if written == "by hand":
        (tmp_path / "config.json").write_text(json.dumps(
            {"model_type": kind, "vocab_size": 257, "torch_dtype": "float16", **KINDS[kind]}))
    ours = hellaswag.load_model(tmp_path, CPU)
    with torch.no_grad():
        assert torch.equal(ours(idx).logits, model(idx).logits)


def test_nothing_of_a_stranger_runs_or_is_opened(tmp_path, monkeypatch):
    """Code, kernels on the hub, adapters and generation settings: the model is the same, and no
    file but two is read from the folder."""
    model, idx = save(tmp_path / "model", "gpt2"), torch.arange(48).view(3, 16)
    harm = f"open({str(tmp_path / 'harm')!r}, 'w').close()\nclass Model: pass\n"
    for name in "model.py", "custom_generate.py":
        (tmp_path / "model" / name).write_text(harm)
    (tmp_path / "model" / "adapter_config.json").write_text('{"base_model_name_or_path": "x/y"}')
    change_config(tmp_path / "model", auto_map={"AutoModelForCausalLM": "model.Model"},
                  _attn_implementation="kernels-community/flash-attn", attn_implementation="x/y",
                  use_kernels=True, trust_remote_code=True, dtype="model.Model", name_or_path="x/y",
                  torch_dtype="model.Model", custom_pipelines={"x": {"impl": "model.Model"}},
                  architectures=["Model"], is_decoder=5)
    opened = set()
    sys.addaudithook(lambda event, args: opened.add(str(args[0])) if event == "open" else None)
    ours = hellaswag.load_model(tmp_path / "model", CPU)
    opened = {name for name in opened if name.startswith(str(tmp_path))}
    assert {name.rpartition("/")[2] for name in opened} <= {"config.json", "model.safetensors"}
    with torch.no_grad():
        assert torch.equal(ours(idx).logits, model(idx).logits)
    assert not (tmp_path / "harm").exists() and not hasattr(ours.config, "is_decoder")


@pytest.mark.parametrize("key, value", [
    ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    ("text_config", {"model_type": "gpt2"}), ("activation_function", "../model/relu"),
    ("activation_function", "kernels-community/activation"), ("model_type", "nobody"),
    ("activation_function", {"path": "x/y"}), ("model_type", "vit"), ("n_inner", ["a/b"])])
def test_what_is_not_plain_is_refused_by_name(key, value, tmp_path):
    save(tmp_path, "gpt2")
    change_config(tmp_path, **{key: value})
    with pytest.raises(UserError, match=f"config.json says {key} = ") as error:
        hellaswag.load_model(tmp_path, CPU)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["score.weight", "v_head.summary.weight",
                                  "transformer.h.2.ln_1.bias"])
def test_another_head_is_named(name, tmp_path):
    """A classifier's or a reward model's: its language model may be worth nothing."""
    save(tmp_path, "gpt2")
    state = load_file(tmp_path / "model.safetensors")
    save_file(state | {name: torch.zeros(2, 32)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"{name} does not fit its config.json"):
        hellaswag.load_model(tmp_path, CPU)


@pytest.mark.parametrize("here", [False, True])
def test_only_the_hub_is_asked_whether_it_answers(here, tmp_path, monkeypatch):
    """A folder needs no network; a name is looked up in the cache alone when there is none."""
    asked = []
    monkeypatch.setattr("nanogpt.common.hub_offline",
                        lambda repo, kind="model": asked.append(repo) or True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, file, **where: asked.append(
        where["local_files_only"]) or str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="cannot get the model"):
        hellaswag.load_model(str(tmp_path) if here else "gpt2", CPU)
    assert asked == ([] if here else ["gpt2", True])


def test_a_checkpoint_of_ours_is_scored(tmp_path):
    model, idx = lively_gpt(), torch.arange(32).view(2, 16)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        theirs = hellaswag.load_model(tmp_path, CPU)(idx).logits
        torch.testing.assert_close(theirs, model(idx)[0], rtol=1e-4, atol=1e-4)
