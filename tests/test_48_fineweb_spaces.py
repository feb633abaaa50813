"""A document of a million spaces: its bytes come back, and no other document is cut."""

import pytest
import tiktoken
from helpers import gpt2_vocabulary_missing
from tiktoken_ext.openai_public import r50k_pat_str

from nanogpt.tokenizer import get_tokenizer
from nanogpt.tokenizer import encode

# GPT-2's way of cutting a text into pieces, with bytes and a few pairs for a vocabulary
RANKS = {bytes([i]): i for i in range(256)} | {b" b": 256, b" x": 257, b"  ": 258}
ENC = tiktoken.Encoding("pieces", pat_str=r50k_pat_str, mergeable_ranks=RANKS,
                        special_tokens={"<|endoftext|>": 259})


@pytest.mark.parametrize("space", [" ", "\n", "\u3000"])
def test_a_million_spaces_come_back(space):
    """More than tiktoken's regex can take in one piece: without the cut, a PanicException."""
    text = "a" + 1_000_000 * space + "x"
    tokens = encode(ENC, text).tolist()
    assert tokens[0] == ENC.eot_token and ENC.decode(tokens[1:]) == text


@pytest.mark.parametrize(
    "text", ["a b  x" * 40_000, "x" * 150_000, "a" + " " * 5_000 + "x" * 120_000])
def test_a_long_document_without_them_is_not_cut(text):
    """Only a run of spaces is cut: anywhere else, or in a shorter run, the tokens would change."""
    assert encode(ENC, text).tolist() == [ENC.eot_token, *ENC.encode_ordinary(text)]


@pytest.mark.skipif(bool(gpt2_vocabulary_missing()), reason=gpt2_vocabulary_missing())
def test_a_million_spaces_of_gpt2():
    """More than tiktoken's regex can take in one piece."""
    enc = get_tokenizer("gpt2")
    for text in "a" + " " * 1_000_000 + "x", "x" * 300_000, "a b " * 50_000:
        tokens = encode(enc, text).tolist()
        assert tokens[0] == enc.eot_token and enc.decode(tokens[1:]) == text
    assert encode(enc, "a b " * 50_000)[1:].tolist() == enc.encode_ordinary("a b " * 50_000)
