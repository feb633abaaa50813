"""Text to tokens: documents become shards that train_gpt2.py reads.

    python fineweb.py                               # FineWeb-Edu, sample-10BT, from the hub
    python fineweb.py --source TEXT --out SHARDS    # your own: a file, or a folder of files

Every document is an end-of-text token followed by its GPT-2 tokens. They are cut into files of
--shard-size tokens, one-dimensional uint16: {name}_val_000000.npy, {name}_train_000001.npy and so
on; manifest.json says what they are made of. Stopped, the same command resumes, to the same bytes.
"""

# imported first, so that Ctrl-C ends the program without a traceback from here on
from nanogpt.common import UserError, parse, run

import functools
import json
import multiprocessing
import os
import shutil
import sys
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from nanogpt.disk import check_writable, digest, whole
from nanogpt.formats import KINDS, More
from nanogpt.gigatoken import encode_fast, fast_encoding
from nanogpt.lock import locked
from nanogpt.shards import split
from nanogpt.sources import HUB, bytes_to_download, estimate_tokens, find_source, read_texts
from nanogpt.terminal import ctrl_c_stays, end_with_main
from nanogpt.tokenizer import encode, encoding
from nanogpt.characters import without_surrogates

WINDOW = 64  # row groups whose documents are shuffled among each other


@dataclass(frozen=True)
class Config:
    source: str = HUB
    """a .txt, .md, .jsonl, .json, .csv, .tsv or .parquet file, .gz and .zst too; a folder of them;
    a URL; a data set of the hub; shakespeare; - for standard input, -.jsonl if it is that"""
    config: str | None = None
    """of a data set of the hub: its configuration"""
    split: str = "train"
    """of a data set of the hub: its split"""
    column: str | None = None
    """the column or key that has the text; None: text, or content, or the only one"""
    out: str = "edu_fineweb10B"
    """folder for the shards and their manifest.json"""
    shard_size: int = 10**8
    """tokens per shard; the first shard is for validation"""
    val: float = 0.1
    """the share for validation of a source that fits into one shard"""
    max_tokens: int | None = None
    """stop after this many tokens; None: use them all"""
    workers: int = min(os.cpu_count() or 1, 61)  # Windows allows no more
    """number of processes that tokenize; threads with gigatoken"""
    seed: int | None = None
    """shuffle the documents of parquet files with this seed; None: keep the source's order"""
    tokenizer: str = "gpt2"
    """gpt2, bytes, chars (every character of the source is a token), or a tokenizer.json file"""
    encoder: Literal["tiktoken", "gigatoken"] = "tiktoken"
    """gigatoken (pip install gigatoken) makes the same shards faster, checked against tiktoken"""


def check_disk(config, source, n_tokens, n_done):
    """Print how much disk n_tokens - n_done tokens take. Raises UserError if a disk has less."""
    from huggingface_hub.constants import HF_HUB_CACHE
    download = bytes_to_download(config, source, n_tokens)
    needs = {}  # by disk: a folder on it, bytes
    for folder, need in (config.out, 2 * max(0, n_tokens - n_done)), (HF_HUB_CACHE, download):
        folder = next(path for path in (Path(folder).absolute(), *Path(folder).absolute().parents)
                      if path.exists())
        disk = folder.stat().st_dev
        needs[disk] = (needs.get(disk, (folder, 0))[0], needs.get(disk, (folder, 0))[1] + need)
    print(f"needs about {2 * max(0, n_tokens - n_done) / 1e9:.1f} GB for shards"
          + f" and {download / 1e9:.1f} GB for the download, in the hub's cache" * (download > 0))
    for folder, need in needs.values():
        free = shutil.disk_usage(folder).free
        if need > free:
            raise UserError(f"the disk of {folder} has {free / 1e9:.1f} GB free, and about "
                            f"{need / 1e9:.1f} GB are needed: make room, or choose another --out, "
                            "another HF_HOME or fewer --max-tokens")


