"""Any text as documents in a fixed order."""

import functools
import re
import shutil
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet as pq

from nanogpt.common import UserError, hub_offline, needs_network
from nanogpt.disk import digest, whole
from nanogpt.formats import KINDS, Block, blocks, documents
from nanogpt.records import texts

HUB = "HuggingFaceFW/fineweb-edu"
HUB_FOLDER = "sample/10BT"
ADDRESS = re.compile("https?://")
PLAYS = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
NOT_TEXT = ("manifest.json", "tokenizer.json", "readme.md")  # in a folder: about it, or of shards
TEXT = re.compile(r"(dictionary<values=)?(large_)?(string|binary)(_view)?(,.*)?|null")  # columns'


@dataclass(frozen=True)
class Source:
    """Files in order: their names, their sizes in bytes, and a way to get them."""

    files: tuple[str, ...]
    sizes: tuple[int, ...]
    folder: Path | None = None  # None: the hub
    column: str | None = None  # None: found in each file
    data_set: tuple | None = None  # name, --config and --split of one that the hub streams
    skipped: tuple[str, ...] = ()  # kinds or names of a folder's other files, one for each

    @functools.cache  # noqa: B019 (one Source lives as long as the program)
    def path(self, i):
        """A local path of file i, downloaded first if need be."""
        if self.folder is not None:
            return str(self.folder / self.files[i])
        import huggingface_hub

        with needs_network(self.files[i], "go online and run the same command again"):
            return huggingface_hub.hf_hub_download(HUB, self.files[i], repo_type="dataset")

    def groups(self, i, first=0):
        """The numbers from `first` on of file i's row groups; Blocks, if it is not parquet."""
        path = self.path(i)
        if path.lower().endswith(".parquet"):
            return range(first, open_parquet(path, self.column)[0].num_row_groups)
        find = functools.partial(text_column, column=self.column)
        found = stream(*self.data_set, find) if self.data_set else documents(path, find)
        return (block for block in blocks(found) if block >= first)

    def texts(self):
        """All texts in order."""
        for i in range(len(self.files)):
            for group in self.groups(i):
                yield from read_texts(self.path(i), group, self.column)


def find_source(name, column=None, config=None, split="train"):
    """The Source that --source names. Raises UserError if it has nothing to read."""
    if name == HUB and not config:
        return find_on_hub()
    path = Path(name)
    if name.partition(".")[0] == "-":
        return Source((name,), (0,), Path(), column)
    if name == "shakespeare" or ADDRESS.match(name):
        path = fetch(PLAYS if name == "shakespeare" else name)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not path.exists():
        if hub_offline(name, "dataset"):
            raise UserError(f"no file, folder or data set {name}: go online, or mend the name")
        return Source((f"{name} {config} {split}",), (0,), Path(), column, (name, config, split))
    if path.is_dir():
        folder, (files, skipped) = path, look_through(path)
    else:
        folder, skipped = path.parent, ()
        files = [path] if path.is_file() and KINDS.search(path.name) else []
    if not files:
        missing = KINDS.search(path.name) and not path.exists()
        raise UserError(f"{'no file' if missing else 'nothing to read in'} {name}: name a txt, md, "
                        "jsonl, json, csv, tsv or parquet file (gz, zst too), a folder of them, a "
                        "URL, a data set of the hub, or -")
    return Source(tuple(str(file.relative_to(folder)) for file in files),
                  tuple(file.stat().st_size for file in files), folder, column,
                  skipped=skipped)


def fetch(url):
    """The local path of the file at an address, downloaded once. Raises UserError."""
    from huggingface_hub.constants import HF_HOME

    path = Path(HF_HOME, "text", re.sub(r"\W+", "_", url)[-200:], Path(url.partition("?")[0]).name)
    if not path.exists() and KINDS.search(path.name):
        path.parent.mkdir(parents=True, exist_ok=True)
        with needs_network(url, "go online and run the same command again"), whole(path) as part:
            with urllib.request.urlopen(url, timeout=60) as reply, open(part, "wb") as file:
                shutil.copyfileobj(reply, file)
            if reply.length:  # so much is missing
                raise OSError("the connection was lost")
            if url == PLAYS and digest(part)[1] != SHA256:
                raise UserError(f"{url} is not nanoGPT's file: name another --source")
    return path


