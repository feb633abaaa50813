"""Text to tokens: documents in parquet files become shards that train_gpt2.py reads.

    python fineweb.py                               # FineWeb-Edu, sample-10BT, from the hub
    python fineweb.py --source FOLDER --out SHARDS  # any folder of .parquet files

The files of FOLDER need a column named text. Every document is an end-of-text token followed by
its GPT-2 tokens. The stream of documents is cut into files of --shard-size tokens, one-dimensional
uint16: {name}_val_000000.npy, {name}_train_000001.npy and so on; manifest.json beside them says
what they are made of. A run that is stopped goes on when the same command is given again, and the
bytes are the same as if it had never stopped.
"""

import base64
import functools
import json
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import threading
from collections import deque
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pyarrow
import pyarrow.parquet as pq
import tiktoken
from tqdm import tqdm

from common import (
    TOKENIZERS,
    UserError,
    check_writable,
    digest,
    get_tokenizer,
    hub_offline,
    needs_network,
    parse,
    run,
    whole,
)

HUB = "HuggingFaceFW/fineweb-edu"
HUB_FOLDER = "sample/10BT"
WINDOW = 64  # row groups whose documents are shuffled among each other
SAMPLE = 64  # one document in so many is encoded twice, which costs less than it saves

# GPT-2's pattern. What needs no look at the next character stands in one group, which tiktoken's
# engine hands to a quick automaton as a whole; its backtracking part is left with the spaces
PATTERN = (r"(?:'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+)"
           r"|\s+(?!\S)|\s+")


@dataclass(frozen=True)
class Config:
    source: str = HUB
    """the hub's FineWeb-Edu, sample-10BT, or a folder of .parquet files with a text column"""
    out: str = "edu_fineweb10B"
    """folder for the shards and their manifest.json"""
    shard_size: int = 10**8
    """tokens a shard; the first shard is for validation"""
    max_tokens: int | None = None
    """stop after so many tokens; None: all there are"""
    workers: int = min(os.cpu_count() or 1, 61)  # Windows allows no more
    """processes that tokenise; threads with gigatoken"""
    seed: int | None = None
    """shuffle the documents by this number; None: in the order of the source"""
    tokenizer: Literal["gpt2", "bytes"] = "gpt2"
    """bytes needs no vocabulary, for trying things without a network"""
    encoder: Literal["tiktoken", "gigatoken"] = "tiktoken"
    """gigatoken (pip install gigatoken) makes the same shards sooner, compared with tiktoken"""


# -----------------------------------------------------------------------------
# the source


@dataclass(frozen=True)
class Source:
    """Parquet files in order: their names, sizes in bytes, and how to get one onto this disk."""

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
    """The Source of --source. Raises UserError for a folder without parquet files."""
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
        raise UserError(f"{path} is no whole parquet file ({type(error).__name__}): "
                        "fetch it again") from None
    column = file.schema_arrow.get_field_index("text")
    if column < 0 or not is_text(file.schema_arrow.field(column).type):
        raise UserError(f"{path} has no column of strings named text: name a folder whose files do")
    return file


def is_text(kind):
    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)


def estimate_tokens(source, tokenizer):
    """About how many tokens the source holds, for the progress bar and the disk.

    The hub's sample has 10 billion by its name. A folder's bytes of text are in its files' footers;
    three a token errs on the large side: English prose has four or five, source code three.
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
    """Of the hub's files that hold the first n_tokens (with a seed, of all), those not yet here."""
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


def check_disk(config, source, n_tokens, n_done):
    """State what is needed; raise UserError before starting if a disk has less."""
    from huggingface_hub.constants import HF_HUB_CACHE

    download = bytes_to_download(config, source, n_tokens)
    needs = {}  # by disk: a folder on it, bytes
    for folder, need in (config.out, 2 * max(0, n_tokens - n_done)), (HF_HUB_CACHE, download):
        folder = next(path for path in (Path(folder).absolute(), *Path(folder).absolute().parents)
                      if path.exists())
        disk = folder.stat().st_dev
        needs[disk] = (needs.get(disk, (folder, 0))[0], needs.get(disk, (folder, 0))[1] + need)
    print(f"needs about {2 * max(0, n_tokens - n_done) / 1e9:.1f} GB for shards and "
          f"{download / 1e9:.1f} GB for the download, in the hub's cache")
    for folder, need in needs.values():
        free = shutil.disk_usage(folder).free
        if need > free:
            raise UserError(f"the disk of {folder} has {free / 1e9:.1f} GB free, and about "
                            f"{need / 1e9:.1f} GB are needed: make room, or choose another --out, "
                            "another HF_HOME or fewer --max-tokens")


