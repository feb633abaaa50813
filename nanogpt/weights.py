"""A network's weights in transformers' layout, from the hub or a folder, and into one."""

import json
import os
import re
from pathlib import Path

from safetensors.torch import load_file

from nanogpt.common import UserError, hub_file, needs_network
from nanogpt.disk import save_file, whole

PRETRAINED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")  # their names on the hub
# Matrices that the checkpoints store transposed, for a Conv1D.
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
# config.json's name of each field of GPTConfig
SIZES = dict(block_size="n_positions", vocab_size="vocab_size", n_layer="n_layer", n_head="n_head",
             n_embd="n_embd")


def read_pretrained(name_or_folder, vocab_size=None, verbose=False):
    """A published GPT-2: its sizes as GPTConfig names them, and its tensors by transformers' names.

    name_or_folder: one of PRETRAINED, or a folder with config.json and model.safetensors. No other
    file is opened: pickled weights could run code. vocab_size: leave out up to 127 rows past it,
    which others add to GPT-2's or bytes' for speed; verbose: say so. Raises UserError.
    """
    name = str(name_or_folder)
    local = os.path.isdir(name)
    if not local and name not in PRETRAINED:
        raise UserError(f"no model {name}: choose {', '.join(PRETRAINED)}, or an existing folder "
                        "with config.json and model.safetensors")
    with needs_network(f"the weights of {name}", "name a folder with GPT-2's config.json and "
                       "model.safetensors, both whole"):
        get, place = (Path, name) if local else (hub_file, f"openai-community/{name}")
        sizes, tensors = read_sizes(get(place, "config.json")), load_tensors(get, place)
    n_rows = sizes.get("vocab_size", 0)
    if vocab_size in (50257, 257) and vocab_size < n_rows < vocab_size + 128:
        sizes["vocab_size"] = vocab_size
        tensors |= {k: t[:vocab_size] for k, t in tensors.items()
                    if k.endswith(("wte.weight", "lm_head.weight")) and len(t) == n_rows}
        if verbose:
            print(f"{name}: left out {n_rows - vocab_size} of {n_rows} ids, which no token has")
    return sizes, tensors


def load_tensors(get, place):
    """All tensors by their names in model.safetensors, or in the files of a large one's index."""
    files, tensors = ["model.safetensors"], {}
    index = Path(place, "model.safetensors.index.json")
    if index.exists() and not Path(place, *files).exists():
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    for file in files:
        if not re.fullmatch(r"[\w.-]+\.safetensors", file):  # it must not lead out of the folder
            raise UserError(f"{index} lists {file}: name a folder with all its files in it")
        for name, t in load_file(get(place, file)).items():
            if name in tensors:
                raise UserError(f"{place} holds {name} twice: keep one of the two files")
            if name.endswith("weight") and not t.is_floating_point():
                raise UserError(f"{place}: {name} holds {t.dtype}: name weights in float32")
            tensors[name] = t
    return tensors


# GPT-2's architecture: a config.json that says otherwise describes another network.
GPT2_IS = dict(
    model_type="gpt2", activation_function="gelu_new", layer_norm_epsilon=1e-5, n_inner=None,
    tie_word_embeddings=True, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)


def check_names(tensors, weights, source):
    """The tensors under our names, each used once. Raises UserError if one is missing, unknown,
    misshapen, there twice, or not finite.

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
        if not t.is_floating_point() or not t.float().isfinite().all():
            raise UserError(f"{source}: {name} ({t.dtype}) has values that are not finite numbers "
                            "in floating point: take other weights")
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
    """GPTConfig's fields, and nothing else, from a config.json of transformers; a missing one keeps
    its default. Raises UserError if the file is missing, broken, or describes a network that
    computes something other than GPT-2."""
    try:
        config = {"model_type": None, **json.loads(Path(path).read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not a GPT-2's config.json ({type(error).__name__}): name a "
                        "folder that save_pretrained wrote") from None
    for key, value in GPT2_IS.items():
        if config.get(key, value) != value:
            raise UserError(f"{path} says {key} = {config[key]}, and the network here has {value}: "
                            "name a GPT-2")
    sizes = {ours: config[theirs] for ours, theirs in SIZES.items() if theirs in config}
    for key, value in sizes.items():
        if type(value) is not int or not 1 <= value <= (1000 if key == "n_layer" else 10**6):
            raise UserError(f"{path} says {SIZES[key]} = {value!r}: name a GPT-2")
    return sizes


def write_pretrained(folder, sizes, state_dict, enc=None):
    """Write config.json and model.safetensors, which transformers' GPT2LMHeadModel opens.

    sizes: GPTConfig's fields. state_dict: the weights under our names, which are also theirs.
    enc: the tokenizer, for config.json's end-of-text; None: that is the last id.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: (v.t() if k.endswith(TRANSPOSED) else v).contiguous().cpu()
             for k, v in state_dict.items() if k != "lm_head.weight"}  # tied to wte
    with whole(folder / "model.safetensors") as path:
        save_file(state, path, metadata={"format": "pt"})
    end = enc.eot_token if enc else sizes["vocab_size"] - 1
    config = {theirs: sizes[ours] for ours, theirs in SIZES.items()} | dict(
        architectures=["GPT2LMHeadModel"], model_type="gpt2", dtype="float32",
        n_ctx=sizes["block_size"], n_inner=None, activation_function="gelu_new",
        layer_norm_epsilon=1e-5, tie_word_embeddings=True,
        bos_token_id=end, eos_token_id=end,
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), sizes.get("dropout", 0.0)))
    with whole(folder / "config.json") as path:
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
