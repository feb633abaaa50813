"""A network's weights in transformers' layout, from the hub or a folder, and into one."""

import json
import os
from pathlib import Path

from safetensors.torch import load_file

from nanogpt.common import UserError, hub_file, hub_offline, needs_network
from nanogpt.disk import save_file, whole

PRETRAINED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")  # their names on the hub
# Matrices that the checkpoints store transposed, for a Conv1D.
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
# config.json's name of each field of GPTConfig
SIZES = dict(block_size="n_positions", vocab_size="vocab_size", n_layer="n_layer", n_head="n_head",
             n_embd="n_embd")


def read_pretrained(name_or_folder):
    """A published GPT-2: its sizes as GPTConfig names them, and its tensors by transformers' names.

    name_or_folder: one of PRETRAINED, or a folder with config.json and model.safetensors. No other
    file is opened: pickled weights could run code. Raises UserError.
    """
    name = str(name_or_folder)
    local = os.path.isdir(name)
    if not local and name not in PRETRAINED:
        raise UserError(f"no model {name}: choose {', '.join(PRETRAINED)}, or an existing folder "
                        "with config.json and model.safetensors")
    with needs_network(f"the weights of {name}", "name a folder with GPT-2's config.json and "
                       "model.safetensors, both whole"):
        get, place = (Path, name) if local else (hub_file, f"openai-community/{name}")
        config, weights = (get(place, file) for file in ("config.json", "model.safetensors"))
        return read_sizes(config), load_file(weights)


def check_names(tensors, weights, source):
    """The tensors under our names, each used once. Raises UserError if one is missing, unknown,
    misshapen or there twice.

    The files on the hub name the modules without "transformer.", leave out the shared matrix, and
    hold the causal masks (attn.bias, attn.masked_bias), which are not weights.
    """
    ours = {}
    for name, t in tensors.items():
        k = name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"
        if k.endswith((".attn.bias", ".attn.masked_bias")):
            continue
        if k not in weights:
            raise UserError(f"{source} holds {name}, which GPT-2 does not have: name a GPT-2")
        if k in ours:
            raise UserError(f"{source} holds {k} twice, with and without transformer.: keep one")
        asked = weights[k].shape[:: -1 if k.endswith(TRANSPOSED) else 1]
        if t.shape != asked:
            raise UserError(f"{source}: {name} has the shape {tuple(t.shape)}, and its config.json "
                            f"asks for {tuple(asked)}")
        ours[k] = t
    # the shared matrix may be stored under one of its names, or under both
    wte = ours.get("transformer.wte.weight", ours.get("lm_head.weight"))
    ours = {"transformer.wte.weight": wte, "lm_head.weight": wte} | ours
    if missing := [k for k in weights if ours.get(k) is None]:
        raise UserError(f"{source} lacks weights of its config.json, {missing[0]} for one: "
                        "name a folder that holds them all")
    if (wte.float() != ours["lm_head.weight"].float()).any():
        raise UserError(f"{source}: lm_head.weight differs from wte.weight, and the network here "
                        "has one matrix for both: name a GPT-2")
    return ours


def read_sizes(path):
    """GPTConfig's fields, from a config.json of transformers."""
    config = json.loads(Path(path).read_text(encoding="utf-8"))
    return {ours: config[theirs] for ours, theirs in SIZES.items()}


def write_pretrained(folder, sizes, state_dict):
    """Write config.json and model.safetensors, which transformers' GPT2LMHeadModel opens.

    sizes: GPTConfig's fields. state_dict: the weights under our names, which are also theirs.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: (v.t() if k.endswith(TRANSPOSED) else v).contiguous().cpu()
             for k, v in state_dict.items() if k != "lm_head.weight"}  # tied to wte
    with whole(folder / "model.safetensors") as path:
        save_file(state, path, metadata={"format": "pt"})
    config = {theirs: sizes[ours] for ours, theirs in SIZES.items()} | dict(
        architectures=["GPT2LMHeadModel"], model_type="gpt2", dtype="float32",
        n_ctx=sizes["block_size"], n_inner=None, activation_function="gelu_new",
        layer_norm_epsilon=1e-5, tie_word_embeddings=True,
        bos_token_id=sizes["vocab_size"] - 1, eos_token_id=sizes["vocab_size"] - 1,
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)  # trained without dropout
    with whole(folder / "config.json") as path:
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_model(name_or_folder, device):
    """Any causal language model of transformers, from safetensors, in fp32, in evaluation mode."""
    from transformers import AutoModelForCausalLM, logging
    logging.set_verbosity_error()
    if is_folder := Path(name_or_folder).is_dir():
        logging.disable_progress_bar()  # a download deserves its bar
    offline = is_folder or hub_offline(name_or_folder)
    with needs_network(f"the model {name_or_folder}",
                       "name gpt2 (online), or a folder with config.json and model.safetensors"):
        model, info = AutoModelForCausalLM.from_pretrained(
            name_or_folder, local_files_only=offline, use_safetensors=True, dtype="float32",
            trust_remote_code=False, output_loading_info=True)
    if absent := sorted(info["missing_keys"]):  # transformers went on with random numbers there
        raise UserError(f"{name_or_folder} lacks weights of its config.json, {absent[0]} for one: "
                        "name a folder that holds them all")
    return model.to(device).eval()
