"""HellaSwag's examples are read whole, and a line that holds none is named by its number."""

import bz2
import gzip
import re

import pytest
from helpers import four_endings, refusal, write_jsonl

import hellaswag
from nanogpt.common import UserError


def test_examples_from_a_file(tmp_path):
    """ctx, endings and label of every line, the label as a number, and nothing else."""
    rows = four_endings(5)
    rows[2]["label"] = str(rows[2]["label"])  # the hub's labels are strings
    path = write_jsonl(tmp_path / "h.jsonl", [row | {"ind": i} for i, row in enumerate(rows)])
    loaded = hellaswag.load_examples(path)
    assert loaded == four_endings(5)
    assert hellaswag.load_examples(path, limit=3) == loaded[:3]
    assert hellaswag.load_examples(path, limit=6) == loaded


def test_letters_of_every_language(tmp_path):
    row = {"ctx": "Ähnlich 日本", "endings": ["é", "\u2028", "🙂", "d"], "label": 3}
    path = tmp_path / "h.jsonl"
    path.write_text('{"ctx": "Ähnlich 日本", "endings": ["é", "\u2028", "🙂", "d"], "label": 3}\n',
                    encoding="utf-8")
    assert hellaswag.load_examples(path) == [row]


@pytest.mark.parametrize("broken", [
    '{"ctx": "a", "endings": ["b", "c", "d", "e"]', "{}", "[]", '{"ctx": "a", "label": 0}',
    '{"ctx": "a", "endings": ["b", "c", "d"], "label": 0}',
    '{"ctx": "a", "endings": ["b", "c", "d", 5], "label": 0}',
    '{"ctx": "a", "endings": ["b", "c", "d", "e"], "label": 4}',
    '{"ctx": "a", "endings": ["b", "c", "d", "e"], "label": ""}',
    '{"ctx": "a", "endings": ["b", "c", "d", "e"], "label": 1.5}',
    '{"ctx": "a", "endings": ["b", "c", "d", "e"], "label": Infinity}',
    '{"ctx": "a", "endings": {"b": 1, "c": 2, "d": 3, "e": 4}, "label": 1}', "[" * 100_000,
    '{"ctx": "", "endings": ["b", "c", "d", "e"], "label": 1}',
    '{"ctx": null, "endings": ["b", "c", "d", "e"], "label": 1}', "\0\1\2 binary"],
    ids=lambda line: repr(line[:60]))
def test_broken_line_is_named_by_its_number(broken, tmp_path):
    """Counted from 1, as editors do, in one line; lines past the limit are not looked at."""
    path = write_jsonl(tmp_path / "h.jsonl", four_endings(3))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], broken, lines[2]]), encoding="utf-8")
    with pytest.raises(UserError, match="h.jsonl line 3 is not a HellaSwag example") as error:
        hellaswag.load_examples(path)
    assert "\n" not in str(error.value)
    assert len(hellaswag.load_examples(path, limit=2)) == 2


@pytest.mark.parametrize("change", [
    lambda data: b"\xef\xbb\xbf" + data,  # Windows marks UTF-8 so
    lambda data: data + b"\xef\xbb\xbf" + data, lambda data: data + b"\n \n",
    lambda data: b"\n" + data, lambda data: data.replace(b"\n", b"\n\n"),
    lambda data: data.replace(b"\n", b"\r\n"), lambda data: data.replace(b"\n", b" \r\n\r\n"),
    lambda data: data.rstrip(), lambda data: data.replace(b"3}", b"3.0}"),
    lambda data: data.replace(b"1}", b'"1.0"}')])
def test_the_same_examples_in_another_file(change, tmp_path):
    """As editors, Windows, cat and pandas write them."""
    path = write_jsonl(tmp_path / "h.jsonl", four_endings(6))
    path.write_bytes(change(path.read_bytes()))
    found = hellaswag.load_examples(path)
    assert found[:6] == four_endings(6) and found[6:] in ([], four_endings(6))
    assert hellaswag.load_examples(path, limit=2) == four_endings(2)


def latin(data):
    return data.replace(b'"ctx": "', b'"ctx": "Caf\xe9 ')


@pytest.mark.parametrize("change, words", [
    (latin, "line 1 .*not UTF-8"), (lambda data: data + latin(data), "line 7 .*not UTF-8"),
    (lambda data: data.decode().encode("utf-16"), "line 1 .*not UTF-8"),
    (lambda data: data.decode().encode("utf-16-le"), "line 1 .*not UTF-8"),
    (lambda data: data.decode().encode("utf-32"), "line 1 .*not UTF-8"),
    (gzip.compress, "line 1 .*gzip"), (lambda data: b"PAR1" + data, "line 1 .*parquet"),
    (lambda data: b"PK\3\4" + data, "line 1 .*zip"), (bz2.compress, "line 1 .*not UTF-8"),
    (lambda data: b"[" + data.strip().replace(b"\n", b", ") + b"]", "line 1 .*JSON array"),
    (lambda data: b"[\n" + data.replace(b"\n", b",\n"), "line 1 .*JSON array"),
    (lambda data: re.sub(b', "label": .', b"", data), "line 1 .*take validation"),
    (lambda data: re.sub(b'"label": .', b'"label": ""', data), "line 1 .*take validation"),
    (lambda data: re.sub(b'"label": .', b'"label": null', data), "line 1 .*take validation")])
def test_other_files_are_named_for_what_they_are(change, words, tmp_path):
    """Replacing what cannot be read would score other texts."""
    path = write_jsonl(tmp_path / "h.jsonl", four_endings(6))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=words) as error:
        hellaswag.load_examples(path)
    assert "\n" not in str(error.value)


def test_a_file_without_examples_is_refused(tmp_path):
    """An accuracy of nothing would be a division by zero, much later."""
    (tmp_path / "h.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no examples"):
        hellaswag.load_examples(tmp_path / "h.jsonl")


def test_missing_file_is_one_line(monkeypatch, capsys):
    said = refusal(hellaswag.main, "--data", "nowhere.jsonl", monkeypatch=monkeypatch,
                   capsys=capsys)
    assert said.startswith("error: no HellaSwag file nowhere.jsonl")
