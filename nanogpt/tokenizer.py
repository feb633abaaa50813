"""Text to ids and back: GPT-2's byte pairs, bytes, characters, or any tokenizer.json.

A tokenizer's key is a string: gpt2, bytes, "chars:" and the characters in the order of their ids
("chars+eot:" if end-of-text comes after them), or the path of a .json file.
"""

import functools
import re
from pathlib import Path

import numpy as np
import tiktoken

from nanogpt.characters import Characters, read_characters
from nanogpt.common import UserError, did_you_mean, needs_network
from nanogpt.disk import digest
from nanogpt.tokenizer_file import TokenizerFile

# name -> number of ids; a network's vocab_size says which of the two it was trained with
TOKENIZERS = {"gpt2": 50257, "bytes": 257}


def tokenizer_name(vocab_size):
    """'gpt2' or 'bytes', by the number of ids. Raises UserError for any other number."""
    for name, n_vocab in TOKENIZERS.items():
        if n_vocab == vocab_size:
            return name
    raise UserError(
        f"a vocabulary of {vocab_size} ids belongs to no known tokenizer: "
        "50257 is gpt2's, 257 is bytes'"
    )


def get_tokenizer(key):
    """A tiktoken.Encoding: GPT-2's 50,257 ids, or 256 bytes and end-of-text; or Characters or a
    TokenizerFile, which have its methods.

    GPT-2's vocabulary is downloaded once and kept where TIKTOKEN_CACHE_DIR says, or in the
    system's temporary folder. Raises UserError if it is neither there nor can be downloaded.
    """
    if match := re.match(r"chars(\+eot)?:", key):
        return Characters(key[match.end() :], eot=bool(match[1]))
    if key.endswith(".json"):
        return read_characters(key) or TokenizerFile(key)
    if key not in TOKENIZERS:
        raise UserError(f"no tokenizer {key}{did_you_mean(key, [*TOKENIZERS, 'chars'])}: choose "
                        "gpt2, bytes, chars or the path of a tokenizer.json")
    if key == "bytes":
        ranks = {bytes([i]): i for i in range(256)}
        special = {"<|endoftext|>": 256}
        # one piece per character, so that no piece is long and nothing is merged
        return tiktoken.Encoding("bytes", pat_str="(?s:.)", mergeable_ranks=ranks,
                                 special_tokens=special)
    with needs_network("GPT-2's vocabulary", "go online once, set TIKTOKEN_CACHE_DIR to a folder "
                       "that holds it, or do without: --tokenizer bytes, or the preset laptop"):
        return tiktoken.get_encoding(key)


def key_of(manifest, folder):
    """The key of the tokenizer that a folder's shards were made with, by their manifest. Raises
    KeyError or TypeError if it names none, UserError if it names a file that is another now."""
    name = str(manifest["tokenizer"])
    if name == "chars":
        end = "" if manifest["end_of_text"] is None else "+eot"
        return f"chars{end}:" + manifest["characters"]
    if name.endswith(".json"):  # wherever the original was, its copy is here
        name = Path(folder, "tokenizer.json")
        if not name.exists() or digest(name)[1] != manifest["tokenizer_sha256"]:
            raise UserError(f"{name} is not the tokenizer that the shards were made with: fetch it "
                            "again, or make the shards again")
    return str(name)


def fit_prompt(enc, prompt, presets):
    """The prompt; "" for a preset's that has other characters than the tokenizer. UserError."""
    try:
        enc.encode_ordinary(prompt)
    except UserError as error:
        if prompt not in [preset.prompt for preset in presets.values()]:
            raise UserError(f"--prompt: {error}") from None
        prompt = ""
    return prompt


def folder_key(folder):
    """The key of a network's tokenizer: its folder's tokenizer.json; without one, gpt2 or bytes by
    the number of ids, which some pad for speed. Raises UserError."""
    from nanogpt.weights import read_sizes  # imports torch, which fineweb.py does without

    if (path := Path(folder, "tokenizer.json")).exists():
        return str(path)
    ids = read_sizes(Path(folder, "config.json")).get("vocab_size", TOKENIZERS["gpt2"])
    padded = [name for name, n_vocab in TOKENIZERS.items() if n_vocab <= ids < n_vocab + 128]
    return padded[0] if padded else tokenizer_name(ids)


def check_tokenizer(enc, init_from):
    """Raises UserError if an id is another text to the tokenizer of --init-from than to `enc`."""
    path = Path(init_from, "tokenizer.json")
    known = path.exists() or enc.n_vocab == TOKENIZERS["gpt2"] and not path.parent.exists()
    other = get_tokenizer(str(path) if path.exists() else "gpt2") if init_from and known else enc
    for i in range(enc.n_vocab if other.n_vocab == enc.n_vocab and other is not enc else 0):
        there, here = other.decode_bytes([i]), enc.decode_bytes([i])
        if there != here and i != enc.eot_token:
            raise UserError(f"id {i} is {there} to --init-from {init_from}, {here} to the data's "
                            "tokenizer: choose other weights, or make the data with --tokenizer "
                            + (str(path) if path.exists() else "gpt2"))


# GPT-2's pattern. Everything that needs no look ahead is one group, which tiktoken's engine gives
# to a fast automaton as a whole; only spaces are left to its slower, backtracking part
PATTERN = (r"(?:'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+)"
           r"|\s+(?!\S)|\s+")


@functools.cache
def encoding(name):
    """The tokenizer of this process, GPT-2's with PATTERN."""
    enc = get_tokenizer(name)
    if name != "gpt2":
        return enc
    return tiktoken.Encoding(name, pat_str=PATTERN, mergeable_ranks=enc._mergeable_ranks,
                             special_tokens=enc._special_tokens)


def encode(enc, text):
    """A document's tokens (uint16): end-of-text, if there is one, then the text's. Special tokens'
    names are text.

    tiktoken's pattern fails on runs of about a million spaces, so they are cut.
    """
    tokens = [enc.encode_to_numpy(piece, disallowed_special=()) for piece in cut(text)]
    first = [] if enc.eot_token is None else [enc.eot_token]
    return np.concatenate([first, *tokens], dtype=np.uint16, casting="unsafe")


def cut(text):
    """The text in pieces: every 100,000 spaces of a run, and whatever is between such runs. A run
    is tried only where it begins; to try each of its spaces would take quadratic time."""
    if len(text) <= 100_000:
        return [text]
    pieces = []
    for i, part in enumerate(re.split(r"(?<!\s)((?:\s{100000})+)", text)):
        size = 100_000 if i % 2 else max(1, len(part))
        pieces += [part[j : j + size] for j in range(0, len(part), size)]
    return pieces
