"""What a tool is compared with: the network of a folder and its tokenizer, as this project has
them, on one prompt and one hard text."""

import contextlib
import json
import random
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from build_nanogpt.cli import UserError

# letters, digits, spaces and line ends of many kinds, a special token's name, emoji in parts
HARD = [*"aZ09 \n\t\r.!'_äß→漢\u00a0\u3000\u200d😀", "'s", "'ll", "'LL", "  ", "\r\n", "\n\n",
        "<|endoftext|>", "e\u0301", "🏳️‍🌈", "\0"]


@dataclass(frozen=True)
class Case:
    """A folder, and what this project makes of it: ids of `text` and of `prompt`, the (T, V) logits
    after each id of the prompt, and the greedy continuation."""

    folder: str
    text: str
    text_ids: list
    prompt: str
    prompt_ids: list
    logits: np.ndarray
    new_ids: list
    written: str
    eot: int | None
    block_size: int
    tokenizer: str
    hellaswag: str = ""
    llama_cpp: str = ""
    node: str = ""


def settled(text, *without):
    """The text without some parts, and without characters that are new since this Python's version
    of Unicode: whether such a one is a letter is not known to every tool, and pairs depend on it.
    """
    for part in without:
        text = text.replace(part, "")
    return "".join(c for c in text if unicodedata.category(c) != "Cn")


def hard_text(enc, size, seed=0):
    """About `size` characters: every kind of HARD, and characters from all planes of Unicode. For
    a tokenizer of characters, only those it has."""
    rng, parts, n = random.Random(seed), [], 0
    known = getattr(enc, "characters", None)
    while n < size:
        code = rng.randrange(0x110000)
        parts.append(rng.choice([rng.choice(HARD), "" if 0xD800 <= code < 0xE000 else chr(code),
                                 " " * rng.randrange(9), rng.choice("etaoin ") * 2]))
        n += len(parts[-1])
        if known is not None:
            parts[-1] = "".join(c if c in known else rng.choice(known) for c in parts[-1])
    return "".join(parts)


def tokenizer_of(folder):
    """A network's tokenizer: the one that its shards were made with, where it is one of ours, so
    that the ids of the folder's tokenizer.json are not compared with themselves."""
    from nanogpt.common import UserError as Missing
    from nanogpt.exports import tokenizer_json
    from nanogpt.tokenizer import TOKENIZERS, folder_key, get_tokenizer

    enc = get_tokenizer(folder_key(folder))
    for name, n_ids in TOKENIZERS.items():
        with contextlib.suppress(Missing):  # GPT-2's vocabulary may be out of reach
            if enc.name == "tokenizer.json" and enc.n_vocab == n_ids and tokenizer_json(
                    ours := get_tokenizer(name)) == enc.text:
                return ours
    return enc


def make_case(config):
    """The Case of config.checkpoint. Raises UserError if it cannot be opened here."""
    import torch

    from train_gpt2 import GPT

    folder = Path(config.checkpoint)
    if not (folder / "config.json").exists():
        if not (found := sorted(folder.glob("checkpoint_*"))):
            raise UserError(f"{folder} is neither a GPT-2 folder nor a run's: name a checkpoint")
        folder = found[-1]
    enc = tokenizer_of(folder)
    model = GPT.from_pretrained(folder, enc.n_vocab).eval()
    prompt = config.prompt
    if not prompt:
        try:
            prompt = json.loads((folder / "state.json").read_text("utf-8"))["config"]["prompt"]
        except (OSError, ValueError, KeyError):
            prompt = "The "
    prompt_ids, block_size = enc.encode_ordinary(prompt), model.config.block_size
    room = block_size - len(prompt_ids)
    if not prompt_ids or room < 1:
        raise UserError(f"--prompt {prompt!r} has {len(prompt_ids)} tokens: give 1 to "
                        f"{block_size - 1}")
    idx = torch.tensor([prompt_ids])
    with torch.no_grad():
        logits = model(idx)[0][0].numpy()
    new = model.generate(idx, min(config.tokens, room), temperature=0)[0, len(prompt_ids):].tolist()
    if enc.eot_token in new:  # there every tool stops
        new = new[: new.index(enc.eot_token)]
    text = hard_text(enc, config.text)
    return Case(str(folder), text, enc.encode_ordinary(text), prompt, prompt_ids, logits, new,
                enc.decode(new), enc.eot_token, block_size, enc.name, config.hellaswag,
                config.llama_cpp, config.node)
