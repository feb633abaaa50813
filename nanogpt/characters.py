"""A tokenizer in which every character is a token."""

import json
import re
from pathlib import Path

import numpy as np

from nanogpt.common import UserError

# the pre-tokenizer of a tokenizer.json in which every character is a token
EACH = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}


def without_surrogates(text):
    """The text with U+FFFD for every surrogate, a code point that UTF-8 does not have."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


class Characters:
    """Every character is a token. Ids follow the code points; end-of-text, if any, is the last.

    >>> Characters("abc").encode_ordinary("cab")
    [2, 0, 1]
    """

    name = "chars"

    def __init__(self, characters, eot=False):
        if not characters or [*characters] != sorted({*characters}) or len(characters) >= 2**16:
            raise UserError(f"{len(characters)} characters: up to 65,535 can be tokens, each once "
                            "and in the order of their code points: choose another tokenizer")
        self.characters, self.n_vocab = characters, len(characters) + eot
        self.eot_token = len(characters) if eot else None  # None: all text is one document
        self.facts = {"characters": characters}  # for a manifest
        self.pieces = [*characters, "<|endoftext|>"]
        self.table = np.full(ord(characters[-1]) + 2, -1, dtype=np.int32)  # code point -> id
        self.table[[ord(c) for c in characters]] = range(len(characters))

    def encode_to_numpy(self, text, disallowed_special=()):
        codes = np.frombuffer(without_surrogates(text).encode("utf-32-le"), dtype="<u4")
        ids = self.table.take(codes, mode="clip")
        if (ids < 0).any():
            at = int(ids.argmin())
            around = text[: at + 9][-40:]
            raise UserError(f"{text[at]!r} (character {at} of a text, in {around!r}) is not among "
                            f"this tokenizer's {len(self.characters)} characters: leave it out")
        return ids.astype(np.uint32)

    def encode_ordinary(self, text):
        return self.encode_to_numpy(text).tolist()

    def decode(self, ids):
        return "".join([self.pieces[i] for i in ids])

    def decode_bytes(self, ids):
        return self.decode(ids).encode()


def read_characters(path):
    """The Characters whose tokenizer.json this is, as exports.py writes it; None for any other."""
    try:
        facts = json.loads(Path(path).read_bytes())
        characters = "".join(sorted(vocab := facts["model"]["vocab"]))
        if facts["pre_tokenizer"] != EACH or vocab != {c: i for i, c in enumerate(characters)}:
            return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return Characters(characters, eot=bool(facts["added_tokens"]))
