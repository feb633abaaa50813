"""Folders and columns as people have them: against the documents that were written."""

import io
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import (
    expected_tokens, fineweb, make_documents, refused, stopped, texts_of, tokens_of, write_parquet,
)

from nanogpt.sources import find_source

DOCUMENTS = [*make_documents(40), "", "<|endoftext|>", "\ufeffx"]
KINDS = {"string": lambda texts: texts, "large string": lambda texts: texts.cast(pa.large_string()),
         "string view": lambda texts: texts.cast(pa.string_view()),
         "categories": lambda texts: texts.dictionary_encode(),
         "binary": lambda texts: texts.cast(pa.binary()),
         "large binary": lambda texts: texts.cast(pa.large_binary()),
         "categories of binary": lambda texts: texts.cast(pa.binary()).dictionary_encode()}


@pytest.mark.parametrize("kind", KINDS)
def test_all_types_that_hold_text(kind, tmp_path):
    """pandas' categories, polars' views, Spark's bytes; null is no document."""
    column = KINDS[kind](pa.array([None, *DOCUMENTS, None], pa.string()))
    pq.write_table(pa.table({"id": range(45), "text": column}), tmp_path / "a.parquet",
                   row_group_size=9)
    done = fineweb(tmp_path / "a.parquet", tmp_path / "out", "--shard-size", 1000)
    assert done.returncode == 0, done.stderr
    assert tokens_of(tmp_path / "out").tolist() == expected_tokens(DOCUMENTS)


def test_a_column_of_nothing_holds_no_documents(tmp_path):
    """As pandas writes a column without values: of a type of its own."""
    pq.write_table(pa.table({"text": pa.array([None] * 5)}), tmp_path / "b.parquet")
    write_parquet(tmp_path, DOCUMENTS, files=1)
    assert texts_of(tmp_path) == DOCUMENTS


def parquet(**columns):
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


COLUMNS = {  # (columns, --column): the text that is found, or words of the error
    ("text", "content", "more"): "text", ("title", "content"): "content", ("body",): "body",
    ("text", "body", "--column", "body"): "body", ("a.b", "--column", "a.b"): "a.b",
    ("title", "body"): "no text named text or content: choose a --column of ['title', 'body']",
    ("title", "text", "--column", "body"): "no text named body: choose a --column of ['title', "
                                           "'text']",
    (): "no text named text or content: choose a --column of []",
}


@pytest.mark.parametrize("names", COLUMNS)
def test_the_column_of_text(names, tmp_path):
    """The one asked for, text, content, or the only one; numbers and lists do not count."""
    cut = names.index("--column") if "--column" in names else len(names)
    data = parquet(n=[1], tags=[["x"]], **{name: [name] for name in names[:cut]})
    (tmp_path / "a.parquet").write_bytes(data)
    done = fineweb(tmp_path / "a.parquet", tmp_path / "out", *names[cut:], "--shard-size", 1)
    if "--column of" not in COLUMNS[names]:
        assert done.returncode == 0, done.stderr
        assert tokens_of(tmp_path / "out").tolist() == expected_tokens([COLUMNS[names]])
    else:
        last = done.stderr.splitlines()[-1]
        assert done.returncode == 2 and last.endswith(COLUMNS[names])
        assert last.startswith(f"error: {tmp_path / 'a.parquet'}: ")


@pytest.mark.parametrize("args", [[], ["--seed", 1], ["--encoder", "gigatoken"]])
def test_workers_know_the_column(args, tmp_path):
    if "gigatoken" in args:
        pytest.importorskip("gigatoken", reason="optional: pip install gigatoken")
    table = pa.table({"text": ["x"] * 40, "body": make_documents(40)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=9)
    args = ["--column", "body", "--shard-size", 999, *args]
    assert fineweb(tmp_path / "a.parquet", tmp_path / "out", *args).returncode == 0
    tokens, expected = tokens_of(tmp_path / "out").tolist(), expected_tokens(make_documents(40))
    assert tokens == expected or "--seed" in args and sorted(tokens) == sorted(expected)


def test_the_column_belongs_to_the_manifest(tmp_path):
    """A manifest of before there was --column is taken on."""
    source, out = write_parquet(tmp_path / "docs", make_documents(40)), tmp_path / "out"
    stopped(1, source, out, "--shard-size", 2000)
    refused(fineweb(source, out, "--shard-size", 2000, "--column", "text"),
            "column = None, not text")
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest.pop("column") is None and manifest.pop("val") == 0.1
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert fineweb(source, out, "--shard-size", 2000).returncode == 0
    assert tokens_of(out).tolist() == expected_tokens(make_documents(40))


@pytest.mark.parametrize("kind", [pa.string(), pa.binary()])
def test_bytes_that_are_not_utf8_are_refused(kind, tmp_path):
    """pyarrow writes them in a column of strings without a word."""
    texts = pa.array([b"good"] * 10 + [b"caf\xe9"], pa.binary()).view(kind)
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=5)
    done = fineweb(tmp_path / "a.parquet", tmp_path / "out")
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and "text in UTF-8" in last and not list(
        (tmp_path / "out").iterdir())
    assert f"{tmp_path / 'a.parquet'} is damaged in row group 2 ('utf-8' codec" in last


def test_one_file_and_any_case(tmp_path):
    source = write_parquet(tmp_path / "docs", DOCUMENTS, files=1)
    (source / "000.parquet").rename(source / "A.PARQUET")
    for name in source, source / "A.PARQUET":
        done = fineweb(name, tmp_path / name.name, "--shard-size", 999)
        assert done.returncode == 0, done.stderr
        assert tokens_of(tmp_path / name.name).tolist() == expected_tokens(DOCUMENTS)


@pytest.fixture
def tree(tmp_path):
    """A folder with links, cycles, and files that are no data. Its documents: 0 to 4."""
    folder, elsewhere = tmp_path / "docs", tmp_path / "elsewhere"
    for i, path in enumerate((
            "../elsewhere/0.parquet", "1.parquet", "sub/2.parquet", "../elsewhere/in/3.parquet",
            "sub/4.parquet", ".hidden.parquet", "_log.parquet", ".Trash/x.parquet",
            "_tmp/x.parquet", "sub/.git/x.parquet")):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(parquet(text=[str(i)]))
    for link, target in {"0 link": elsewhere, "sub/again": elsewhere / "in", "sub/up": folder,
                         "0 link/back": folder, "x link.parquet": folder / "1.parquet"}.items():
        (folder / link).symlink_to(target)
    return folder


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_links_are_followed_once_and_hidden_names_are_no_data(tree):
    """Folders once each, wherever the links lead; a linked file is a file."""
    assert [name.replace(os.sep, "/") for name in find_source(str(tree)).files] == [
        "0 link/0.parquet", "0 link/in/3.parquet", "1.parquet", "sub/2.parquet", "sub/4.parquet",
        "x link.parquet"]
    assert texts_of(tree) == ["0", "3", "1", "2", "4", "1"]


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_a_link_to_nothing_is_said(tree, tmp_path):
    """The disk that has the documents is not there."""
    (tree / "more").symlink_to(tmp_path / "nowhere")
    refused(fineweb(tree, tmp_path / "out"), "No such file or directory", "more")
