"""Files of text: the documents in each kind, read from front to back."""

import csv
import io
import re
import sys

import pyarrow

from nanogpt.common import UserError
from nanogpt.records import rows, texts, values

KINDS = re.compile(r"(?i)\.(parquet|(txt|md|jsonl|ndjson|json|csv|tsv)(\.gz|\.zst)?)$")
BLOCK = 2**20  # characters that a worker gets at a time; shards that resume count in them
CUT = re.compile(r"(?<=\S)(?=[ \n])")  # GPT-2's pattern ends a piece here, whatever follows


class More(str):
    """The rest of a document: no end-of-text comes before it."""


class Block(int):
    """The number of a block of texts, and the texts."""
    def __init__(self, number):
        self.texts = []


def blocks(texts):
    """The texts in Blocks of about a million characters."""
    block, size = Block(0), 0
    for text in texts:
        block.texts.append(text)
        if (size := size + len(text) + 1) > BLOCK:
            yield block
            block, size = Block(block + 1), 0
    if block.texts:
        yield block


def documents(path, find):
    """The texts of a file that is not parquet. "-" is standard input, "-.jsonl" says its kind.
    Raises UserError with the line that cannot be read."""
    kind, n = KINDS.search(path.lower()) or KINDS.search(".txt"), 1
    file = io.BufferedReader(pyarrow.input_stream(
        sys.stdin.buffer if path.partition(".")[0] == "-" else path,
        compression={".gz": "gzip", ".zst": "zstd"}.get(kind[3])))
    size = BLOCK if kind[2] in ("txt", "md") else 0

    def lines():  # one at a time, or as many as make a block
        nonlocal n
        for part in iter(lambda: file.read(size) + file.readline(), b""):
            yield part.decode("utf-8-sig" if n == 1 else "utf-8")  # without a byte order mark
            n += part.count(b"\n")

    try:
        if size:
            yield from pieces(lines())
        else:
            records = rows(lines(), kind[2]) if "sv" in kind[2] else values(lines())
            yield from texts(records, find)
    except (csv.Error, OSError, RecursionError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            n += error.object.count(b"\n", 0, error.start)
        way_out = "" if "--column" in str(error) else ": mend the file, or convert it to UTF-8"
        raise UserError(f"{path} line {n}: {error}{way_out}") from None


def pieces(lines):
    """One document; a long one in pieces whose tokens are, end to end, those of the whole."""
    rest, kind = "", str
    for line in lines:
        start, rest = max(len(rest), BLOCK), rest + line
        while cut := CUT.search(rest, start):
            yield kind(rest[: cut.start()])
            rest, kind, start = rest[cut.start() :], More, BLOCK
    yield kind(rest)
