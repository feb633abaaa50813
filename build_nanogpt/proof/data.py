"""Data and flags of the proof's run: the shards of --data, or ones made from Python's own text."""

import json
import re
import sysconfig
from base64 import b64decode, b64encode
from collections import Counter
from pathlib import Path

import numpy as np
import tiktoken
import tiktoken.load

from build_nanogpt.cli import UserError
from nanogpt import common
from nanogpt.common import needs_network
from nanogpt.disk import whole
from nanogpt.tokenizer import TOKENIZERS, get_tokenizer

# Sizes of the run, and of its rehearsal on a CPU.
BIG = {"n_layer": 12, "n_head": 12, "n_embd": 768, "T": 1024, "max_steps": 300, "max_lr": 6e-4,
       "warmup_steps": 30, "val_tokens": 2**19, "hellaswag_limit": 400, "sample_tokens": 32}
SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 64, "T": 64, "max_steps": 30, "max_lr": 3e-3,
         "warmup_steps": 4, "val_tokens": 2**11, "hellaswag_limit": 40, "sample_tokens": 16}

# -----------------------------------------------------------------------------
# text and shards


def documents(small):
    """Texts that every machine has: Python's manual and, unless small, its standard library."""
    with needs_network("Python's manual", "this Python has no pydoc_data: name shards by --data"):
        from pydoc_data.topics import topics
    found = list(topics.values())
    if not small:
        library = Path(sysconfig.get_paths()["stdlib"])
        for path in sorted(library.rglob("*.py")):
            inside = path.relative_to(library).parts
            if not {"site-packages", "dist-packages", "test", "tests"} & set(inside):
                found.append(path.read_text(encoding="utf-8", errors="replace"))
    return found


def gpt2_is_cached():
    """Whether GPT-2's vocabulary is there. Never downloads: behind a firewall that could hang."""
    def no_network(url):
        raise OSError(url)

    before, tiktoken.load.read_file = tiktoken.load.read_file, no_network
    try:
        get_tokenizer("gpt2")
    except common.UserError:
        return False
    finally:
        tiktoken.load.read_file = before
    return True


# A word with the space before it, a run of signs, or a run of spaces.
PIECES = r" ?\w+| ?[^\s\w]+|\s+"


def own_pieces(texts, n=TOKENIZERS["gpt2"] - 257):
    """The n most frequent pieces of the texts that are longer than a byte, as bytes."""
    counts = Counter(piece for text in texts for piece in re.findall(PIECES, text))
    frequent = (piece.encode(errors="replace") for piece, _ in counts.most_common())
    found = list(dict.fromkeys(piece for piece in frequent if len(piece) > 1))[:n]
    # a short text has too few: fill up with a zero byte and a number, which no text contains
    return found + [b"\0%d" % i for i in range(n - len(found))]


def own_tokenizer(file):
    """A tiktoken.Encoding of 256 bytes, the pieces in a file (see own_pieces) and end-of-text. It
    has as many ids as GPT-2's, and stands in for it where GPT-2's vocabulary is not cached."""
    pieces = [b64decode(piece) for piece in json.loads(Path(file).read_text(encoding="utf-8"))]
    ranks = {piece: i for i, piece in enumerate([*(bytes([i]) for i in range(256)), *pieces])}
    return tiktoken.Encoding("own", pat_str=PIECES, mergeable_ranks=ranks,
                             special_tokens={"<|endoftext|>": len(ranks)})


def write_shards(folder, texts, enc):
    """Write a training shard and a validation shard, which gets every tenth document."""
    for split, part in (("train", [text for i, text in enumerate(texts) if i % 10 != 9]),
                        ("val", texts[9::10])):
        ids = [id for text in part for id in (enc.eot_token, *enc.encode_ordinary(text))]
        np.save(folder / f"text_{split}_000000.npy", np.array(ids, dtype=np.uint16))


def shards_of(config):
    """(folder of shards, its tokenizer, vocab_size): of --data, or made in the folder --out."""
    if config.data:
        name = named_tokenizer(config.data)
        return Path(config.data), get_tokenizer(name), TOKENIZERS[name]
    folder = Path(config.out) / "shards"
    own = folder / "vocabulary.json"
    if not folder.exists():
        texts = documents(config.small)
        with whole(folder) as path:
            path.mkdir()
            if not config.small and not gpt2_is_cached():
                pieces = [b64encode(piece).decode() for piece in own_pieces(texts)]
                (path / own.name).write_text(json.dumps(pieces), encoding="utf-8")
            write_shards(path, texts, tokenizer_of(path, config.small))
    enc = tokenizer_of(folder, config.small)
    return folder, enc, enc.n_vocab


def tokenizer_of(folder, small):
    own = folder / "vocabulary.json"
    return own_tokenizer(own) if own.exists() else get_tokenizer("bytes" if small else "gpt2")


def named_tokenizer(folder):
    """The tokenizer that a folder's manifest names; without one, gpt2. Raises UserError."""
    manifest, name = Path(folder) / "manifest.json", "gpt2"
    if manifest.exists():
        try:
            name = json.loads(manifest.read_text(encoding="utf-8"))["tokenizer"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{manifest} is not a manifest ({type(error).__name__}): make the "
                            "shards again") from None
    if name not in TOKENIZERS:
        raise UserError(f"the shards in {folder} are of the tokenizer {name}: name others, of "
                        f"{' or '.join(TOKENIZERS)}")
    return name


# -----------------------------------------------------------------------------
# flags


def flags_of(config, B, folder):
    """Flags for train_gpt2.py: two micro-steps a step; a checkpoint and an evaluation midway."""
    data, _, vocab_size = shards_of(config)
    sizes = SMALL if config.small else BIG
    half = sizes["max_steps"] // 2
    flags = sizes | {
        "data": data, "vocab_size": vocab_size, "out_dir": folder, "B": B,
        "total_batch_size": 2 * B * sizes["T"], "eval_every": half, "checkpoint_every": half,
        "hellaswag": config.hellaswag, "device": config.device}
    if config.compile is not None:
        flags["compile"] = config.compile
    return [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()] + ["--shuffle"]
