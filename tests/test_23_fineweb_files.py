"""The source's files: against a folder whose files and sizes are known."""

from pathlib import Path

from helpers import fineweb, refused

from nanogpt.sources import find_source


def write_files(folder):
    """Files that are not made in the order of their names, and two that hold no text."""
    sizes = {"b.parquet": 3_000, "a.parquet": 70, "more/c.parquet": 0, "a.pdf": 5, "parquet": 6}
    for name, size in sizes.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name[:1].encode() * size)
    return folder


def test_files_in_the_order_of_their_names(tmp_path):
    """Folders inside the folder count too; a file with another ending does not."""
    source = find_source(str(write_files(tmp_path / "docs")))
    files = dict(zip(map(Path, source.files), source.sizes, strict=True))
    assert files == {Path("a.parquet"): 70, Path("b.parquet"): 3_000, Path("more/c.parquet"): 0}
    assert list(files) == [Path("a.parquet"), Path("b.parquet"), Path("more/c.parquet")]


def test_path_opens_the_file(tmp_path):
    """path(i) is where file i lies, from whatever folder the program runs."""
    source = find_source(str(write_files(tmp_path / "docs")))
    for i, text in enumerate([b"a" * 70, b"b" * 3_000, b""]):
        assert Path(source.path(i)).read_bytes() == text


def test_a_source_without_files_is_one_line(tmp_path):
    """A name that is not there, a folder without files of text, another file."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.pdf").write_text("a")
    (tmp_path / "a.pdf").write_text("a")
    for name in "nowhere", "empty", "a.pdf":
        refused(fineweb(tmp_path / name, tmp_path / "out"), name, "nothing to read", "folder")
        assert not (tmp_path / "out").exists()
