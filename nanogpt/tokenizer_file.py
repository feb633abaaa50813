"""Any tokenizer.json, with tiktoken's methods."""

import hashlib
import re
from pathlib import Path

import numpy as np

from nanogpt.characters import without_surrogates
from nanogpt.common import UserError

# the special token that ends a text, by the names that a tokenizer.json may give it
ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]")
# such files write a byte as a visible character: its own, or one from U+0100 on
VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
LETTERS = [chr(i if i in VISIBLE else 256 + i - sum(j < i for j in VISIBLE)) for i in range(256)]
BYTES = {letter: i for i, letter in enumerate(LETTERS)}


class TokenizerFile:
    """A tokenizer.json, which the tokenizers library reads without executing anything. The name of
    a special token in a text is text; nothing is put in front, cut off or padded."""

    name = "tokenizer.json"

    def __init__(self, path):
        from tokenizers import Tokenizer

        try:
            self.text = Path(path).read_bytes().decode()
            self.rust = Tokenizer.from_str(self.text)
            self.n_vocab = 1 + max(self.rust.get_vocab().values())
        except BaseException as error:  # a panic in Rust is not an Exception
            raise UserError(f"{path} is not a tokenizer.json ({error}): name another") from None
        self.facts = {"tokenizer_sha256": hashlib.sha256(self.text.encode()).hexdigest()}
        self.path, self.rust.encode_special_tokens = path, True
        self.rust.no_truncation()
        self.rust.no_padding()
        special = {token.content: i for i, token in self.rust.get_added_tokens_decoder().items()
                   if token.special}
        end = next((end for end in ENDS if end in special), "")
        self.eot_token = special.get(end)
        if self.n_vocab > 2**16:
            raise UserError(f"{path} has {self.n_vocab:,} ids, and shards hold up to 65,536: name "
                            "another")
        self.within = f"(?<={re.escape(end[:1])})(?={re.escape(end[1:])})"  # a place in its name
        if not end:
            raise UserError(f"{path} has no special token to end a text with, such as {ENDS[0]} or "
                            f"{ENDS[2]}: name another")

    def encode_to_numpy(self, text, disallowed_special=()):
        text = without_surrogates(text)
        try:
            ids = self.rust.encode(text, add_special_tokens=False).ids
            if self.eot_token in ids:  # a Unigram model knows its name as a word: cut the name
                ids = [id for part in re.split(self.within, text)
                       for id in self.rust.encode(part, add_special_tokens=False).ids]
        except Exception as error:  # it lacks a character, and has no id for the unknown
            raise UserError(f"{self.path} cannot encode {text[:40]!r}... ({error}): name another"
                            ) from None
        return np.array(ids, dtype=np.uint32)

    def encode_ordinary(self, text):
        return self.encode_to_numpy(text).tolist()

    def decode(self, ids):
        return self.rust.decode(list(ids), skip_special_tokens=False)

    def decode_bytes(self, ids):
        """UTF-8. Exact where tokens are bytes; then a character may be in several of them."""
        if type(self.rust.decoder).__name__ != "ByteLevel":
            return self.decode(ids).encode()
        return b"".join(bytes(map(BYTES.get, token)) if BYTES.keys() >= {*token} else token.encode()
                        for token in map(self.rust.id_to_token, ids))