def stream(name, config, split, find):
    """The texts of a data set of the hub. Raises UserError."""
    from datasets import load_dataset

    with needs_network(name, "go online and run the same command again"):
        try:
            yield from texts(load_dataset(name, config, split=split, streaming=True), find)
        except ValueError as error:
            raise UserError(f"{name}: {error}: choose another --config or --split") from None


def look_through(folder):
    """The files below a folder that hold text, in order; for each other file, what it is called
    in the list of those: its suffix, or its name if it has none or is one of NOT_TEXT."""
    files, skipped = [], []
    for path in walk(folder, set()):
        if path.name.lower() in NOT_TEXT:
            skipped.append(path.name)
        elif KINDS.search(path.name) and path.is_file():
            files.append(path)
        else:
            skipped.append(path.suffix.lower() or path.name)
    return files, tuple(skipped)


def walk(folder, seen):
    """The files below a folder, in order, except names that begin with . or _, and runs; once."""
    is_run = (folder / "log.txt").exists() and (folder / "config.toml").exists()
    if folder.resolve() in seen or is_run:
        return
    seen.add(folder.resolve())
    for path in sorted(path for path in folder.iterdir() if path.name[0] not in "._"):
        if path.is_dir() or not path.stat():  # which raises OSError for a link to nothing
            yield from walk(path, seen)
        else:
            yield path


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


def text_column(names, column):
    """--column, or text, or content, or the only one of the names. Raises ValueError."""
    wanted = [column] if column else ["text", "content", *(names if len(names) == 1 else [])]
    for name in wanted:
        if name in names:
            return name
    raise ValueError(f"no text named {' or '.join(wanted)}: choose a --column of {names}")


def open_parquet(path, column=None):
    """A pyarrow ParquetFile, and the name of its column of text. Raises UserError."""
    try:
        file = pq.ParquetFile(path)
        names = [field.name for field in file.schema_arrow if TEXT.fullmatch(str(field.type))]
        return file, text_column(names, column)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} is not a complete parquet file ({type(error).__name__}): "
                        "fetch it again") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def read_texts(path, group, column=None):
    """The texts of one row group, without missing ones. Raises UserError if it is damaged."""
    if isinstance(group, Block):
        return group.texts
    file, column = open_parquet(path, column)
    try:
        texts = file.read_row_group(group, columns=[column])[column].to_pylist()
        return [str(text, "utf-8") if isinstance(text, bytes) else text
                for text in texts if text is not None]
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged in row group {group} ({error}): fetch it again, or "
                        "make it again from text in UTF-8") from None


def estimate_tokens(source, tokenizer):
    """About how many tokens the source holds, for the progress bar and the disk check.

    The hub's sample has 10 billion, by its name. A folder's files have their bytes of text in their
    footers; GPT-2's tokens have three each in source code, four or five in English prose.
    Other files are all text, packed to a third; standard input counts as nothing.
    """
    if source.folder is None:
        return 10**10
    text_bytes = 0
    for i, name in enumerate(map(str.lower, source.files)):
        if not name.endswith(".parquet"):
            text_bytes += source.sizes[i] * (3 if name.endswith((".gz", ".zst")) else 1)
            continue
        file, text = open_parquet(source.path(i), source.column)
        for group in map(file.metadata.row_group, range(file.num_row_groups)):
            for column in map(group.column, range(group.num_columns)):
                if column.path_in_schema == text:
                    text_bytes += column.total_uncompressed_size
    return text_bytes // (1 if tokenizer.startswith(("bytes", "chars")) else 3)


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
