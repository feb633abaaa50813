"""Records: every kind of file that holds the same documents makes the same shards."""

import csv
import gzip
import io
import json
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import (
    contents, expected_tokens, fineweb, gpt2_vocabulary_missing, killed, make_documents,
    start, stopped, tokens_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt import formats
from nanogpt.sources import find_source

DOCUMENTS = [*make_documents(40), "", "a\r\nb\n", 'a "quoted", word', "<|endoftext|>\t", "\ufeffx",
             "漢字😀" * 99, "\u2028 and \x85 and \x1c"]


def lines(rows, **how):
    return "".join(json.dumps(row, **how) + "\n" for row in rows).encode()


def table(texts, column="text", end="\r\n", **how):
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator=end, **how)
    writer.writerows([["id", column], *enumerate(texts)])
    return file.getvalue().encode()


def parquet(texts, kind=None, name="text"):
    file, column = io.BytesIO(), pa.array(texts, pa.string())
    if kind:
        column = column.dictionary_encode() if kind == "dictionary" else column.cast(kind)
    pq.write_table(pa.table({"id": range(len(texts)), name: column}), file, row_group_size=9)
    return file.getvalue()


def objects(texts):
    return [{"id": i, "text": text} for i, text in enumerate(texts)]


# file: the same documents, as bytes
FILES = {
    "a.jsonl": lambda texts: lines(objects(texts)),
    "b.ndjson": lambda texts: lines(objects(texts), ensure_ascii=False).replace(b"\n", b"\r\n"),
    "c.JSONL.GZ": lambda texts: gzip.compress(b"\xef\xbb\xbf" + lines(objects(texts))),
    "d.jsonl.zst": lambda texts: pa.compress(lines(texts), "zstd", asbytes=True),
    "e.jsonl": lambda texts: b"\n\n" + lines({"url": "a b", "content": text, "n": None}
                                             for text in texts).rstrip(),
    "f.json": lambda texts: json.dumps(objects(texts), indent=1).encode(),
    "g.json": lambda texts: b"\xef\xbb\xbf \n" + json.dumps(texts).encode(),
    "h.json.gz": lambda texts: gzip.compress(lines({"body": text} for text in texts)),
    "i.csv": table,
    "j.csv.zst": lambda texts: pa.compress(b"\xef\xbb\xbf" + table(texts, "content", "\n"), "zstd",
                                           asbytes=True),
    "k.tsv": lambda texts: table(texts, delimiter="\t", quoting=csv.QUOTE_ALL),
    "l.parquet": parquet,
    "m.parquet": lambda texts: parquet(texts, pa.large_string(), "content"),
    "n.parquet": lambda texts: parquet(texts, "dictionary", "any.name"),
    "o.parquet": lambda texts: parquet(texts, pa.string_view()),
    "p.parquet": lambda texts: parquet(texts, pa.binary()),
    "q.parquet": lambda texts: parquet(texts, pa.large_binary()),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 1,000 characters, so that a small file has many."""
    monkeypatch.setattr(formats, "BLOCK", 1000)


def texts_of(path, column=None):
    return list(find_source(str(path), column).texts())


@pytest.mark.parametrize("name", FILES)
def test_the_same_documents_the_same_shards(name, tmp_path):
    (tmp_path / name).write_bytes(FILES[name](DOCUMENTS))
    done = fineweb(tmp_path / name, tmp_path / "out", "--shard-size", 1000)
    assert done.returncode == 0, done.stderr
    assert tokens_of(tmp_path / "out").tolist() == expected_tokens(DOCUMENTS)
    assert texts_of(tmp_path / name) == DOCUMENTS


@pytest.mark.skipif(bool(gpt2_vocabulary_missing()), reason=gpt2_vocabulary_missing())
@pytest.mark.parametrize("name", ["a.jsonl", "f.json", "i.csv", "p.parquet"])
def test_gpt2s_tokens(name, tmp_path):
    (tmp_path / name).write_bytes(FILES[name](DOCUMENTS))
    assert fineweb(tmp_path / name, tmp_path / "out", "--shard-size", 500, tokenizer="gpt2"
                   ).returncode == 0
    assert tokens_of(tmp_path / "out").tolist() == expected_tokens(DOCUMENTS, "gpt2")


@pytest.fixture
def mixed(tmp_path):
    """A folder of every kind, each with other documents, and a text."""
    (tmp_path / "docs").mkdir()
    documents = []
    for i, name in enumerate(FILES):
        documents += (part := make_documents(20, seed=i))
        (tmp_path / "docs" / name).write_bytes(FILES[name](part))
    text = "z " * 3000
    (tmp_path / "docs" / "z.txt").write_text(text)
    return tmp_path / "docs", [*documents, text]


def test_a_folder_of_all_kinds(mixed, tmp_path):
    """In the order of the names; how many files there are of each kind is said."""
    source, documents = mixed
    for n in 1, 2, 4:
        done = fineweb(source, tmp_path / str(n), "--shard-size", 9000, "--workers", n)
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "4")
    assert tokens_of(tmp_path / "1").tolist() == expected_tokens(documents)
    kinds = ("1 .csv, 1 .csv.zst, 2 .json, 1 .json.gz, 2 .jsonl, 1 .jsonl.gz, 1 .jsonl.zst, "
             "1 .ndjson, 6 .parquet, 1 .tsv, 1 .txt")
    assert done.stdout.startswith(f"found {kinds}\n")


@pytest.mark.parametrize("n", [1, 2, 5, 7, 9])
def test_stopped_and_started_again_the_same_bytes(n, mixed, tmp_path):
    assert fineweb(mixed[0], tmp_path / "whole", "--shard-size", 9000).returncode == 0
    stopped(n, mixed[0], tmp_path / "out", "--shard-size", 9000)
    assert fineweb(mixed[0], tmp_path / "out", "--shard-size", 9000).returncode == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_killed_half_way_and_started_again_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.undo()  # the process that is killed has the usual blocks
    source, whole, out = tmp_path / "docs.jsonl", tmp_path / "whole", tmp_path / "killed"
    source.write_bytes(lines(objects(make_documents(10_000))))
    assert fineweb(source, whole, "--shard-size", 50_000).returncode == 0
    killed(source, out, "--shard-size", 50_000)
    assert 3 <= len(list(out.glob("*.npy"))) < len(list(whole.glob("*.npy"))), "not half-way"
    assert fineweb(source, out, "--shard-size", 50_000).returncode == 0
    assert contents(out) == contents(whole)


@pytest.mark.slow
def test_processes_write_what_threads_write(mixed, tmp_path):
    done = start("fineweb.py", "--source", mixed[0], "--tokenizer", "bytes", "--shard-size", 2000,
                 "--out", tmp_path / "processes", "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert tokens_of(tmp_path / "processes").tolist() == expected_tokens(mixed[1])


TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5)


@settings(deadline=None, max_examples=200, derandomize=True, database=None)
@given(TEXTS, st.sampled_from(["a.jsonl", "b.ndjson", "f.json", "g.json", "k.tsv"]))
def test_any_texts_come_back(tmp_path_factory, texts, name):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(FILES[name](texts))
    assert texts_of(path) == texts


COLUMNS = {  # (name, bytes, --column): the text that is found, or words of the error
    ("a.jsonl", b'{"text": "a", "content": "b", "more": "c"}', None): "a",
    ("a.jsonl", b'{"title": "a", "content": "b"}', None): "b",
    ("a.jsonl", b'{"id": 5, "body": "b", "tags": ["x"]}', None): "b",
    ("a.jsonl", b'{"text": "a", "body": "b"}', "body"): "b",
    ("a.jsonl", b'{"title": "a", "body": "b"}', None): "choose a --column of ['title', 'body']",
    ("a.jsonl", b'{"title": "a", "text": "b"}', "body"): "choose a --column of ['title', 'text']",
    ("a.jsonl", b'{"id": 5}', None): "no text named text or content: choose a --column of []",
    ("a.csv", b"body\nb\n", None): "b",
    ("a.csv", b"title,body\na,b\n", "body"): "b",
    ("a.csv", b"title,body\na,b\n", None): "--column of ['title', 'body']",
}


@pytest.mark.parametrize("name, data, column", COLUMNS)
def test_the_column_of_text(name, data, column, tmp_path):
    """The one asked for, text, content, or the only one."""
    (tmp_path / name).write_bytes(data)
    args = ["--column", column] if column else []
    done, expected = fineweb(tmp_path / name, tmp_path / "out", *args, "--shard-size", 1), \
        COLUMNS[name, data, column]
    if len(expected) == 1:
        assert done.returncode == 0, done.stderr
        assert tokens_of(tmp_path / "out").tolist() == expected_tokens([expected])
    else:
        last = done.stderr.splitlines()[-1]
        assert done.returncode == 2 and last.startswith(f"error: {tmp_path / name}")
        assert last.endswith(expected)


def test_null_holds_no_document(tmp_path):
    for name, data in {"a.jsonl": lines([{"text": None}, {"text": ""}, None, {"text": "b"}]),
                       "b.json": b'[null, "", null, "b"]',
                       "c.parquet": parquet([None, "", None, "b"])}.items():
        (tmp_path / name).write_bytes(data)
        assert texts_of(tmp_path / name) == ["", "b"]


def test_half_a_pair_becomes_what_tiktoken_makes_of_it(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud83d b"}\n{"text": "\\ud83d\\ude00\\udc00"}\n')
    assert fineweb(tmp_path / "a.jsonl", tmp_path / "out", "--shard-size", 2).returncode == 0
    assert tokens_of(tmp_path / "out").tolist() == expected_tokens(["a\ud83d b", "😀\udc00"])


DAMAGED = {  # name: bytes, the line, words
    "bad.jsonl": (b'{"text": "a"}\n\n{"text": "b"\n{"text": "c"}\n', 3, "delimiter"),
    "cut.jsonl": (b'{"text": "a"}\n{"text": "b', 2, "Unterminated"),
    "key.jsonl": (b'{"text": "a"}\n{"txt": "b"}\n', 2, "no text named text"),
    "number.jsonl": (b'{"text": "a"}\n{"text": 5}\n', 2, "no text named text"),
    "numbers.jsonl": (b'"a"\n5\n', 2, "no text"),
    "deep.jsonl": (b'{"text": "a"}\n' + b"[" * 10**6, 2, ""),
    "latin.jsonl": (b'{"text": "a"}\n{"text": "caf\xe9"}\n', 2, "utf-8"),
    "latin.csv": (b"text\na\n\nb\ncaf\xe9\n", 5, "utf-8"),
    "cut.json": (b'[{"text": "a"},\n{"text": "b"}', 2, "delimiter"),
    "pretty.json": (b'{\n"text": "a"\n}', 1, "Expecting"),
    "more.csv": (b"id,text\n1,a\n2,b, and more\n", 3, "more fields than names"),
    "fewer.csv": (b"id,text\n1,a\n2\n", 3, "no text named text"),
    "open.csv": (b'id,text\n1,a\n2,"b\n3,c', 4, "unexpected end"),
    "mac.csv": (b"id,text\r1,a\r", 1, "new-line"),
    "cut.jsonl.gz": (gzip.compress(lines(objects(DOCUMENTS)))[:-99], None, "stream"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_the_line_that_cannot_be_read_is_named(name, tmp_path):
    data, line, words = DAMAGED[name]
    (tmp_path / name).write_bytes(data)
    done = fineweb(tmp_path / name, tmp_path / "out")
    last = done.stderr.splitlines()[-1]  # under the progress bar, when there is one
    assert done.returncode == 2 and words in last
    assert last.startswith(f"error: {tmp_path / name} line {line or ''}"), last
    assert last.endswith(": mend the file, or convert it to UTF-8")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("name", ["a.jsonl", "f.json", "h.json.gz", "j.csv.zst"])
def test_standard_input_of_a_kind(name, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(FILES[name](DOCUMENTS))))
    done = fineweb(name.replace(name[0], "-", 1), tmp_path / "out", "--shard-size", 400)
    assert done.returncode == 0, done.stderr
    assert tokens_of(tmp_path / "out").tolist() == expected_tokens(DOCUMENTS)


def test_a_manifest_in_the_source_is_no_record(tmp_path):
    """--out may be a folder of the source's."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.jsonl").write_bytes(lines(objects(DOCUMENTS)))
    for _ in range(2):
        assert fineweb(tmp_path / "docs", tmp_path / "docs" / "out").returncode == 0
    assert texts_of(tmp_path / "docs") == DOCUMENTS
