"""A file of text is one document: against the tokenizer's own ids of the whole text."""

import functools
import gzip
import io
import json
import os
import random
import sys
import tracemalloc
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest
import regex
from helpers import (
    TINY, contents, expected_tokens, fineweb, gpt2_vocabulary_missing, killed, make_documents,
    refused, start, stopped, tokens_of, write_parquet,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import fineweb as program
from nanogpt import formats, gigatoken
from nanogpt.sources import estimate_tokens, find_source
from nanogpt.tokenizer import encode, encoding, get_tokenizer

# as OpenAI wrote it: github.com/openai/gpt-2, src/encoder.py
GPT2 = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
HARD = [*"aZ09 \n\t\r.!'_äß→漢\x1c\x85\xa0\u3000\u200d😀", "'s", "  ", "\n\n", "\r\n",
        "<|endoftext|>"]
ARGS = "--shard-size", 5000


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 2,000 characters, so that a small text has many."""
    monkeypatch.setattr(formats, "BLOCK", 2000)


def long_text(n=60_000, seed=0):
    rng = random.Random(seed)
    return "".join(rng.choices(HARD + [" word", " the"] * 9, k=n // 3))


def write_text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def test_a_text_is_one_document(small_blocks, tmp_path):
    """One end-of-text, at its beginning, whatever the text holds; line ends stay as they are."""
    text = long_text() + "\r\nlast\r"
    done = fineweb(write_text(tmp_path / "a b.txt", text), tmp_path / "out", *ARGS)
    assert done.returncode == 0, done.stderr
    assert tokens_of(tmp_path / "out").tolist() == [256, *text.encode()]
    assert (tmp_path / "out" / "a b_val_000000.npy").exists()
    assert "tokens of 1 document in" in done.stdout


@pytest.mark.skipif(bool(gpt2_vocabulary_missing()), reason=gpt2_vocabulary_missing())
def test_gpt2s_ids_of_a_long_text(small_blocks, tmp_path):
    """Cut into more than 20 blocks, it has the ids of the text as a whole."""
    text = long_text()
    source = write_text(tmp_path / "a.txt", text)
    assert len(list(find_source(str(source)).groups(0))) > 20
    done = fineweb(source, tmp_path / "out", *ARGS, tokenizer="gpt2")
    assert done.returncode == 0, done.stderr
    ids = get_tokenizer("gpt2").encode_ordinary(text)
    assert tokens_of(tmp_path / "out").tolist() == [50256, *ids]


@settings(deadline=None, max_examples=200, derandomize=True, database=None)
@given(st.lists(st.one_of(st.sampled_from(HARD), st.characters(exclude_categories=["Cs"])),
                max_size=60).map("".join), st.integers(1, 30), st.integers(1, 9))
def test_a_cut_changes_no_piece(text, block, part):
    """By GPT-2's pattern, in another engine than tiktoken's, wherever a part ends that is read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "BLOCK", block)
        parts = (text[i : i + part] for i in range(0, len(text), part))
        pieces = list(formats.pieces(parts))
    assert "".join(pieces) == text
    assert [isinstance(piece, formats.More) for piece in pieces] == [i > 0 for i in
                                                                     range(len(pieces))]
    found = [match for piece in pieces for match in GPT2.findall(piece)]
    assert found == GPT2.findall(text)


def test_pieces_are_short():
    """A text of lines or words comes in pieces that are not much longer than a block; one without
    white space cannot be cut, and a run of spaces is not."""
    for text in "word " * 10**6, "漢字\n" * 10**6, "\n" * 10**6 + "a\n" * 10**6:
        parts = [text[i : i + 10**6] for i in range(0, len(text), 10**6)]
        assert max(map(len, formats.pieces(parts))) <= 2.1 * 10**6
        assert len(list(formats.pieces(parts))) >= 2
    assert len(list(formats.pieces(["x" * 10**6] * 3))) == 1


def test_reading_takes_little_memory(tmp_path):
    """20 MB of text: a few blocks at a time."""
    path = write_text(tmp_path / "a.txt", "a line of words\n" * 1_250_000)
    tracemalloc.start()
    try:
        n = sum(len(text) for block in find_source(str(path)).groups(0) for text in block.texts)
        assert n == 20_000_000 and tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


PACKED = {
    "a.txt": lambda data: data, "A.TXT": lambda data: data,
    "a.txt.gz": gzip.compress, "a.txt.zst": lambda data: pa.compress(data, "zstd", asbytes=True),
    "two members.txt.gz": lambda data: gzip.compress(data[:99]) + gzip.compress(data[99:]),
    "with a byte order mark.txt": lambda data: b"\xef\xbb\xbf" + data,
}


@pytest.mark.parametrize("name", PACKED)
def test_the_same_text_packed(name, small_blocks, tmp_path):
    text = long_text(9000)
    (tmp_path / name).write_bytes(PACKED[name](text.encode()))
    done = fineweb(tmp_path / name, tmp_path / "out", "--shard-size", 1000)
    assert done.returncode == 0, done.stderr
    assert tokens_of(tmp_path / "out").tolist() == [256, *text.encode()]


