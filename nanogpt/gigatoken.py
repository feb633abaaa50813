"""gigatoken in tiktoken's place: faster, and checked against it in every run."""

import base64
import functools
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from nanogpt.common import UserError
from nanogpt.tokenizer import encode, encoding

SAMPLE = 64  # one document in this many is also encoded by tiktoken, to compare


@functools.cache
def fast_encoding(name):
    """gigatoken with encoding(name)'s ranks, as the part of tiktoken's interface that encode()
    uses. It is told of no special tokens, so their names stay text. Raises UserError."""
    enc = encoding(name)
    try:
        import gigatoken

        lines = [base64.b64encode(piece) + b" %d\n" % rank
                 for piece, rank in enc._mergeable_ranks.items()]
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "ranks").write_bytes(b"".join(lines))
            fast = gigatoken.Tokenizer.from_tiktoken(Path(folder, "ranks"), pretokenizer="gpt2")
    except Exception as error:  # not installed, not for this system, another version or tokenizer
        raise UserError(f"--encoder gigatoken does not work here ({type(error).__name__}): pip "
                        "install gigatoken, or leave out --encoder") from None
    lock = threading.Lock()  # all threads share one tokenizer, which refuses a second caller

    def encode_to_numpy(text, **special):
        with lock:
            return fast.encode(text)

    return SimpleNamespace(eot_token=enc.eot_token, encode_to_numpy=encode_to_numpy)


@functools.cache
def agree(tokenizer, char):
    """Whether both libraries treat the character alike: their versions of Unicode differ."""
    text = f"a{char} {char}1{char}{char} {char}'s {char}\n"
    return np.array_equal(encode(encoding(tokenizer), text), encode(fast_encoding(tokenizer), text))


def encode_fast(texts, tokenizer, place):
    """The documents' tokens (uint16 arrays) by gigatoken; by tiktoken where the two disagree on a
    character. The first document, and one in SAMPLE after it, is encoded by both. Raises UserError
    with the document and the place if they differ."""
    enc, fast = encoding(tokenizer), fast_encoding(tokenizer)
    occurs = np.zeros(sys.maxunicode + 1, dtype=bool)  # a set() would take ten times as long
    codes = "".join(text for text in texts if not text.isascii()).encode("utf-32-le")
    occurs[np.frombuffer(codes, "<u4")] = True
    strange = {chr(i) for i in np.flatnonzero(occurs) if not agree(tokenizer, chr(i))}
    documents = [encode(enc if strange and strange.intersection(text) else fast, text)
                 for text in texts]
    for text, tokens in zip(texts[::SAMPLE], documents[::SAMPLE], strict=True):
        if not np.array_equal(tokens, encode(enc, text)):
            raise UserError(f"gigatoken and tiktoken differ on the document {text[:50]!r} in "
                            f"{place}: choose another --out, and leave out --encoder")
    return documents