def find_key(config, source):
    """The key of the run's tokenizer. With chars, all the source's characters; a source of several
    documents has end-of-text too, to tell them apart."""
    enc = None if config.tokenizer == "chars" else encoding(config.tokenizer)
    if enc and enc.eot_token is not None:
        return config.tokenizer
    if source.files[0].partition(".")[0] == "-":
        raise UserError(f"--tokenizer {config.tokenizer} reads a text twice, and standard input "
                        "can be read only once: save it in a file, or choose --tokenizer bytes")
    found, n_documents = set(), 0
    groups = windows(replace(config, seed=None), source)
    for [(file, group)] in tqdm(groups, desc="finding characters", leave=False, disable=None):
        texts = read_texts(source.path(file), group, config.column)
        found.update(*texts)
        n_documents += sum(not isinstance(text, More) for text in texts)
    if not found:
        raise UserError(f"{config.source} holds no text: name another --source")
    if enc is None:
        characters = "".join(sorted({without_surrogates(c) for c in found}))
        return f"chars{'+eot' * (n_documents > 1)}:{characters}"
    if n_documents > 1:
        raise UserError(f"{config.source} has {n_documents} documents, and {config.tokenizer} has "
                        "no end-of-text to tell them apart: name one text")
    return config.tokenizer


def copy_tokenizer(enc, path):
    """Write a TokenizerFile to `path`. Raises UserError if another file is there."""
    if path.exists() and path.read_bytes() != enc.text.encode():
        raise UserError(f"{path} is another tokenizer than {enc.path}: choose another --out")
    with whole(path) as temporary:
        temporary.write_bytes(enc.text.encode())


def windows(config, source, start=None):
    """Lists of (file, row group or Block) in the run's order, from the one that begins with `start`
    on. They have one each; with a seed, WINDOW groups whose documents are shuffled together."""
    if config.seed is None:
        first_file, first_group = start or (0, 0)
        for file in range(first_file, len(source.files)):
            for group in source.groups(file, first_group if file == first_file else 0):
                yield [(file, group)]
    else:
        groups = [(i, group) for i in range(len(source.files)) for group in source.groups(i)]
        groups = [groups[i] for i in np.random.default_rng(config.seed).permutation(len(groups))]
        if start and start not in groups:
            raise UserError(f"{config.out} resumes at {start}, but the source has no such row "
                            "group: choose another --out")
        for i in range(groups.index(start) if start else 0, len(groups), WINDOW):
            yield groups[i : i + WINDOW]


def tokenise(path, group, tokenizer, encoder="tiktoken", column=None):
    """A worker's task: a row group's tokens (uint16), all documents end to end, and the documents'
    lengths (int64). Two arrays cost the main process less than one per document."""
    texts = read_texts(path, group, column)
    if encoder == "gigatoken":
        documents = encode_fast(texts, tokenizer, f"row group {group} of {path}")
    else:
        documents = [encode(encoding(tokenizer), text) for text in texts]
    ends = encoding(tokenizer).eot_token is not None  # every text begins with it, and More does not
    documents = [ids[ends * isinstance(t, More) :] for ids, t in zip(documents, texts, strict=True)]
    lengths = np.array([len(document) for document in documents], dtype=np.int64)
    return np.concatenate([np.empty(0, np.uint16), *documents]), lengths


def tokenised(config, source, pool, start=None):
    """(first row group, documents end to end) of every window, in order, however many workers there
    are and however fast. At most two tasks per worker, or two windows, are under way at a time."""
    waiting, task = deque(), tokenise
    if config.encoder == "gigatoken" or config.column:
        task = functools.partial(tokenise, encoder=config.encoder, column=config.column)

    def finish():
        window, futures = waiting.popleft()
        results = [future.result() for future in futures]
        tokens, lengths = map(np.concatenate, zip(*results, strict=True))
        if config.seed is not None:
            order = np.random.default_rng((config.seed, *window[0])).permutation(len(lengths))
            *documents, rest = np.split(tokens, np.cumsum(lengths))  # rest: always empty
            tokens = np.concatenate([*(documents[i] for i in order), rest])
        return tuple(map(int, window[0])), tokens  # without a Block's texts

    submit = ctrl_c_stays()(pool.submit)  # this starts the workers
    for window in windows(config, source, start):
        futures = [submit(task, source.path(i), group, config.tokenizer) for i, group in window]
        waiting.append((window, futures))
        if len(waiting) > 1 and sum(len(each) for _, each in waiting) >= 2 * config.workers:
            yield finish()
    while waiting:
        yield finish()