def test_a_folder_of_several_kinds(tmp_path):
    """In the order of the names; an empty text is a document. How many files there are of each
    kind is said."""
    folder, documents = tmp_path / "docs", make_documents(9)
    write_parquet(folder / "c", documents[3:7], files=1)
    for name, text in {"a/x.txt": documents[1], "a.txt": documents[2], "a/b.txt": "",
                       "d.txt": documents[7], "d.png": "no text"}.items():
        write_text(folder / name, text)
    done = fineweb(folder, tmp_path / "out", "--shard-size", 500)
    assert done.returncode == 0, done.stderr
    assert tokens_of(tmp_path / "out").tolist() == expected_tokens(["", *documents[1:8]])
    assert done.stdout.startswith("found 1 .parquet, 4 .txt\n")


def test_standard_input_is_read_once(tmp_path, monkeypatch):
    """And chars reads twice: once to find the characters."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a text")))
    refused(fineweb("-", tmp_path / "out", tokenizer="chars"), "chars reads a text twice",
            "standard input can be read only once: save it in a file")
    assert not (tmp_path / "out").exists() and sys.stdin.buffer.read() == b"a text"


@pytest.fixture
def source(small_blocks, tmp_path):
    """A folder of texts of one block and of many, and of row groups."""
    write_parquet(tmp_path / "docs", make_documents(30), files=1, row_group_size=7)
    for name, n in {"0": 20_000, "1": 100, "2": 9_000, "zero": 0}.items():
        write_text(tmp_path / "docs" / f"{name}.txt", long_text(n, seed=n))
    return tmp_path / "docs"


def test_any_number_of_workers_the_same_bytes(source, tmp_path):
    for n in 1, 2, 4:
        assert fineweb(source, tmp_path / str(n), *ARGS, "--workers", n).returncode == 0
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "4")
    assert len(contents(tmp_path / "1")) > 5


@pytest.mark.slow
def test_any_number_of_processes_the_same_bytes(tmp_path):
    """The workers are handed the texts."""
    source = write_text(tmp_path / "a.txt", long_text(3_000_000))
    for n in 1, 2:
        done = start("fineweb.py", "--source", source, "--tokenizer", "bytes", "--shard-size",
                     10**6, "--out", tmp_path / str(n), "--workers", n)
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert tokens_of(tmp_path / "2").tolist() == [256, *source.read_bytes()]


@pytest.mark.parametrize("n", range(1, 8))
def test_stopped_and_started_again_the_same_bytes(n, source, tmp_path):
    """In a text, between files and in a row group."""
    assert fineweb(source, tmp_path / "whole", *ARGS).returncode == 0
    stopped(n, source, tmp_path / "out", *ARGS)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    (file, block), place = manifest["shards"][-1]["following"]
    assert all(type(number) is int for number in (file, block, place))
    assert fineweb(source, tmp_path / "out", *ARGS).returncode == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_killed_half_way_and_started_again_the_same_bytes(tmp_path):
    source = write_text(tmp_path / "docs.txt", long_text(3_000_000))
    whole, out = tmp_path / "whole", tmp_path / "killed"
    assert fineweb(source, whole, "--shard-size", 50_000).returncode == 0
    killed(source, out, "--shard-size", 50_000)
    assert 3 <= len(list(out.glob("*.npy"))) < len(list(whole.glob("*.npy"))), "not half-way"
    assert fineweb(source, out, "--shard-size", 50_000).returncode == 0
    assert contents(out) == contents(whole)


def test_gigatoken_gets_the_pieces(small_blocks, monkeypatch, tmp_path):
    """A stand-in that knows bytes: every piece goes through it, and the shards are the same."""
    given = []

    class Tokenizer:
        @staticmethod
        def from_tiktoken(path, pretokenizer):
            return Tokenizer

        @staticmethod
        def encode(text):
            given.append(text)
            return np.frombuffer(text.encode(), np.uint8).astype(np.uint32)

    module = ModuleType("gigatoken")
    module.Tokenizer = Tokenizer
    monkeypatch.setitem(sys.modules, "gigatoken", module)
    cached = functools.cache(gigatoken.fast_encoding.__wrapped__)  # of this test alone
    monkeypatch.setattr(gigatoken, "fast_encoding", cached)
    monkeypatch.setattr(program, "fast_encoding", cached)
    monkeypatch.setattr(gigatoken, "agree", functools.cache(gigatoken.agree.__wrapped__))
    source = write_text(tmp_path / "a.txt", long_text())
    for name in "tiktoken", "gigatoken":
        args = *ARGS, "--encoder", name, "--workers", 1
        assert fineweb(source, tmp_path / name, *args).returncode == 0
    assert contents(tmp_path / "tiktoken") == contents(tmp_path / "gigatoken")
    assert len(given) > 20 and [text for text in given if len(text) > 99] == [
        piece for piece in formats.pieces([source.read_bytes().decode()]) if len(piece) > 99]


@pytest.mark.parametrize("line, data", [
    (1, b"caf\xe9\nb\n"), (3, b"\xef\xbb\xbfa\n\n\xff"), (2, b"a\n" + b"\xe6\xbc"),
    (150_001, b"a line\n" * 150_000 + b"\xd4\n" + b"b\n" * 500_000),
    (1, "UTF-16".encode("utf-16"))])
def test_bytes_that_are_not_utf8_are_refused(line, data, tmp_path):
    """The file and the line are named, also in the middle of a block."""
    (tmp_path / "a.txt").write_bytes(data)
    done = fineweb(tmp_path / "a.txt", tmp_path / "out")
    last = done.stderr.splitlines()[-1]  # under the progress bar, when there is one
    assert done.returncode == 2 and last.startswith(f"error: {tmp_path / 'a.txt'} line {line}: ")
    assert "UTF-8" in last and not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst"])
def test_a_cut_file_is_refused(name, tmp_path):
    data = PACKED[name](long_text().encode())
    for damaged in data[: len(data) // 2], data[:-1], b"something else" * 9:
        (tmp_path / name).write_bytes(damaged)
        done = fineweb(tmp_path / name, tmp_path / "out")
        last = done.stderr.splitlines()[-1]
        assert done.returncode == 2 and last.startswith(f"error: {tmp_path / name} line ")
        assert not list((tmp_path / "out").iterdir())


def test_a_seed_shuffles_parquet_alone(source, tmp_path):
    done = fineweb(source, tmp_path / "out", "--seed", 1)
    refused(done, "--seed 1", "parquet", "train_gpt2.py --shuffle")
    assert not (tmp_path / "out").exists()


def test_tokens_are_estimated_from_sizes(tmp_path):
    """As of parquet: a token per byte, or per three; packed text is three times as long."""
    text = "some words and more " * 1000
    for name in "a.txt", "b.txt.gz":
        (tmp_path / name).write_bytes(PACKED["a.txt.gz"](text.encode()) if "gz" in name
                                      else text.encode())
    packed = os.path.getsize(tmp_path / "b.txt.gz")
    source = find_source(str(tmp_path))
    assert estimate_tokens(source, "bytes") == 20_000 + 3 * packed
    assert estimate_tokens(source, "gpt2") == (20_000 + 3 * packed) // 3


def test_from_a_text_to_a_model(tmp_path, monkeypatch):
    """Two commands."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "play.txt").write_text("To be, or not to be: that is the question.\n" * 300)
    assert fineweb("play.txt", "shards").returncode == 0
    done = start("train_gpt2.py", *TINY, "--data", "shards", "--out-dir", "log", "--max-steps", 3,
                 "--val-tokens", 512, "--checkpoint-every", 3)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "log" / "checkpoint_000003").is_dir()


