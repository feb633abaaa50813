"""--encoder gigatoken: the same shards, or an error. A fake package stands in where a fault is
wanted; the real one is compared with tiktoken where it is installed."""

import base64
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tiktoken
from helpers import (
    contents,
    expected_tokens,
    fineweb,
    gpt2_vocabulary_missing,
    make_documents,
    refused,
    stopped,
    tokens_of,
    write_parquet,
)
from tiktoken_ext.openai_public import r50k_pat_str

import fineweb as program
from nanogpt.gigatoken import agree, fast_encoding

HARD = [*"aZ09 \n\t\r.!'_äß→漢\u00a0\u3000\x85\u200d😀", "'s", "'ll", "'LL", "  ", "\n\n",
        "<|endoftext|>", "\u088f", "\ua7ce", "\U00010940"]  # the last three: letters since 2025


class Fake:
    """A gigatoken that records what it is given, with chosen faults: texts that contain `wrong`
    lose their last token, and the character `letter` is treated like "l"."""

    def __init__(self, wrong, letter):
        self.wrong, self.letter, self.ranks, self.texts = wrong, letter, {}, []

    def from_tiktoken(self, path, pretokenizer, special_tokens=None):
        assert pretokenizer == "gpt2" and not special_tokens
        lines = map(bytes.split, Path(path).read_bytes().splitlines())
        self.ranks = {base64.b64decode(piece): int(rank) for piece, rank in lines}
        self.enc = tiktoken.Encoding("fake", pat_str=r50k_pat_str, mergeable_ranks=self.ranks,
                                     special_tokens={})
        return self

    def encode(self, text):
        self.texts.append(text)
        ids = self.enc.encode_ordinary(text.replace(self.letter, "l") if self.letter else text)
        return np.array(ids[:-1] if self.wrong and self.wrong in text else ids, dtype=np.uint32)


def forget():
    fast_encoding.cache_clear()
    agree.cache_clear()


@pytest.fixture(autouse=True)
def nothing_cached():
    """Each test has its own gigatoken and leaves none behind."""
    forget()
    yield
    forget()


@pytest.fixture
def install(monkeypatch):
    def install(wrong="", letter=""):
        module = ModuleType("gigatoken")
        module.Tokenizer = Fake(wrong, letter)
        monkeypatch.setitem(sys.modules, "gigatoken", module)
        return module.Tokenizer
    return install


def by_both(source, folder, *args, tokenizer="bytes"):
    """The folders of two runs: tiktoken's, then gigatoken's."""
    for encoder in "tiktoken", "gigatoken":
        done = fineweb(source, folder / encoder, *args, "--encoder", encoder, tokenizer=tokenizer)
        assert done.returncode == 0, done.stderr
    return folder / "tiktoken", folder / "gigatoken"


def test_the_same_shards_and_manifest(install, tmp_path):
    """It gets exactly the tokenizer's ranks, and every piece of text goes through it."""
    fake = install()
    documents = [*make_documents(300), "", None, "<|endoftext|>", "a" + " " * 250_000]
    source = write_parquet(tmp_path / "docs", documents, files=1, row_group_size=100)
    a, b = by_both(source, tmp_path, "--shard-size", 7000, "--seed", 1)
    assert contents(a) == contents(b) and len(contents(b)) > 5
    assert fake.ranks == {bytes([i]): i for i in range(256)}
    assert {text for text in documents if text and len(text) < 1000} <= set(fake.texts)
    assert max(map(len, fake.texts)) == 100_000


def test_its_workers_are_threads(install, monkeypatch, tmp_path):
    """They see what this process has, here a stand-in, and share one vocabulary."""
    fake = install()
    monkeypatch.setattr(sys, "argv", [
        "fineweb.py", "--source", str(write_parquet(tmp_path / "docs", make_documents(5))), "--out",
        str(tmp_path / "out"), "--tokenizer", "bytes", "--encoder", "gigatoken", "--shard-size",
        "500"])
    program.main()
    assert tokens_of(tmp_path / "out").tolist() == expected_tokens(make_documents(5))
    assert set(make_documents(5)) <= set(fake.texts)


