"""Documents to tokens: against the bytes of the documents, and against the tokenizer itself."""

import numpy as np
import pytest
import tiktoken
from helpers import (
    expected_tokens,
    fineweb,
    gpt2_vocabulary_missing,
    make_documents,
    refused,
    stream_from,
    write_parquet,
)

from nanogpt.tokenizer import encoding


def test_every_document_is_end_of_text_and_its_bytes(tmp_path):
    """End-of-text comes before every document, also the first; the stream goes over files."""
    documents = make_documents(75)
    tokens = stream_from(write_parquet(tmp_path / "docs", documents))
    assert tokens.dtype == np.uint16
    assert tokens.tolist() == [t for text in documents for t in (256, *text.encode())]


def test_empty_documents_are_one_token(tmp_path):
    """Whole row groups of them too, and such of nothing but missing texts."""
    documents = ["", "", None, None, "ab", "", None, "c"]
    folder = write_parquet(tmp_path / "docs", documents, files=1, row_group_size=2)
    assert stream_from(folder).tolist() == [256, 256, 256, *b"ab", 256, 256, *b"c"]


def test_end_of_text_written_in_a_text_is_text(tmp_path):
    """encode_ordinary knows no special tokens; encode raises for them or makes one of them."""
    text = "<|endoftext|> in a text is text, and so is <|endoftext|>"
    tokens = stream_from(write_parquet(tmp_path / "docs", [text], files=1))
    assert tokens.tolist() == [256, *text.encode()]


@pytest.mark.skipif(bool(gpt2_vocabulary_missing()), reason=gpt2_vocabulary_missing())
def test_gpt2s_tokens(tmp_path):
    documents = [*make_documents(20), "<|endoftext|> in a text is text, and so is <|endoftext|>"]
    tokens = stream_from(write_parquet(tmp_path / "docs", documents), tokenizer="gpt2")
    assert tokens.tolist() == expected_tokens(documents, "gpt2")
    assert (tokens == 50256).sum() == 21


def test_no_vocabulary_is_one_line_before_anything_is_read(tmp_path, monkeypatch):
    def no_network(name):
        raise OSError("no network")

    monkeypatch.setattr(tiktoken, "get_encoding", no_network)
    encoding.cache_clear()
    source = write_parquet(tmp_path / "docs", make_documents(5))
    done = fineweb(source, tmp_path / "out", tokenizer="gpt2")
    refused(done, "cannot get GPT-2's vocabulary", "TIKTOKEN_CACHE_DIR")
    assert not (tmp_path / "out").exists()
