"""Where a run's settings come from: presets for your own text, a TOML file, flags."""

import itertools
import json
import os
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch

from nanogpt.common import UserError, did_you_mean, parse

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

# Presets for your own text. They follow nanoGPT's config/train_shakespeare_char.py, its README's
# run on a CPU (with Muon here, and its own rate), and config/finetune_shakespeare.py.
CHARS = dict(
    data="shakespeare", tokenizer="chars", shuffle_rows=True, max_lr=1e-3, min_lr=1e-4,
    warmup_steps=100, val_tokens=10**6, hellaswag="none", keep=1, keep_best=True, prompt="\n",
    sample_tokens=200, temperature=0.8, print_every=50)
OWN_TEXT = {
    "shakespeare-char": CHARS | dict(
        n_layer=6, n_head=6, n_embd=384, dropout=0.2, B=64, T=256, total_batch_size=64 * 256,
        max_steps=5000, eval_every=250, checkpoint_every=5000),
    "shakespeare-char-cpu": CHARS | dict(
        n_layer=4, n_head=4, n_embd=128, B=12, T=64, total_batch_size=12 * 64, max_steps=2000,
        max_lr=1e-2, min_lr=0.0, optimizer="muon", eval_every=500, checkpoint_every=2000),
    "finetune": dict(
        data="shakespeare", init_from="gpt2", B=1, T=1024, total_batch_size=32 * 1024,
        shuffle_rows=True, max_steps=20, max_lr=3e-5, min_lr=3e-5, warmup_steps=0, eval_every=5,
        val_tokens=10**5, hellaswag="none", keep=1, keep_best=True, sample_tokens=100),
}
# The video's run with changes that lowered the loss in every pair: see main's runs/ablation
BEST = {"best": dict(optimizer="muon-qkv", max_lr=1.2e-3, min_lr=0.0, warm_down=0.4)}
# without a GPU, this preset is that one
ON_A_CPU = {"shakespeare-char": "shakespeare-char-cpu"}


def read_settings(args, presets, about):
    """[PRESET] [FILE.toml] [--flag value ...] -> what parse() needs: the configuration that flags
    start from, the flags, and for --help the program's name and what it is about. The file's key
    `preset` may name the preset. Raises UserError."""
    words = list(itertools.takewhile(lambda arg: not arg.startswith("-"), args))
    files = [word for word in words if word.endswith(".toml")]
    names = [word for word in words if word not in files]
    for word in [*names[1:], *files[1:]]:
        raise UserError(f"{word}: give one preset, one .toml file, and then flags")
    given = read_toml(files[0], presets["gpt2-124M"]) if files else {}
    name = str(given.pop("preset", "gpt2-124M"))
    name = names[0] if names else name
    if name not in presets:
        raise UserError(f"no preset {name}{did_you_mean(name, presets)}: choose one of "
                        f"{', '.join(presets)}")
    config = presets[name]
    if name in ON_A_CPU and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        config = replace(presets[ON_A_CPU[name]], out_dir=config.out_dir)
        if os.environ.get("RANK", "0") == "0":
            print(f"no GPU: {name} is {ON_A_CPU[name]} here")
    if given:
        flags = {key: f"--{key.replace('_', '-')}" for key in given}
        config = parse(config, [
            flags[key] if value is True else flags[key].replace("--", "--no-", 1)
            if value is False else f"{flags[key]}={value}" for key, value in given.items()],
            files[0], "")
    about += f"\nPresets: {', '.join(presets)}. The defaults below are {name}'s."
    return config, args[len(words) :], f"train_gpt2.py {name}", about


def read_toml(path, config):
    """{setting: value} of a TOML file. Raises UserError for a key that is no field of `config`."""
    try:
        given = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise UserError(f"cannot read {path} ({error}): give a TOML file of `name = value` lines"
                        ) from None
    known = ["preset", *(field.name for field in fields(config))]
    for key, value in given.items():
        if key not in known or isinstance(value, dict | list):
            raise UserError(f"{path}: {key} is not a setting{did_you_mean(key, known)}: --help has "
                            "them all, each with one value")
        if type(getattr(config, key, None)) is bool is not type(value):
            raise UserError(f"{path}: {key} = {value}: give true or false")
    return given


def to_toml(config):
    """The text of a TOML file with which train_gpt2.py gives the same run again."""
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}".replace("\x7f", "\\u007f")
             for name, value in asdict(config).items() if value is not None and name != "resume"]
    return "\n".join(lines) + "\n"
