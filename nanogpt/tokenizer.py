"""Text to ids and back: GPT-2's byte pairs, or plain bytes."""

import functools
import re

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


@functools.cache
def encoding(name):
    """The tokenizer of this process."""
    return get_tokenizer(name)


def encode(enc, text):
    """A document's tokens, as a list: end-of-text, then the text's.

    tiktoken's regex overflows its stack on about a million spaces in a row, so a long document is
    cut at runs of 100,000.
    """
    parts = re.split(r"(\s{100000})", text) if len(text) > 100_000 else [text]
    return [enc.eot_token, *(token for part in parts for token in enc.encode_ordinary(part))]
