"""Any causal language model that transformers has, for hellaswag.py to score."""

import inspect
import json
import re
from pathlib import Path

from nanogpt.common import UserError, hub_file, needs_network
from nanogpt.weights import load_tensors


def load_model(name_or_folder, device):
    """Any causal language model of transformers, from safetensors, in fp32, in evaluation mode."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, logging

    logging.set_verbosity_error()
    get, place = Path if Path(name_or_folder).is_dir() else hub_file, str(name_or_folder)
    with needs_network(f"the model {name_or_folder}",
                       "name gpt2 (online), or a folder with config.json and model.safetensors"):
        config, tensors = read_config(get(place, "config.json")), load_tensors(get, place)
        logging.disable_progress_bar()  # now that all is downloaded
        model, info = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
            None, config=config, state_dict=tensors, dtype="float32", output_loading_info=True,
            ignore_mismatched_sizes=True)  # they are refused by name here
    for name in sorted(info["unexpected_keys"] | {name for name, *_ in info["mismatched_keys"]}):
        raise UserError(f"{place}: {name} does not fit its config.json: take other weights")
    if absent := sorted(info["missing_keys"]):  # transformers went on with random numbers there
        raise UserError(f"{name_or_folder} lacks weights of its config.json, {absent[0]} for one: "
                        "name a folder that holds them all")
    model = model.to(device).eval()
    if model.config.model_type == "gpt2":  # the only kind known to read such a mask correctly
        model.hidden = lambda idx, pos, mask: model.transformer(
            idx, position_ids=pos, attention_mask=mask, use_cache=False).last_hidden_state
    return model


def read_config(path):
    """transformers' config with the settings of its kind of network, from a config.json. It may be
    a stranger's, so nothing is taken that could name code, kernels, or files. Raises UserError."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig

    asked = json.loads(Path(path).read_text(encoding="utf-8"))
    kind = CONFIG_MAPPING[asked["model_type"]] if asked["model_type"] in CONFIG_MAPPING else None
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"{path} says model_type = {asked['model_type']!r}: name a language model")
    known, of_all = (inspect.signature(c).parameters.keys() for c in (kind, PreTrainedConfig))
    known = (known - of_all) | kind.attribute_map.keys() | {
        "rope_theta", "rope_scaling", "rotary_pct", "rotary_emb_base", "partial_rotary_factor"}
    for key, value in asked.items():
        plain = re.fullmatch(r'[\w\s"{}\[\]:,.+-]*', json.dumps(value))
        if value and key.endswith("_config") or key in known and not plain:
            raise UserError(f"{path} says {key} = {str(value)[:40]}: name a model without it")
    return kind(**{key: value for key, value in asked.items() if key in known})