def read_manifest(config, source, facts=()):
    """The manifest of this run as far as it got, or a new one. Raises UserError for a folder that
    holds other shards, so that nothing is overwritten."""
    enc = encoding(config.tokenizer)
    new = {
        "tokenizer": enc.name, "vocab_size": enc.n_vocab, "end_of_text": enc.eot_token,
        **getattr(enc, "facts", {}), "source": config.source,
        "files": dict(zip(source.files, source.sizes, strict=True)), "order_seed": config.seed,
        "shard_size": config.shard_size, "max_tokens": config.max_tokens,
        "column": config.column, "val": config.val, **dict(facts),
        "complete": False, "tokens": 0, "documents": 0, "shards": [],
    }
    out = Path(config.out)
    way_out = "choose another --out, or remove that folder"
    if not (out / "manifest.json").exists():
        there = sorted(out.iterdir()) if out.is_dir() else []  # glob finds none if it may not look
        if shards := [path for path in there if path.suffix in (".npy", ".bin")]:
            raise UserError(f"{out} holds {shards[0].name} and no manifest.json: {way_out}")
        return new
    try:
        old = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
        old = old | {key: new[key] for key in ("column", "val", *facts) if key not in old}  # older
        differing = [key for key in new if key not in ("complete", "tokens", "documents", "shards",
                                                       "source") and old[key] != new[key]]
        if differing:
            key = differing[0]
            then, now = (str(each[key])[:99] for each in (old, new))
            raise UserError(f"{out} was begun with {key} = {then}, not {now}: {way_out}")
        return keep_whole_shards(out, old)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{out / 'manifest.json'} is not a manifest that fineweb.py wrote "
                        f"({type(error).__name__}): {way_out}") from None


def keep_whole_shards(out, manifest):
    """The manifest, cut at the first listed shard that is missing or incomplete."""
    for i, shard in enumerate(manifest["shards"]):
        try:
            n_tokens = len(np.lib.format.open_memmap(out / shard["file"], mode="r"))
        except (PermissionError, IsADirectoryError) as error:  # it may be whole
            raise UserError(f"cannot read {out / shard['file']} ({error.strerror}): fix that, "
                            "then run it again") from None
        except Exception:  # a damaged header fails in numpy in a dozen ways
            n_tokens = 0
        if n_tokens != shard["tokens"]:
            manifest |= {"shards": manifest["shards"][:i], "complete": False}
            break
    if len(manifest["shards"]) == 1 and manifest["shards"][0]["following"] is None:
        manifest |= {"shards": [], "complete": False}  # the source fits into it, and is to be split
    if not manifest["complete"] and manifest["shards"]:  # where the next one begins
        (file, group), place = manifest["shards"][-1]["following"]
        if not all(type(number) is int and number >= 0 for number in (file, group, place)):
            raise ValueError
    for key in "tokens", "documents":
        manifest[key] = sum(shard[key] for shard in manifest["shards"])
    return manifest


