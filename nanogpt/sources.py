"""Any text as documents in a fixed order."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet as pq

from nanogpt.common import UserError


@dataclass(frozen=True)
class Source:
    """Parquet files in order: their names, sizes in bytes, and the folder they are in."""

    files: tuple[str, ...]
    sizes: tuple[int, ...]
    folder: Path

    def path(self, i):
        """The path of file i."""
        return str(self.folder / self.files[i])


def find_source(name):
    """The Source that --source names. Raises UserError for a folder without parquet files."""
    folder = Path(name)
    files = sorted(folder.rglob("*.parquet")) if folder.is_dir() else []
    if not files:
        raise UserError(f"no .parquet files in {name}: name a folder that has some with --source")
    return Source(tuple(str(file.relative_to(folder)) for file in files),
                  tuple(file.stat().st_size for file in files), folder)


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