# -----------------------------------------------------------------------------
# tokens


def windows(config, source, start=None):
    """Row groups in the run's order, as lists of (file, group), from the list that begins with
    `start` on. In the source's order a list holds one group; with a seed, WINDOW groups drawn from
    all files, whose documents will be shuffled together."""
    if config.seed is None:
        first_file, first_group = start or (0, 0)
        for file in range(first_file, len(source.files)):
            n_groups = open_parquet(source.path(file)).num_row_groups
            for group in range(first_group if file == first_file else 0, n_groups):
                yield [(file, group)]
    else:
        groups = [(file, group) for file in range(len(source.files))
                  for group in range(open_parquet(source.path(file)).num_row_groups)]
        order = np.random.default_rng(config.seed).permutation(len(groups))
        groups = [groups[i] for i in order]
        if start and start not in groups:
            raise UserError(f"{config.out} goes on at {start}, and the source has no such row "
                            "group: choose another --out")
        for i in range(groups.index(start) if start else 0, len(groups), WINDOW):
            yield groups[i : i + WINDOW]


@functools.cache
def encoding(name):
    """The tokenizer of this process, GPT-2's with PATTERN."""
    enc = get_tokenizer(name)
    if name != "gpt2":
        return enc
    return tiktoken.Encoding(name, pat_str=PATTERN, mergeable_ranks=enc._mergeable_ranks,
                             special_tokens=enc._special_tokens)


def encode(enc, text):
    """A document's tokens, uint16: end-of-text, then the text's, a special token's name spelt out.

    tiktoken's pattern breaks on runs of about a million spaces, so they are cut.
    """
    tokens = [enc.encode_to_numpy(piece, disallowed_special=()) for piece in cut(text)]
    return np.concatenate([[enc.eot_token], *tokens], dtype=np.uint16, casting="unsafe")


def cut(text):
    """The text in pieces: every 100,000 spaces of a run are one, and what lies between two runs.
    A run is tried where it begins, not at each of its spaces: that would be slow."""
    if len(text) <= 100_000:
        return [text]
    pieces = []
    for i, part in enumerate(re.split(r"(?<!\s)((?:\s{100000})+)", text)):
        size = 100_000 if i % 2 else max(1, len(part))
        pieces += [part[j : j + size] for j in range(0, len(part), size)]
    return pieces


def read_texts(path, group):
    """The documents of one row group. Raises UserError if the file is damaged there."""
    try:
        texts = pq.ParquetFile(path).read_row_group(group, columns=["text"])["text"].to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} is damaged in row group {group} ({type(error).__name__}): "
                        "fetch it again") from None
    return [text for text in texts if text is not None]


@functools.cache
def fast_encoding(name):
    """gigatoken with encoding(name)'s ranks, which it reads from a file, and with what encode()
    needs of tiktoken's interface. Special tokens it is not told of are text. Raises UserError."""
    enc = encoding(name)
    lines = [base64.b64encode(piece) + b" %d\n" % rank
             for piece, rank in enc._mergeable_ranks.items()]
    try:
        import gigatoken

        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "ranks").write_bytes(b"".join(lines))
            fast = gigatoken.Tokenizer.from_tiktoken(Path(folder, "ranks"), pretokenizer="gpt2")
    except Exception as error:  # not there, of another system, of a version without this
        raise UserError(f"--encoder gigatoken does not work here ({type(error).__name__}): pip "
                        "install gigatoken, or leave out --encoder") from None
    lock = threading.Lock()  # one tokenizer for all threads, and it refuses a second caller

    def encode_to_numpy(text, **special):
        with lock:
            return fast.encode(text)

    return SimpleNamespace(eot_token=enc.eot_token, encode_to_numpy=encode_to_numpy)


@functools.cache
def agree(tokenizer, char):
    """Whether the character is a letter, a number or neither to both: they know other Unicodes."""
    text = f"a{char} {char}1{char}{char} {char}'s {char}\n"
    return np.array_equal(encode(encoding(tokenizer), text), encode(fast_encoding(tokenizer), text))


