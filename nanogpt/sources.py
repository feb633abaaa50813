"""Any text as documents in a fixed order."""

import functools
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet as pq

from nanogpt.common import UserError, hub_offline, needs_network

HUB = "HuggingFaceFW/fineweb-edu"
HUB_FOLDER = "sample/10BT"


@dataclass(frozen=True)
class Source:
    """Parquet files in order: their names, their sizes in bytes, and a way to get them."""

    files: tuple[str, ...]
    sizes: tuple[int, ...]
    folder: Path | None = None  # None: the hub

    @functools.cache  # noqa: B019 (one Source lives as long as the program)
    def path(self, i):
        """A local path of file i, downloaded first if need be."""
        if self.folder is not None:
            return str(self.folder / self.files[i])
        import huggingface_hub

        with needs_network(self.files[i], "go online and run the same command again"):
            return huggingface_hub.hf_hub_download(HUB, self.files[i], repo_type="dataset")


def find_source(name):
    """The Source that --source names. Raises UserError for a folder without parquet files."""
    if name == HUB:
        return find_on_hub()
    folder = Path(name)
    files = sorted(folder.rglob("*.parquet")) if folder.is_dir() else []
    if not files:
        raise UserError(f"no .parquet files in {name}: name a folder that has some, or {HUB}")
    return Source(tuple(str(file.relative_to(folder)) for file in files),
                  tuple(file.stat().st_size for file in files), folder)


def find_on_hub():
    """The files of sample-10BT."""
    import huggingface_hub

    way_out = "go online, or name a folder of .parquet files with --source"
    if hub_offline(HUB, "dataset"):
        raise UserError(f"cannot reach the hub for {HUB}: {way_out}")
    with needs_network(HUB, way_out):
        tree = huggingface_hub.HfApi().list_repo_tree(HUB, HUB_FOLDER, repo_type="dataset")
        files = sorted((item.path, item.size) for item in tree if item.path.endswith(".parquet"))
    return Source(tuple(path for path, _ in files), tuple(size for _, size in files))


def open_parquet(path):
    """A pyarrow ParquetFile with a column of text. Raises UserError."""
    try:
        file = pq.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} is not a complete parquet file ({type(error).__name__}): "
                        "fetch it again") from None
    column = file.schema_arrow.get_field_index("text")
    if column < 0 or not is_text(file.schema_arrow.field(column).type):
        raise UserError(f"{path} has no column of strings named text: rename the column")
    return file


def is_text(kind):
    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)


def read_texts(path, group):
    """The texts of one row group, without missing ones. Raises UserError if it is damaged."""
    try:
        texts = pq.ParquetFile(path).read_row_group(group, columns=["text"])["text"].to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} is damaged in row group {group} ({type(error).__name__}): "
                        "fetch it again") from None
    return [text for text in texts if text is not None]


def estimate_tokens(source, tokenizer):
    """About how many tokens the source holds, for the progress bar and the disk check.

    The hub's sample has 10 billion, by its name. A folder's files have their bytes of text in their
    footers; GPT-2's tokens have three each in source code, four or five in English prose.
    """
    if source.folder is None:
        return 10**10
    text_bytes = 0
    for i in range(len(source.files)):
        metadata = open_parquet(source.path(i)).metadata
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            for column in map(group.column, range(group.num_columns)):
                if column.path_in_schema == "text":
                    text_bytes += column.total_uncompressed_size
    return text_bytes // {"gpt2": 3, "bytes": 1}[tokenizer]


def bytes_to_download(config, source, n_tokens):
    """Bytes of the hub's files for the first n_tokens (with a seed, all) that are not cached."""
    if source.folder is not None:
        return 0
    import huggingface_hub

    total, download = 0, 0
    for file, size in zip(source.files, source.sizes, strict=True):
        if config.seed is None and total * 10**10 >= n_tokens * sum(source.sizes):
            break
        total += size
        cached = huggingface_hub.try_to_load_from_cache(HUB, file, repo_type="dataset")
        download += 0 if isinstance(cached, str) else size
    return download
