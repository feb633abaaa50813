"""Faster, with the same bytes: against the old pattern, cuts and order, written out here."""

import random
import re
import subprocess
import sys

import numpy as np
import pytest
import regex
from helpers import (
    ROOT,
    contents,
    expected_tokens,
    fineweb,
    gpt2_vocabulary_missing,
    make_documents,
    stopped,
    tokens_of,
    write_parquet,
)

import fineweb as program
from nanogpt.tokenizer import PATTERN, cut, encode, encoding, get_tokenizer

# as OpenAI wrote it: github.com/openai/gpt-2, src/encoder.py
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
HARD = [*"aZ09 \n\t\r.!'_äß→漢\u00a0\u3000\x85\u200d😀", "'s", "'ll", "'LL", "  ", "\n\n",
        "<|endoftext|>"]


def hard_texts(n, seed=0):
    rng = random.Random(seed)
    return ["".join(rng.choices(HARD, k=rng.randint(0, 200))) for _ in range(n)]


def test_the_pattern_cuts_as_gpt2s():
    """Like OpenAI's own, by another engine than tiktoken's, around each of many characters."""
    ours, theirs = regex.compile(PATTERN), regex.compile(GPT2)
    plane = [chr(i) for i in range(0x3100) if not 0xD800 <= i < 0xE000]
    for text in [*hard_texts(300), "".join(f"a{c} {c}1{c}{c} {c}'s\n" for c in plane), ""]:
        assert ours.findall(text) == theirs.findall(text)


@pytest.mark.skipif(bool(gpt2_vocabulary_missing()), reason=gpt2_vocabulary_missing())
def test_gpt2s_tokens_of_hard_texts():
    enc = get_tokenizer("gpt2")
    for text in hard_texts(1000):
        expected = [enc.eot_token, *enc.encode_ordinary(text)]
        assert encode(encoding("gpt2"), text).tolist() == expected
    assert encoding("gpt2")._pat_str == PATTERN


@pytest.mark.parametrize("tail", ["", "x", "\n"])
def test_long_runs_are_cut_where_they_were(tail):
    """Pieces of 100,000 from a run's beginning, as the slow expression cuts them."""
    runs = [" " * 100_000, " \u3000" * 100_005, " " * 99, "\n" * 300_000 + tail]
    text = "ab" + "x".join(runs)
    expected = [piece for piece in re.split(r"(\s{100000})", text) if piece]
    assert cut(text) == expected and len(expected) >= 8
    assert cut(text[2:]) == expected[1:]
    assert cut("a b" * 50_000) == ["a b" * 50_000] and cut("") == [""]


def test_a_row_group_is_two_arrays(tmp_path):
    """Tokens end to end, and the documents' lengths; a group without documents has neither."""
    documents = ["ab", None, "", "ä", None, None]
    folder = write_parquet(tmp_path / "docs", documents, files=1, row_group_size=4)
    tokens, lengths = program.tokenise(folder / "000.parquet", 0, "bytes")
    assert tokens.dtype == np.uint16 and tokens.tolist() == expected_tokens(["ab", "", "ä"])
    assert lengths.tolist() == [3, 1, 3]
    tokens, lengths = program.tokenise(folder / "000.parquet", 1, "bytes")
    assert tokens.dtype == np.uint16 and tokens.tolist() == lengths.tolist() == []


def shuffled(documents, row_group_size, seed):
    """The documents in the order of --seed: row groups shuffled, then documents within each 64."""
    groups = [documents[i : i + row_group_size] for i in range(0, len(documents), row_group_size)]
    order = np.random.default_rng(seed).permutation(len(groups))
    result = []
    for i in range(0, len(groups), 64):
        window = [text for g in order[i : i + 64] for text in groups[g] if text is not None]
        rng = np.random.default_rng((seed, 0, order[i]))
        result += [window[k] for k in rng.permutation(len(window))]
    return result


@pytest.mark.parametrize("args", [[], ["--max-tokens", 30_000], ["--seed", 7],
                                  ["--seed", 7, "--max-tokens", 30_000]])
def test_the_same_bytes_whatever_the_workers_and_after_a_stop(args, tmp_path):
    """With empty documents, missing texts, and a row group in which all are missing."""
    documents = make_documents(300)
    documents[3::7], documents[5::11] = [""] * len(documents[3::7]), [None] * len(documents[5::11])
    documents[12:15] = [None] * 3
    source = write_parquet(tmp_path / "docs", documents, files=1, row_group_size=3)
    args = ["--shard-size", 7000, *args]
    for workers in 1, 3:
        out = tmp_path / f"{workers}"
        assert fineweb(source, out, *args, "--workers", workers).returncode == 0
    stopped(3, source, tmp_path / "stopped", *args)
    assert fineweb(source, tmp_path / "stopped", *args).returncode == 0
    assert contents(tmp_path / "1") == contents(tmp_path / "3") == contents(tmp_path / "stopped")
    texts = shuffled(documents, 3, 7) if "--seed" in args else documents
    texts = [text for text in texts if text is not None]
    expected = expected_tokens(texts)[: 30_000 if "--max-tokens" in args else None]
    assert tokens_of(tmp_path / "1").tolist() == expected


def test_a_worker_imports_little():
    """Every worker imports fineweb.py again; torch alone would cost seconds."""
    code = "import sys, fineweb; print(*{'torch', 'transformers', 'huggingface_hub'} & " \
           "set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