def encode_fast(texts, tokenizer, place):
    """The documents' tokens by gigatoken; by tiktoken where a character is of another kind to it.
    One document in SAMPLE, the first always, is encoded by both. Raises UserError, which names the
    document and the place, if they differ."""
    enc, fast = encoding(tokenizer), fast_encoding(tokenizer)
    occurs = np.zeros(sys.maxunicode + 1, dtype=bool)  # a set() of the texts would take ten times
    codes = "".join(text for text in texts if not text.isascii()).encode("utf-32-le")
    occurs[np.frombuffer(codes, "<u4")] = True
    strange = {chr(i) for i in np.flatnonzero(occurs) if not agree(tokenizer, chr(i))}
    documents = [encode(enc if strange and strange.intersection(text) else fast, text)
                 for text in texts]
    for text, tokens in zip(texts[::SAMPLE], documents[::SAMPLE], strict=True):
        if not np.array_equal(tokens, encode(enc, text)):
            raise UserError(f"gigatoken and tiktoken differ on the document {text[:50]!r} in "
                            f"{place}: choose another --out, and leave out --encoder")
    return documents


def tokenise(path, group, tokenizer, encoder="tiktoken"):
    """A worker's task: the tokens of a row group's documents end to end, uint16, and the lengths
    of the documents: two arrays, which cost the main process less than one for each document."""
    texts = read_texts(path, group)
    if encoder == "gigatoken":
        documents = encode_fast(texts, tokenizer, f"row group {group} of {path}")
    else:
        documents = [encode(encoding(tokenizer), text) for text in texts]
    lengths = np.array([len(document) for document in documents], dtype=np.int64)
    return np.concatenate([np.empty(0, np.uint16), *documents]), lengths


def tokenised(config, source, pool, start=None):
    """Windows as (their first group, their documents end to end), in order, whatever the workers'
    number and speed. Each worker has two tasks at a time, so memory stays bounded."""
    waiting, task = deque(), tokenise
    if config.encoder == "gigatoken":
        task = functools.partial(tokenise, encoder="gigatoken")

    def finish():
        window, futures = waiting.popleft()
        results = [future.result() for future in futures]
        tokens, lengths = map(np.concatenate, zip(*results, strict=True))
        if config.seed is not None:
            order = np.random.default_rng((config.seed, *window[0])).permutation(len(lengths))
            *documents, rest = np.split(tokens, np.cumsum(lengths))  # rest: nothing, an array
            tokens = np.concatenate([*(documents[i] for i in order), rest])
        return window[0], tokens

    for window in windows(config, source, start):
        futures = [pool.submit(task, source.path(file), group, config.tokenizer)
                   for file, group in window]
        waiting.append((window, futures))
        if sum(len(futures) for _, futures in waiting) >= 2 * config.workers:
            yield finish()
    while waiting:
        yield finish()


# -----------------------------------------------------------------------------
# shards


def read_manifest(config, source):
    """The manifest of this run as far as it got, or a new one. Raises UserError for a folder that
    holds anything else, so that nothing is overwritten."""
    new = {
        "tokenizer": config.tokenizer, "vocab_size": TOKENIZERS[config.tokenizer],
        "end_of_text": TOKENIZERS[config.tokenizer] - 1, "source": config.source,
        "files": dict(zip(source.files, source.sizes, strict=True)), "order_seed": config.seed,
        "shard_size": config.shard_size, "max_tokens": config.max_tokens,
        "complete": False, "tokens": 0, "documents": 0, "shards": [],
    }
    out = Path(config.out)
    way_out = "choose another --out, or remove that folder"
    if not (out / "manifest.json").exists():
        if shards := [*out.glob("*.npy"), *out.glob("*.bin")]:
            raise UserError(f"{out} holds {shards[0].name} and no manifest.json: {way_out}")
        return new
    try:
        old = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
        differing = [key for key in new if key not in ("complete", "tokens", "documents", "shards",
                                                       "source") and old[key] != new[key]]
        if differing:
            key = differing[0]
            raise UserError(f"{out} was begun with {key} = {old[key]}, not {new[key]}: {way_out}")
        return keep_whole_shards(out, old)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{out / 'manifest.json'} is no manifest of fineweb.py "
                        f"({type(error).__name__}): {way_out}") from None


