"""Speed of fineweb.py against the original script's method, as whole processes, in one run."""

import importlib.util
import itertools
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as pq
from tqdm import tqdm

import fineweb
from build_nanogpt.bench.measure import report
from build_nanogpt.cli import UserError
from nanogpt.tokenizer import get_tokenizer

# The original's method: a document is a task, 16 tasks a message, half of the cores, a list of
# Python numbers for every document. It reads the parquet files with pyarrow here, since the
# original's `datasets` would first copy them into its cache.
ORIGINAL = '''
import multiprocessing, os, sys
from pathlib import Path
import numpy as np, pyarrow.parquet as pq, tiktoken

encoder = tiktoken.get_encoding("gpt2")

def tokenize(document):
    ids = [encoder.eot_token]
    ids.extend(encoder.encode_ordinary(document["text"]))
    array = np.array(ids)
    assert (0 <= array).all() and (array < 2**16).all()
    return array.astype(np.uint16)

def documents(folder):
    for path in sorted(Path(folder).rglob("*.parquet")):
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            for text in file.read_row_group(group, columns=["text"])["text"].to_pylist():
                yield {"text": text}

def main(source, out, size):
    os.makedirs(out)
    shard, filled, number = np.empty(size, dtype=np.uint16), 0, 0
    with multiprocessing.Pool(max(1, os.cpu_count() // 2)) as pool:
        for tokens in pool.imap(tokenize, documents(source), chunksize=16):
            while len(tokens):
                n = min(len(tokens), size - filled)
                shard[filled : filled + n] = tokens[:n]
                filled, tokens = filled + n, tokens[n:]
                if filled == size:
                    np.save(f"{out}/{number:06d}", shard)
                    filled, number = 0, number + 1
        if filled:
            np.save(f"{out}/{number:06d}", shard[:filled])

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
'''


@dataclass(frozen=True)
class DataConfig:
    source: str
    """folder of .parquet files with a text column"""
    times: int = 1
    """repeat every document this many times, for a longer source of the same text"""
    repeats: int = 5
    """measurements of each variant, taken in turns; the median counts"""
    shard_size: int = 10**8
    """tokens a shard"""
    workers: int = os.cpu_count() or 1
    """processes of ours; the original takes half of the cores"""


def lengthen(source, out, times, row_group_size=1000, most=None):
    """One parquet file that holds the documents of a folder `times` times over, in order, or the
    first `most` of them."""
    tables = [pq.read_table(path, columns=["text"]) for path in sorted(source.rglob("*.parquet"))]
    if not tables:
        raise UserError(f"no .parquet files in {source}: name a folder that has some with --data")
    out.mkdir()
    table = pyarrow.concat_tables(tables * times)
    pq.write_table(table.slice(0, most), out / "000.parquet",
                   row_group_size=row_group_size, compression="zstd")
    return out


def find_encoders():
    """The values of fineweb.py's --encoder that can be used here."""
    if importlib.util.find_spec("gigatoken") is not None:
        return ["tiktoken", "gigatoken"]
    print("no gigatoken here (pip install gigatoken): measured without it")
    return ["tiktoken"]


def commands(config, encoders, source, folder):
    """{variant: (command, folder of its shards)}."""
    script = folder / "original.py"
    script.write_text(ORIGINAL, encoding="utf-8")
    result = {"the original's method": ([script, source, folder / "original", config.shard_size],
                                        folder / "original")}
    for encoder in encoders:
        flags = ["--source", source, "--out", folder / encoder, "--shard-size", config.shard_size,
                 "--workers", config.workers, "--encoder", encoder]
        result[f"fineweb.py, {encoder}"] = ([fineweb.__file__, *flags], folder / encoder)
    return {name: ([sys.executable, *map(str, command)], out)
            for name, (command, out) in result.items()}


def timed(command, out):
    """Milliseconds of one whole process, into a folder that is not there, and of processor time
    by it and its workers (0 on Windows). Raises UserError."""
    for path in out.glob("*"):
        path.unlink()
    if out.exists():
        out.rmdir()
    t0, before = time.perf_counter(), sum(os.times()[2:4])
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    took, processor = time.perf_counter() - t0, sum(os.times()[2:4]) - before
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise UserError(f"{Path(command[1]).name} ended with {done.returncode} and said: {last}")
    return 1000 * took, 1000 * processor


def shards(folder):
    """The shards' arrays in order, memory-mapped, whatever their names but the number."""
    paths = sorted(folder.glob("*.npy"), key=lambda path: re.search(r"\d{6}$", path.stem)[0])
    return [np.load(path, mmap_mode="r") for path in paths]


def documents(arrays):
    """The documents of shards, each beginning with end-of-text, in the order of their bytes."""
    tokens = np.concatenate(arrays)
    return sorted(np.split(tokens, np.flatnonzero(tokens == 50256)), key=bytes)


def compare(outs):
    """The number of tokens. Raises RuntimeError unless all folders hold the same shards; or, where
    the original has only one, of which fineweb.py makes two, the same documents."""
    first, *others = map(shards, outs)
    for other in others:
        pair = (first, other) if len(first) > 1 else map(documents, (first, other))
        for a, b in itertools.zip_longest(*pair):
            if a is None or b is None or a.dtype != b.dtype or not np.array_equal(a, b):
                raise RuntimeError(f"the shards of {[str(out) for out in outs]} are not the same")
    return sum(map(len, first))


def data(config, device, clock):
    """fineweb.py and the original's method on --data, a folder of parquet files."""
    get_tokenizer("gpt2")  # a missing vocabulary is one line here
    return whole_processes(DataConfig(config.data, config.times, config.repeats), clock,
                           config.folder)


def whole_processes(config, clock, folder=None):
    """Median milliseconds of each variant, all taking turns, the first of each not counted:
    it brings files into the system's memory. Prints a table, returns its rows."""
    for name in "times", "repeats", "shard_size", "workers":
        if getattr(config, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(config, name)}: give 1 or more")
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        temporary, encoders = Path(temporary), find_encoders()
        piece = lengthen(Path(config.source), temporary / "piece", 1, most=64)
        kept = clock.far_behind({name: lambda pair=pair: timed(*pair)[0]
                                 for name, pair
                                 in commands(config, encoders, piece, temporary).items()})
        source = lengthen(Path(config.source), temporary / "source", config.times)
        variants = {name: variant for name, variant
                    in commands(config, encoders, source, temporary).items() if name in kept}
        for command, out in variants.values():
            timed(command, out)
        tokens = compare([out for _, out in variants.values()])
        times, took = {name: [] for name in variants}, 0.0
        for number in tqdm(range(config.repeats), leave=False, disable=None):
            if number and took > clock.left():
                print(f"{number} of {config.repeats} repeats: the time is over")
                break
            began = time.perf_counter()
            for name, (command, out) in variants.items():
                times[name].append(timed(command, out))
            took = time.perf_counter() - began
    title = f"{tokens:,} tokens to shards of {config.shard_size:,}, {os.cpu_count()} cores"
    took, processor = ({name: statistics.median(pair[i] for pair in pairs)
                        for name, pairs in times.items()} for i in range(2))
    rows = report(title, took, tokens=tokens)
    if all(processor.values()):  # which another program on the machine changes less
        rows += report(f"{title}, processor time", processor, tokens=tokens)
    return rows
