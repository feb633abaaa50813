"""A network's weights in transformers' layout, from the hub or a folder, and into one."""

import json
import os
from pathlib import Path

from safetensors.torch import load_file

from nanogpt.common import UserError, hub_file, needs_network

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


def check_names(tensors, names, source):
    """The tensors under our names. Raises UserError if one is missing or unknown.

    The files on the hub name the modules without "transformer.", leave out the shared matrix, and
    hold the causal masks (attn.bias, attn.masked_bias), which are not weights.
    """
    tensors = {k if k.startswith(("transformer.", "lm_head.")) else f"transformer.{k}": t
               for k, t in tensors.items() if not k.endswith((".attn.bias", ".attn.masked_bias"))}
    tensors.setdefault("lm_head.weight", tensors.get("transformer.wte.weight"))
    if missing := sorted(names.keys() - tensors.keys()):
        raise UserError(f"{source} lacks weights of its config.json, {missing[0]} for one: "
                        "name a folder that holds them all")
    if unknown := sorted(tensors.keys() - names.keys()):
        raise UserError(f"{source} holds {unknown[0]}, which GPT-2 does not have: name a GPT-2")
    return tensors


def read_sizes(path):
    """GPTConfig's fields, from a config.json of transformers."""
    config = json.loads(Path(path).read_text(encoding="utf-8"))
    return {ours: config[theirs] for ours, theirs in SIZES.items()}