def keep_whole_shards(out, manifest):
    """The manifest up to the first shard that is not there in full."""
    for i, shard in enumerate(manifest["shards"]):
        try:
            n_tokens = len(np.lib.format.open_memmap(out / shard["file"], mode="r"))
        except Exception:  # a damaged header fails in numpy in a dozen ways
            n_tokens = 0
        if n_tokens != shard["tokens"]:
            manifest |= {"shards": manifest["shards"][:i], "complete": False}
            break
    if not manifest["complete"] and manifest["shards"]:  # where the next one begins
        (file, group), place = manifest["shards"][-1]["following"]
        if not all(type(number) is int and number >= 0 for number in (file, group, place)):
            raise ValueError
    for key in "tokens", "documents":
        manifest[key] = sum(shard[key] for shard in manifest["shards"])
    return manifest


def write_shard(config, manifest, tokens, following):
    """One shard and the manifest that lists it, each whole or not at all. following: the window
    and the place in it where the next shard begins; None after the last."""
    number = len(manifest["shards"])
    if number:  # the source's folder may have been renamed since
        name = manifest["shards"][0]["file"].removesuffix("_val_000000.npy")
    else:
        name = "edufineweb" if config.source == HUB else Path(config.source).resolve().name
    file = f"{name}_{'train' if number else 'val'}_{number:06d}.npy"
    documents = int(np.count_nonzero(tokens == manifest["end_of_text"]))
    with whole(Path(config.out) / file) as path, open(path, "wb") as opened:
        np.save(opened, tokens)
    _, sha256 = digest(Path(config.out) / file)
    manifest["shards"].append({"file": file, "tokens": len(tokens), "documents": documents,
                               "sha256": sha256, "following": following})
    manifest["tokens"] += len(tokens)
    manifest["documents"] += documents
    manifest["complete"] = following is None
    with whole(Path(config.out) / "manifest.json") as path:
        path.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def write_shards(config, source, manifest, bar):
    """Tokenise from where the manifest ends, and write shards until source or max_tokens end."""
    start, place = manifest["shards"][-1]["following"] if manifest["shards"] else (None, 0)
    room = config.max_tokens - manifest["tokens"] if config.max_tokens else sys.maxsize
    shard, filled = np.empty(min(config.shard_size, room), dtype=np.uint16), 0
    # spawned, not forked, as on every system; a worker imports this file, hence the main guard
    pool = ProcessPoolExecutor(config.workers, multiprocessing.get_context("spawn"))
    if config.encoder == "gigatoken":  # done before processes have begun
        pool = ThreadPoolExecutor(config.workers)
    try:
        for window, tokens in tokenised(config, source, pool, start and tuple(start)):
            while place < len(tokens) and room:  # a long document fills many shards
                if filled == len(shard):
                    write_shard(config, manifest, shard, (window, place))
                    filled = 0
                n = min(len(tokens) - place, len(shard) - filled, room)
                shard[filled : filled + n] = tokens[place : place + n]
                filled, place, room = filled + n, place + n, room - n
                bar.update(n)
            place = 0
            if not room:
                break
        if not filled:
            raise UserError(f"{config.source} holds no documents: name another --source")
        write_shard(config, manifest, shard[:filled], None)
    except BrokenProcessPool:
        raise UserError(f"a worker was killed, for want of memory perhaps: run again with fewer "
                        f"--workers than {config.workers}") from None
    finally:
        pool.shutdown(cancel_futures=True)


def main():
    config = parse(Config(), sys.argv[1:], "fineweb.py", __doc__)
    for name in "shard_size", "max_tokens", "workers", "seed":
        value, least = getattr(config, name), 0 if name == "seed" else 1
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} {value}: give {least} or more")
    if config.shard_size > 10**10:
        raise UserError(f"--shard-size {config.shard_size}: give {10**10} or fewer")
    source = find_source(config.source)
    encoding(config.tokenizer)  # here first: one download, and one error if it fails
    if config.encoder == "gigatoken":
        fast_encoding(config.tokenizer)
    manifest = read_manifest(config, source)
    if not manifest["complete"]:
        check_writable(config.out)
        n_tokens = min(estimate_tokens(source, config.tokenizer), config.max_tokens or sys.maxsize)
        check_disk(config, source, n_tokens, manifest["tokens"])
        with tqdm(total=n_tokens, initial=manifest["tokens"], unit="tok", unit_scale=True) as bar:
            write_shards(config, source, manifest, bar)
    print(f"{config.out}: {manifest['tokens']:,} tokens of {manifest['documents']:,} documents in "
          f"{len(manifest['shards'])} shards")
    if len(manifest["shards"]) < 2:
        print("only the validation shard is filled: choose a smaller --shard-size to train on it")


if __name__ == "__main__":
    run(main)