def test_one_caller_at_a_time(install):
    """gigatoken's tokenizer raises "Already borrowed" for a second caller: no two may meet."""
    met = threading.Barrier(2)
    install().encode = lambda text: met.wait(0.3)
    encode = fast_encoding("bytes").encode_to_numpy
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(encode, "a") for _ in range(2)]:
            assert isinstance(future.exception(), threading.BrokenBarrierError)


def test_a_run_may_go_on_by_the_other(install, tmp_path):
    install()
    source = write_parquet(tmp_path / "docs", make_documents(75))
    a, _ = by_both(source, tmp_path, "--shard-size", 4000)
    stopped(2, source, tmp_path / "out", "--shard-size", 4000, "--encoder", "gigatoken")
    assert fineweb(source, tmp_path / "out", "--shard-size", 4000).returncode == 0
    assert contents(tmp_path / "out") == contents(a)


@pytest.mark.parametrize("place", [0, 64, 100, 164])
def test_a_difference_ends_the_run_and_names_the_document(place, install, tmp_path):
    """The first or the 65th document of a row group of 100; nothing of the run is written."""
    install(wrong="wrong")
    documents = make_documents(200)
    documents[place] = f"Document {place} is wrong"
    source, out = write_parquet(tmp_path / "docs", documents, 1, row_group_size=100), tmp_path / "o"
    done = fineweb(source, out, "--encoder", "gigatoken")
    last = done.stderr.splitlines()[-1]  # under the progress bar, when there is one
    assert done.returncode == 2 and last.startswith("error: gigatoken and tiktoken differ")
    assert f"'Document {place} is wrong' in row group {place // 100} of " in last
    assert "000.parquet" in last and not list(out.iterdir())


def test_a_character_of_another_kind_is_left_to_tiktoken(install, tmp_path):
    """Also in documents outside the sample; other documents go through gigatoken."""
    fake = install(letter="ä")
    documents = [text.replace("ä", "ß") for text in make_documents(100)]
    documents[3] = documents[50] = "one ä"
    source = write_parquet(tmp_path / "docs", documents, files=1, row_group_size=100)
    a, b = by_both(source, tmp_path)
    assert contents(a) == contents(b)
    assert "one ä" not in fake.texts and documents[4] in fake.texts


def test_not_installed_is_one_line(monkeypatch, tmp_path):
    """Also where it is too old or too new to have what is needed."""
    source = write_parquet(tmp_path / "docs", make_documents(5))
    for module in None, ModuleType("gigatoken"):
        monkeypatch.setitem(sys.modules, "gigatoken", module)
        done = fineweb(source, tmp_path / "out", "--encoder", "gigatoken")
        refused(done, "--encoder gigatoken", "pip install gigatoken")
        assert not (tmp_path / "out").exists()
    assert fineweb(source, tmp_path / "out").returncode == 0


def hard_documents():
    rng = random.Random(0)
    documents = ["".join(rng.choices(HARD, k=rng.randint(0, 300))) for _ in range(500)]
    runs = [f"ab{space * n}x" for space in " \n\u3000" for n in (99_999, 250_000)]
    return [*documents, *runs, " " * 1_000_000, "word " * 30_000, "<|endoftext|>" * 9_000]


@pytest.mark.parametrize("tokenizer", ["bytes", "gpt2"])
def test_the_real_one(tokenizer, tmp_path):
    """All documents, not only the sample: against tiktoken's shards and the tokenizer itself."""
    pytest.importorskip("gigatoken", reason="optional: pip install gigatoken")
    if tokenizer == "gpt2" and gpt2_vocabulary_missing():
        pytest.skip(gpt2_vocabulary_missing())
    documents = hard_documents()
    source = write_parquet(tmp_path / "docs", documents, files=1, row_group_size=100)
    a, b = by_both(source, tmp_path, "--shard-size", 100_000, tokenizer=tokenizer)
    assert contents(a) == contents(b)
    n = len(expected_tokens(documents[:500], tokenizer))
    assert tokens_of(b)[:n].tolist() == expected_tokens(documents[:500], tokenizer)
