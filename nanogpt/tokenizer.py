"""Text to ids and back: GPT-2's byte pairs, or plain bytes."""

import functools
import re

import numpy as np
import tiktoken

from nanogpt.common import UserError, needs_network

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


def get_tokenizer(name):
    """A tiktoken.Encoding: GPT-2's 50,257 ids, or 256 bytes and end-of-text.

    GPT-2's vocabulary is downloaded once and kept where TIKTOKEN_CACHE_DIR says, or in the
    system's temporary folder. Raises UserError if it is neither there nor can be downloaded.
    """
    if name == "bytes":
        ranks = {bytes([i]): i for i in range(256)}
        special = {"<|endoftext|>": 256}
        # one piece per character, so that no piece is long and nothing is merged
        return tiktoken.Encoding("bytes", pat_str="(?s:.)", mergeable_ranks=ranks,
                                 special_tokens=special)
    with needs_network("GPT-2's vocabulary", "go online once, set TIKTOKEN_CACHE_DIR to a folder "
                       "that holds it, or run the byte-level preset: train_gpt2.py laptop"):
        return tiktoken.get_encoding(name)


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
    """A document's tokens (uint16): end-of-text, then the text's. Special tokens' names are text.

    tiktoken's pattern fails on runs of about a million spaces, so they are cut.
    """
    tokens = [enc.encode_to_numpy(piece, disallowed_special=()) for piece in cut(text)]
    return np.concatenate([[enc.eot_token], *tokens], dtype=np.uint16, casting="unsafe")


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
