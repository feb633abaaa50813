"""Documents from parquet files: against those that were written, file by file, row by row."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import fineweb, make_documents, refused, texts_of, windows_of, write_parquet


def test_documents_come_back_in_order(tmp_path):
    documents = make_documents(75)
    assert texts_of(write_parquet(tmp_path / "docs", documents)) == documents


def test_row_groups_in_order(tmp_path):
    """Files of 38 and 37 documents, ten a row group: four groups each, file after file."""
    folder = write_parquet(tmp_path / "docs", make_documents(75))
    assert windows_of(folder) == [[(file, group)] for file in range(2) for group in range(4)]


def test_an_empty_text_is_a_document_and_a_missing_one_is_none(tmp_path):
    """A null in the column is left out; an empty string is a document without characters."""
    folder = write_parquet(tmp_path / "docs", ["", "a", None, "", None, "b"], files=1)
    assert texts_of(folder) == ["", "a", "", "b"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_both_kinds_of_strings_are_text(kind, tmp_path):
    table = pa.table({"n": [1, 2], "text": pa.array(["ä", "b"], kind), "text2": ["x", "y"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert texts_of(tmp_path) == ["ä", "b"]


def test_a_file_that_holds_no_text_is_one_line(tmp_path):
    """No parquet file, several columns, none of texts: the message names the file."""
    out, file = tmp_path / "out", tmp_path / "broken" / "a.parquet"
    file.parent.mkdir()
    file.write_bytes(b"no parquet at all")
    for table in None, {"words": ["a"], "more": ["b"]}, {"text": [1]}:
        if table:
            pq.write_table(pa.table(table), file)
        words = "no text named text" if table else "fetch it again"
        refused(fineweb(file.parent, out), "a.parquet", words)
    assert not out.exists() or not list(out.iterdir())


def test_damaged_row_group_names_its_file(tmp_path):
    source = write_parquet(tmp_path / "docs", make_documents(50), files=1)
    data = bytearray((source / "000.parquet").read_bytes())
    data[600:1600] = bytes(1000)
    (source / "000.parquet").write_bytes(data)
    done = fineweb(source, tmp_path / "out")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]  # under the progress bar, when there is one
    assert last.startswith("error: ") and "000.parquet is damaged in row group 0" in last