def write_shard(config, manifest, tokens, following):
    """Write one shard, then the manifest that lists it; each completely or not at all. following:
    (window, tokens of it before the next shard); None after the last shard."""
    number = len(manifest["shards"])
    name = Path(config.source.partition("?")[0]).resolve().name  # an address may have a ?
    name = "edufineweb" if config.source == HUB else KINDS.sub("", name).lstrip("-") or "text"
    if number:  # the source's folder may have been renamed since
        name = manifest["shards"][0]["file"].removesuffix("_val_000000.npy")
    file = f"{name}_{'train' if number else 'val'}_{number:06d}.npy"
    documents = int(np.count_nonzero(tokens == manifest["end_of_text"]))
    if manifest["end_of_text"] is None:
        documents = int(number == 0)  # the only one
    with whole(Path(config.out) / file) as path, open(path, "wb") as opened:
        np.save(opened, tokens)
    _, sha256 = digest(Path(config.out) / file)
    manifest["shards"].append({"file": file, "tokens": len(tokens), "documents": documents,
                               "sha256": sha256, "following": following})
    manifest["tokens"] += len(tokens)
    manifest["documents"] += documents
    manifest["complete"] = following is None and number > 0
    with whole(Path(config.out) / "manifest.json") as path:
        path.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def write_shards(config, source, manifest, bar):
    """Tokenize from where the manifest ends; write shards up to the source's end or max_tokens."""
    start, place = manifest["shards"][-1]["following"] if manifest["shards"] else (None, 0)
    room = config.max_tokens - manifest["tokens"] if config.max_tokens else sys.maxsize
    shard, filled = np.empty(min(config.shard_size, room), dtype=np.uint16), 0
    # spawned, not forked: works on every system; a worker imports this file, hence the main guard
    pool = ProcessPoolExecutor(config.workers, multiprocessing.get_context("spawn"), end_with_main)
    if config.encoder == "gigatoken" or __name__ != "__main__":  # threads start sooner
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
        if filled < 2 - len(manifest["shards"]):
            raise UserError(f"{config.source} holds no documents: name another --source")
        small, rest = not manifest["shards"], shard[:filled]
        for tokens in split(rest, manifest["end_of_text"], config.val) if small else [rest]:
            write_shard(config, manifest, tokens, None)
    except BrokenProcessPool:
        raise UserError(f"a worker was killed, perhaps for lack of memory: run again with fewer "
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
    if not config.out:
        raise UserError("--out is empty: name a folder")
    most = 61 if os.name == "nt" else 1000  # Windows allows no more; elsewhere, it is a slip
    if config.workers > most:
        raise UserError(f"--workers {config.workers}: give {most} or fewer")
    if not 0 < config.val < 1:
        raise UserError(f"--val {config.val}: give a share between 0 and 1")
    make_shards(config)


def make_shards(config, wait=False, **facts):
    """Make what is not there. wait: for others in --out; facts: for the manifest. UserError."""
    source = find_source(config.source, config.column, config.config, config.split)
    kinds = Counter(kind[0].lower() for kind in map(KINDS.search, source.files) if kind)
    print("found", ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
          or {"-": "standard input"}.get(config.source, config.source))
    if n := len(source.skipped):
        others = sorted(set(source.skipped))
        print(f"skipped {n} other file{'s' * (n > 1)}: {', '.join(others[:9])}"
              + ", ..." * (len(others) > 9))
    if config.seed is not None and [*kinds] != [".parquet"]:
        raise UserError(f"--seed {config.seed} is for parquet: use train_gpt2.py --shuffle")
    config = replace(config, tokenizer=find_key(config, source))
    enc = encoding(config.tokenizer)  # here first: one download, and one error if it fails
    if config.encoder == "gigatoken":
        fast_encoding(config.tokenizer)
    manifest = read_manifest(config, source, facts)
    if not manifest["complete"]:
        check_writable(config.out)
        if enc.name == "tokenizer.json":  # whoever reads the shards needs it
            copy_tokenizer(enc, Path(config.out) / enc.name)
        known = filter(None, (estimate_tokens(source, config.tokenizer), config.max_tokens))
        if n_tokens := min(known, default=None):
            check_disk(config, source, n_tokens, manifest["tokens"])
        with (tqdm(total=n_tokens, initial=manifest["tokens"], unit="tok", unit_scale=True) as bar,
              locked(config.out, "fineweb.py", "--out", wait)):
            manifest = read_manifest(config, source, facts)  # again: now nobody else writes there
            if not manifest["complete"]:
                write_shards(config, source, manifest, bar)
    n, shards = manifest["documents"], len(manifest["shards"])
    print(f"{config.out}: {manifest['tokens']:,} tokens of {n:,} document{'s' * (n != 1)} in "
          f"{shards} shard{'s' * (shards != 1)}")


if __name__ == "__main__":
    run(main)