def test_a_continued_document_has_no_end_of_text():
    block = formats.Block(1)
    block.texts = [formats.More(" and more"), "another"]
    tokens, lengths = program.tokenise("a.txt", block, "bytes")
    assert tokens.tolist() == [*b" and more", *encode(encoding("bytes"), "another")]
    assert lengths.tolist() == [9, 8]


class Stdin:
    def __init__(self, data):
        self.buffer = io.BytesIO(data)


@pytest.mark.parametrize("name, data, text", [
    ("-", b"\xef\xbb\xbfone\r\ntext" * 99, "one\r\ntext" + "\ufeffone\r\ntext" * 98),
    ("-.txt.gz", gzip.compress(b"packed " * 99), "packed " * 99)], ids=["plain", "packed"])
def test_standard_input(name, data, text, monkeypatch, tmp_path):
    """One text, whose size is not known before."""
    monkeypatch.setattr("sys.stdin", Stdin(data))
    done = fineweb(name, tmp_path / "out", "--shard-size", 400)
    assert done.returncode == 0, done.stderr
    assert tokens_of(tmp_path / "out").tolist() == expected_tokens([text])
    assert (tmp_path / "out" / "text_val_000000.npy").exists() and "GB for" not in done.stdout


def test_standard_input_again(small_blocks, monkeypatch, tmp_path):
    """Stopped, it resumes if it is given the same text again."""
    data = long_text().encode()
    for out, n in ("whole", 0), ("out", 3), ("out", 0):
        monkeypatch.setattr("sys.stdin", Stdin(data))
        if n:
            stopped(n, "-", tmp_path / out, "--shard-size", 2000)
        else:
            assert fineweb("-", tmp_path / out, "--shard-size", 2000).returncode == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    monkeypatch.setattr("sys.stdin", None)  # not read: there is nothing to do
    assert fineweb("-", tmp_path / "out", "--shard-size", 2000).returncode == 0
