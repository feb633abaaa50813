"""What a checkpoint holds for other tools and readers: tokenizer, model card, curves."""

import json
import shlex
import sys
from pathlib import Path

from nanogpt import __version__
from nanogpt.exports import tokenizer_files
from nanogpt.report import read_log, save_curves
from nanogpt.sources import HUB
from nanogpt.weights import PRETRAINED

FOR_OTHERS = ("README.md", "curves.png", "generation_config.json", "tokenizer.json",
              "tokenizer_config.json")

CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [gpt2]
{more}---

# {name}, step {step:,}

A GPT-2 by lecture {version} of train_gpt2.py. It continues a text and does not answer questions.

| | |
| --- | --- |
| text | {source}; tokenizer: {tokenizer}, {vocab_size:,} ids |
| network | {n_layer} layers, {n_head} heads, {n_embd} channels: {parameters:,} parameters |
| training | {step:,} steps, {tokens:,} tokens, {block_size} at a time: {epochs:.2f} epochs |
{losses}

![loss of training and validation](curves.png)

    {command}

In Python: `transformers.pipeline("text-generation", "this folder")({prompt!r})`.

The program is under the MIT license. Whoever publishes these weights chooses theirs, and adds a
line `license:` at the top.
"""


def model_card(net, stream, facts, log):
    """The text of README.md, with a head that the hub reads."""
    config, source = facts["config"], facts["config"]["data"]
    if (manifest := Path(source, "manifest.json")).exists():
        source = str(json.loads(manifest.read_text(encoding="utf-8")).get("source", source))
    more = f"datasets: [{HUB}]\n" * (source == HUB)
    if config["init_from"] in PRETRAINED:
        more += f"base_model: openai-community/{config['init_from']}\n"
    names = {"train": "training loss", "val": "validation loss", "hella": "endings right"}
    losses = [f"| {name} | {log[kind][1][-1]:.4f} at step {log[kind][0][-1]:,} |"
              for kind, name in names.items() if log[kind][0]]
    return CARD.format(
        **vars(net.config), parameters=net.num_params(), more=more, step=facts["step"],
        name=Path(config["out_dir"]).name, version=__version__, tokenizer=stream.enc.name,
        source=source.replace("|", "\\|"), tokens=facts["position"],
        epochs=facts["position"] / stream.n_tokens, losses="\n".join(losses),
        command=shlex.join(["python", "train_gpt2.py", *sys.argv[1:]]), prompt=config["prompt"])


def write_for_others(folder, net, stream, facts, log_path):
    """Write FOR_OTHERS. What cannot be made is left out, and a line says why: to a run, these files
    are worth less than a checkpoint."""
    def write_tokenizer():
        for name, text in tokenizer_files(stream.enc, net.config.block_size).items():
            (folder / name).write_bytes(text.encode())

    def write_card():
        log = read_log(log_path, facts["log_size"])
        (folder / "README.md").write_bytes(model_card(net, stream, facts, log).encode())
        save_curves(log_path, folder / "curves.png", facts["log_size"])

    for write in write_tokenizer, write_card:
        try:
            write()
        except Exception as error:
            print(f"files for other tools are left out ({type(error).__name__}: {error})")
