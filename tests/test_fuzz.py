"""Inputs nobody thought of: each is read rightly, or refused with one line and without harm.

hypothesis damages shards, manifests, checkpoints, HellaSwag's files and foreign weights, and draws
flags. The rule: status 2, one line `error: ...` on stderr, and every file that was there is as it
was; or the program ends well, says nothing on stderr, and its result is the right one. Either way
nothing outside its --out-dir is touched, and it takes less than 20 s.

About 170 inputs, the same every time; `pytest --runslow tests/test_fuzz.py` draws 2,000 new ones.
"""

import contextlib
import copy
import io
import json
import logging
import os
import re
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import hypothesis.configuration
import numpy as np
import pytest
import tiktoken.load
import torch
from helpers import (
    expected_tokens,
    four_endings,
    make_documents,
    offline,
    small_gpt,
    write_jsonl,
    write_parquet,
    write_shards,
)
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from safetensors.torch import load_file

import common
import fineweb
import hellaswag
import train_gpt2

LIMIT = 20  # seconds an input may take
hypothesis.configuration.set_hypothesis_home_dir(tempfile.gettempdir())  # no .hypothesis here


@pytest.fixture
def fuzz(request):
    """fuzz(few, many, check, *strategies): so many inputs, few without --runslow."""
    slow = request.config.getoption("--runslow", default=False)

    def tries(few, many, check, *strategies):
        settings(max_examples=many if slow else few, derandomize=not slow, database=None,
                 deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)(
            given(*strategies)(check))()

    return tries


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory):
    """No network, threads for processes, and nothing that takes longer than all the rest: pixels,
    waiting for the disk."""
    def no_network(url):
        raise OSError("tests do not download")

    with pytest.MonkeyPatch.context() as patch:
        offline(patch, tmp_path_factory.mktemp("cache"))
        patch.setattr(tiktoken.load, "read_file", no_network)
        patch.setattr(fineweb, "ProcessPoolExecutor", lambda n, context: ThreadPoolExecutor(n))
        patch.setattr(os, "fsync", lambda number: None)
        patch.setattr(Figure, "savefig", lambda self, path, **how: Path(path).write_bytes(b"png"))
        yield


# -----------------------------------------------------------------------------
# the rule


class TooLong(BaseException):
    """No Exception: the programs catch those."""


@contextlib.contextmanager
def time_limit():
    def stop(number, frame):
        raise TooLong

    if not hasattr(signal, "SIGALRM"):  # Windows: judge() looks at the clock
        yield
        return
    names = ["SIGALRM", "SIGTERM", "SIGUSR1", "SIGINT"]  # main() takes the last three
    before = {name: signal.getsignal(getattr(signal, name)) for name in names}
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


@contextlib.contextmanager
def as_a_process(argv, said):
    """Arguments, streams, warnings and settings as a process of its own would have them.

    said: takes what is written to stdout and stderr, by this process's libraries in C as well.
    """
    kept = [os.dup(1), os.dup(2)]
    names = [name for name in ("transformers", "huggingface_hub") if name in sys.modules]
    for name in names:
        logging.getLogger(name).setLevel(logging.WARNING)
    if "transformers" in names:  # what it says once, it says in every process
        sys.modules["transformers.utils.logging"].warning_once.cache_clear()
    handlers = [h for name in names for h in logging.getLogger(name).handlers
                if hasattr(h, "stream") and not type(h).__module__.startswith("_pytest")]
    precision = torch.get_float32_matmul_precision()
    with (contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch,
          warnings.catch_warnings(record=True) as warned):
        streams = [stack.enter_context(tempfile.TemporaryFile(
            "w+", encoding="utf-8", errors="backslashreplace", newline="")) for _ in range(2)]
        for stream, number, name in zip(streams, (1, 2), ("stdout", "stderr"), strict=True):
            os.dup2(stream.fileno(), number)
            patch.setattr(sys, name, stream)
        for handler in handlers:
            handler.stream = streams[1]
        patch.setattr(sys, "argv", ["program", *map(str, argv)])
        warnings.resetwarnings()  # to what Python begins with
        for kind in DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning:
            warnings.simplefilter("ignore", kind)
        try:
            yield
        finally:
            for number, old in zip((1, 2), kept, strict=True):
                os.dup2(old, number)
                os.close(old)
            torch.set_float32_matmul_precision(precision)
            for stream in streams:
                stream.flush()
                stream.seek(0)
                said.append(stream.read())
            said[1] += "".join(f"{warning.category.__name__}: {warning.message}\n"
                               for warning in warned)


def contents(folder):
    """The bytes of all files under a folder, and None for its folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
            for path in Path(folder).rglob("*")}


def call(main, argv, box, out=None):
    """Run main() in the folder `box`, where it may write to `out` alone, and judge it.

    Returns an object with its status `code` (0 or 2), `out` and `err`.
    """
    before, said, code, here = contents(box), [], 0, os.getcwd()
    began = time.monotonic()
    os.chdir(box)
    try:
        with as_a_process(argv, said), time_limit():
            common.run(main)
    except SystemExit as stop:
        code = stop.code or 0
    except (Exception, TooLong) as error:
        code, trace = 1, error.__traceback__
        said[1] += f"took more than {LIMIT} s\n" * isinstance(error, TooLong)
        said[1] += "".join(traceback.format_exception(error))
        traceback.clear_frames(trace)  # with them go main()'s names, a lock among them
    finally:
        os.chdir(here)
    done = SimpleNamespace(code=code, out=said[0], err=re.sub(r"\r[^\r\n]*\n?", "", said[1]))
    judge(done, before, contents(box), out, time.monotonic() - began)
    return done


def judge(done, before, after, out, seconds):
    assert done.code in (0, 2), done.err
    assert seconds < LIMIT, f"{seconds:.0f} s"
    changed = {name for name in before.keys() | after.keys()
               if before.get(name, "none") != after.get(name, "none")}
    if out is not None:
        inside = Path(os.path.normpath(out))
        outside = [name for name in changed
                   if inside not in [Path(name), *Path(name).parents] and
                   Path(name) not in inside.parents]
    else:
        outside = changed
    assert not outside, f"touched {sorted(outside)}: {done.err}"
    if done.code == 0:
        assert not done.err, repr(done.err)
    else:
        assert done.err.startswith("error: ") and done.err.count("\n") == 1, done.err
        assert len(done.err) > len("error: \n"), "says nothing"
        # a killed run's halves go; a run that stops at a loss of nan has begun, and its log goes on
        begun = r"log\.txt$" if done.err.startswith("error: loss ") else r"(^|/)\.checkpoint_"
        harmed = sorted(name for name in changed & before.keys() if not re.search(begun, name))
        assert not harmed, f"harmed {harmed}: {done.err}"


@contextlib.contextmanager
def sandbox(template=None):
    with tempfile.TemporaryDirectory() as folder:
        box = Path(folder).resolve() / "box"
        if template:
            shutil.copytree(template, box)
        else:
            box.mkdir()
        yield box


# -----------------------------------------------------------------------------
# damage

PLACES = st.one_of(st.integers(0, 1000), st.integers(0, 50))  # thousandths
EDITS = st.lists(st.one_of(
    st.tuples(st.just("cut"), PLACES, st.just(0)),
    st.tuples(st.just("flip"), PLACES, st.integers(1, 255)),
    st.tuples(st.just("insert"), PLACES, st.binary(min_size=1, max_size=9)),
    st.tuples(st.just("drop"), PLACES, st.integers(1, 9)),
    st.tuples(st.just("append"), PLACES, st.binary(min_size=1, max_size=9)),
    st.tuples(st.just("replace"), PLACES, st.sampled_from([b"", b"\0" * 2000, b"x", b"\xff\xfe"])),
), max_size=2)


def edited(data, edits):
    """Bytes with edits done."""
    for kind, place, what in edits:
        i = place * len(data) // 1000
        if kind == "cut":
            data = data[:i]
        elif kind == "flip" and i < len(data):
            data = data[:i] + bytes([data[i] ^ what]) + data[i + 1 :]
        elif kind == "insert":
            data = data[:i] + what + data[i:]
        elif kind == "drop":
            data = data[:i] + data[i + what :]
        elif kind == "append":
            data += what
        elif kind == "replace":
            data = what
    return data


SPECIAL = [None, True, False, -1, 0, 1, 2, 3, 257, 10**30, -(10**30), 2**63, 1.0, 1.5, -0.0,
           1e308, float("nan"), float("inf"), "", "5", "bytes", "gpt2", "I32", "../x", "\n",
           "\ud800", [], {}, [[]], [1, 2], [None], {"": {}}]
JUNK = st.one_of(st.sampled_from(SPECIAL), st.sampled_from(SPECIAL), st.text(max_size=4))
CHANGES = st.lists(st.tuples(
    st.one_of(st.integers(0, 12), st.integers(0, 400)),
    st.sampled_from(["set", "set", "drop", "rename", "wrap", "double"]), JUNK,
), min_size=1, max_size=3)
RAW = {"null": b"null", "list": b"[]", "dict": b"{}", "number": b"5", "text": b'"x"',
       "deep list": b"[" * 100_000, "deep dict": b'{"a":' * 50_000, "long number": b"1" * 5000}
TEXTS = st.one_of(  # how a JSON value becomes bytes
    st.none(), st.none(), st.none(), EDITS, st.sampled_from(["utf-16", "utf-8-sig", "utf-32"]),
    st.sampled_from(list(RAW)))


def written(text, how):
    """Bytes: of the text as it is, edited, in another encoding, or others in its place."""
    if isinstance(how, str):
        return RAW[how] if how in RAW else text.encode(how)
    return edited(text.encode(), how or [])


def places_in(value):
    """(list or dict, key) of everything in a JSON value, outermost first."""
    keys = value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    found = [(value, key) for key in keys]
    return found + [place for key in keys for place in places_in(value[key])]


def changed(value, changes):
    """A JSON value with changes done to some of its parts."""
    root = [json.loads(json.dumps(value))]
    for number, kind, junk in changes:
        places = places_in(root)
        holder, key = places[number % len(places)]
        if kind == "set":
            holder[key] = copy.deepcopy(junk)
        elif kind == "wrap":
            holder[key] = [holder[key]]
        elif kind == "drop" and holder is not root:
            del holder[key]
        elif kind == "rename" and isinstance(holder, dict):
            holder[str(junk)] = holder.pop(key)
        elif kind == "double" and isinstance(holder, list) and holder is not root:
            holder.append(holder[key])
    return root[0]


def json_of(data):
    """What a strict reader finds in bytes, or None."""
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return None


# -----------------------------------------------------------------------------
# shards

SMALL = ["--vocab-size", 257, "--n-layer", 1, "--n-head", 2, "--n-embd", 8, "--device", "cpu",
         "--B", 2, "--T", 8, "--total-batch-size", 16, "--warmup-steps", 1, "--val-tokens", 32,
         "--sample-tokens", 2, "--hellaswag", "none", "--max-steps", 1, "--data", "shards",
         "--out-dir", "run"]
DTYPES = ["<u2", ">u2", "<i2", "<i2", "<i2", "<f2", "u1", "<u4", "<u8", "<f4", "O", "S2", "<U1",
          "M8[s]", "?", "<c8", [("a", "<u2")], [("a", "u1"), ("b", "u1")]]
HEADERS = {
    "descr": [*["'<u2'"] * 5, "'<i2'", "'<i2'", "'u2'", "'=u2'", "'|u2'", "'uint16'", "'H'",
              "'>u2'", "'|O'", "'<f2'", "'V2'", "'<u2,<u2'", "[('a', '<u2')]", "('<u2', (2,))",
              "None", "2", "''", "'\\d'", "'<u2'*9", "dict()"],
    "fortran_order": ["False", "True", "0", "None", "'x'", "False" * 9],
    "shape": [*["(40,)"] * 12, "(40L,)", "(39,)", "(41,)", "(40,1)", "(1,40)", "(-1,)",
              "(-40,)", "40", "()", "(40.0,)", "(True,)", "[40]", "(10**3,)", "(4_0,)", "(0x28,)",
              "(1000000000000000000000,)", "(9223372036854775807,)", "(4611686018427387904,)",
              "(0,)", "(40 if 1 else 2,)", "(0,9223372036854775807)", "('40',)", "(20,)*2"],
}


@st.composite
def shard(draw):
    """The bytes of a shard and its name's ending: whole, of another kind, or damaged."""
    n = draw(st.sampled_from([0, 1, 8, 9, 16, 17, 40, 40, 40, 300]))
    tokens = np.random.default_rng(n).integers(0, 257, n).astype("<u2")
    if n and draw(st.integers(0, 5)) == 0:
        tokens[draw(st.integers(0, n - 1))] = draw(st.sampled_from([257, 50256, 65535]))
    kind = draw(st.sampled_from([".npy", ".bin", "array", "header"]))
    if kind == ".bin":
        header = np.zeros(256, "<i4")
        header[:3] = 20240520, 1, n
        for _ in range(draw(st.integers(0, 1))):
            header[draw(st.integers(0, 4))] = draw(st.sampled_from(
                [-1, 0, 2, n + 1, n - 1, 2**31 - 1, -(2**31), 20240801]))
        data = header.tobytes() + tokens.tobytes()
    elif kind == "header":
        text = ", ".join(f"{name!r}: {draw(st.sampled_from(values))}"
                         for name, values in HEADERS.items() if draw(st.integers(0, 19)))
        text = draw(st.sampled_from(["{%s}", "{%s, }", "{%s}", "{%s", "%s", "[%s]", "{%s, 'x': 1}"])
                    ) % text
        text = text.encode() + b" " * draw(st.integers(0, 60)) + b"\n"
        data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text
        data += np.arange(40, dtype="<u2").tobytes()
    else:
        array = tokens
        if kind == "array":
            array = tokens.astype("u1").astype(draw(st.sampled_from(DTYPES)))
            shape = draw(st.sampled_from([(-1,)] * 5 + [(-1, 1), (1, -1), (1, 1, -1)]))
            array = np.asarray(array.reshape(shape if n else -1), order=draw(st.sampled_from("CF")))
        file = io.BytesIO()
        version = draw(st.sampled_from([None, None, (2, 0), (3, 0)]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's about version 3
            np.lib.format.write_array(file, array, version)
        data = file.getvalue()
    ending = draw(st.sampled_from([".bin" if kind == ".bin" else ".npy"] * 9 + [".npy", ".bin"]))
    return edited(data, draw(st.one_of(st.just([]), st.just([]), EDITS))), ending


def numpy_reads(data, ending):
    """The tokens in a shard's bytes by their formats' definitions, or None."""
    if ending == ".bin":
        header = np.frombuffer(data[:1024], "<i4") if len(data) >= 1024 else [0, 0, 0]
        whole = tuple(header[:2]) == (20240520, 1) and len(data) == 1024 + 2 * int(header[2])
        return np.frombuffer(data[1024:], "<u2") if whole else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file = io.BytesIO(data)
            tokens = np.lib.format.read_array(file, allow_pickle=False)
            whole = tokens.dtype == np.uint16 and tokens.ndim == 1 and not file.read(1)
            return tokens if whole and b"(-" not in data[:200] else None
    except Exception:
        return None


def test_shards(fuzz, tmp_path):
    """Exactly those that numpy reads are taken, and read as numpy reads them."""
    write_shards(tmp_path / "box" / "shards", 30, 30, shards=1, manifest=False)

    def check(made, split, trains):
        data, ending = made
        read = []

        def look():
            for stream in train_gpt2.load_data(train_gpt2.parse_args(sys.argv[1:])):
                stream.check()
                read.append(stream.read(0, stream.n_tokens))

        with sandbox(tmp_path / "box") as box:
            [old] = (box / "shards").glob(f"*_{split}_*")
            old.unlink()
            (box / "shards" / f"x_{split}_000007{ending}").write_bytes(data)
            done = call(train_gpt2.main if trains else look, SMALL, box, "run" if trains else None)
        tokens = numpy_reads(data, ending)
        good = (tokens is not None and tokens.size > (8 if split == "val" else 16)
                and tokens.max() < 257)
        assert done.code == (0 if good else 2), f"{done.err}{tokens}"
        if good and not trains:
            assert read[split == "val"].tolist() == tokens.tolist()

    fuzz(50, 430, check, shard(), st.sampled_from(["train", "val"]),
         st.integers(0, 9).map(lambda n: n == 0))


def test_manifests(fuzz, tmp_path):
    """Taken only if it lists the shards that are there."""
    folder = write_shards(tmp_path / "box" / "shards", 60, 20)
    manifest = json.loads((folder / "manifest.json").read_text())
    there = {shard["file"]: shard["tokens"] for shard in manifest["shards"]}

    def check(changes, text):
        with sandbox(tmp_path / "box") as box:
            data = written(json.dumps(changed(manifest, changes)), text)
            (box / "shards" / "manifest.json").write_bytes(data)
            done = call(train_gpt2.main, SMALL, box, "run")
        now = json_of(data)
        assert done.code == 0 or now != manifest
        if done.code == 0:
            assert now["tokenizer"] == "bytes"
            assert {shard["file"]: int(shard["tokens"]) for shard in now["shards"]} == there

    fuzz(21, 300, check, CHANGES, TEXTS)


# -----------------------------------------------------------------------------
# fineweb.py


FINEWEB = ["--source", "docs", "--tokenizer", "bytes", "--out", "out", "--workers", 2]


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """A folder with docs/, and what fineweb.py makes of it in shards of 500 tokens."""
    box = tmp_path_factory.mktemp("fineweb") / "box"
    write_parquet(box / "docs", make_documents(12), row_group_size=3)
    call(fineweb.main, [*FINEWEB, "--shard-size", 500], box, "out")
    return box


def all_tokens(folder):
    paths = sorted(folder.glob("*.npy"), key=lambda path: path.stem[-6:])
    return np.concatenate([np.load(path) for path in paths]).tolist()


def test_manifests_of_fineweb(fuzz, documents):
    """A run goes on from a manifest, or leaves the folder as it is."""
    manifest = json.loads((documents / "out" / "manifest.json").read_text())
    expected = expected_tokens(make_documents(12))
    assert len(manifest["shards"]) > 4 and all_tokens(documents / "out") == expected

    def check(kept, changes, text, damage):
        begun = manifest
        if kept:
            begun = manifest | {"shards": manifest["shards"][:kept], "complete": False}
        with sandbox(documents) as box:
            data = written(json.dumps(changed(begun, changes)), text)
            (box / "out" / "manifest.json").write_bytes(data)
            for number, edits in damage:
                path = box / "out" / manifest["shards"][number]["file"]
                path.write_bytes(edited(path.read_bytes(), edits))
            done = call(fineweb.main, [*FINEWEB, "--shard-size", 500], box, "out")
            now = json_of(data)
            if now == begun:
                assert done.code == 0, done.err
            if done.code == 0 and all(now[key] == begun[key]
                                      for key in ("shards", "complete", "end_of_text")):
                tokens = all_tokens(box / "out")
                assert len(tokens) == len(expected)
                assert damage or tokens == expected

    fuzz(12, 150, check, st.integers(0, 4), st.one_of(st.just([]), CHANGES),
         st.one_of(st.none(), TEXTS),
         st.one_of(st.just([]), st.lists(st.tuples(st.integers(0, 3), EDITS), max_size=2)))


# -----------------------------------------------------------------------------
# checkpoints

RUN = [*SMALL, "--max-steps", 3, "--checkpoint-every", 1, "--eval-every", 3]
FILES = ("config.json", "model.safetensors", "state.json", "state.safetensors", "manifest.json")


def resign(folder):
    """A manifest that agrees with the files as they are now."""
    files = {path.name: common.digest(path) for path in folder.iterdir()
             if path.is_file() and path.name != "manifest.json"}
    (folder / "manifest.json").write_text(json.dumps(files))


def split_tensors(data):
    """(header, bytes of the tensors) of a .safetensors file."""
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def join_tensors(header, data):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


NAMES = st.sampled_from([
    "checkpoint_000002", "checkpoint_000004", "checkpoint_9", "checkpoint_x", "checkpoint_",
    "checkpoint_" + "9" * 40, "checkpoint_\u0663", "earlier_1", ".checkpoint_000001.tmp", "x", "ä"])
HARMS = st.one_of(
    st.tuples(st.just("bytes"), st.sampled_from(FILES), EDITS),
    st.tuples(st.just("json"), st.sampled_from(["config.json", "state.json", "manifest.json"]),
              st.tuples(CHANGES, TEXTS)),
    st.tuples(st.just("unlink"), st.sampled_from(FILES), st.none()),
    st.tuples(st.just("folder"), st.sampled_from(FILES), st.none()),
    st.tuples(st.just("add"), st.sampled_from(["x", ".x", "model.bin", "ä.json"]), st.booleans()),
    st.tuples(st.just("other"), st.sampled_from(FILES), st.none()),
    st.tuples(st.just("rename"), NAMES, st.none()),
    st.tuples(st.just("beside"), NAMES, st.booleans()),
)
DEEP = st.one_of(
    st.tuples(st.just("json"), st.just("state.json"), st.tuples(CHANGES, st.none())),
    st.tuples(st.just("json"), st.just("state.json"), st.tuples(CHANGES, TEXTS)),
    st.tuples(st.just("header"), st.sampled_from(["model.safetensors", "state.safetensors"]),
              CHANGES),
    st.tuples(st.just("bytes"), st.sampled_from(["model.safetensors", "state.safetensors"]), EDITS))


def harm(folder, kind, name, how):
    """Do one thing to a checkpoint of a run."""
    path = folder / name
    if kind == "bytes" and path.is_file():
        path.write_bytes(edited(path.read_bytes(), how))
    elif kind == "json" and path.is_file() and (value := json_of(path.read_bytes())) is not None:
        path.write_bytes(written(json.dumps(changed(value, how[0])), how[1]))
    elif kind == "header" and path.is_file():
        with contextlib.suppress(ValueError, struct.error):
            header, data = split_tensors(path.read_bytes())
            path.write_bytes(join_tensors(changed(header, how), data))
    elif kind in ("unlink", "folder") and path.is_file():
        path.unlink()
        if kind == "folder":
            path.mkdir()
    elif kind == "add" and not path.exists():
        path.mkdir() if how else path.write_text("x")
    elif kind == "other" and path.is_file():
        shutil.copy(folder.with_name("checkpoint_000001") / name, folder.with_name("moved"))
        os.replace(folder.with_name("moved"), path)
    elif kind == "rename" and not folder.with_name(name).exists():
        folder.rename(folder.with_name(name))
    elif kind == "beside" and not folder.with_name(name).exists():
        folder.with_name(name).mkdir() if how else folder.with_name(name).write_text("x")


@pytest.fixture(scope="module")
def run_of_three(tmp_path_factory):
    """A run of three steps with a checkpoint after each, and its shards."""
    box = tmp_path_factory.mktemp("checkpoints") / "box"
    write_shards(box / "shards", 200, 30)
    call(train_gpt2.main, RUN, box, "run")
    return box


def leave(run, steps):
    """The folder of the newest checkpoint of a run that got so far."""
    for step in range(steps + 1, 4):
        shutil.rmtree(run / f"checkpoint_{step:06d}")
    return run / f"checkpoint_{steps:06d}"


def test_checkpoints(fuzz, run_of_three):
    """A damaged run ends at the bits of the whole one: from another checkpoint, or from none."""
    last = Path("run", "checkpoint_000003", "model.safetensors")
    expected = load_file(run_of_three / last)

    def check(steps, number, harms):
        with sandbox(run_of_three) as box:
            leave(box / "run", steps)
            folder = box / "run" / f"checkpoint_{min(number, steps):06d}"
            for each in harms:
                if folder.is_dir():
                    harm(folder, *each)
            done = call(train_gpt2.main, [*RUN, "--resume"], box, "run")
            assert done.code == 0, done.err
            found = load_file(box / last)
            assert all(torch.equal(found[name], expected[name]) for name in expected)

    fuzz(10, 180, check, st.integers(1, 3), st.integers(1, 3),
         st.lists(HARMS, min_size=1, max_size=2))


def test_logs(fuzz, run_of_three):
    """A damaged log.txt is refused before the run goes on, or no matter to it."""
    def check(steps, edits):
        with sandbox(run_of_three) as box:
            leave(box / "run", steps)
            path = box / "run" / "log.txt"
            path.write_bytes(edited(path.read_bytes(), edits))
            done = call(train_gpt2.main, [*RUN, "--resume"], box, "run")
            assert done.code == 0 or "log.txt" in done.err

    fuzz(4, 40, check, st.integers(1, 2), EDITS)


def test_signed_checkpoints(fuzz, run_of_three):
    """Damage that the manifest agrees with, as another version's or a stranger's files might be:
    what is in them may be anything, and still the run ends well or is refused."""
    def check(steps, harms):
        with sandbox(run_of_three) as box:
            folder = leave(box / "run", steps)
            for each in harms:
                harm(folder, *each)
            resign(folder)
            call(train_gpt2.main, [*RUN, "--resume"], box, "run")

    fuzz(10, 150, check, st.integers(1, 2), st.lists(DEEP, min_size=1, max_size=2))


# -----------------------------------------------------------------------------
# HellaSwag


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """A folder with shards/ for a run and model/ for hellaswag.py."""
    box = tmp_path_factory.mktemp("hellaswag") / "box"
    write_shards(box / "shards", 60, 30)
    small_gpt(n_layer=1, n_embd=8).save_pretrained(box / "model")
    return box


def lines_of(data):
    return io.TextIOWrapper(io.BytesIO(data), "utf-8", "replace").readlines()


def test_hellaswag_files(fuzz, examples):
    """Every line is an example that is taken as it stands, or the file is refused."""
    rows = four_endings(6)

    def check(edits, text, limit, way):
        lines = [json.dumps(changed(row, edits.get(i, []))) for i, row in enumerate(rows)]
        data, read = written("\n".join(lines), text), []
        flags = [] if limit is None else ["--limit", limit]
        with sandbox(examples) as box:
            (box / "h.jsonl").write_bytes(data)
            if way == "load":
                done = call(lambda: read.extend(hellaswag.load_examples("h.jsonl", limit)), [], box)
            elif way == "script":
                done = call(hellaswag.main, ["--model", "model", "--data", "h.jsonl", "--device",
                                             "cpu", *flags], box)
            else:
                flags = ["--hellaswag-limit", limit] if flags else []
                done = call(train_gpt2.main, [*SMALL, "--hellaswag", "h.jsonl", *flags], box, "run")
        if data == "\n".join(map(json.dumps, rows)).encode():
            assert done.code == 0, done.err
        if done.code == 2:
            return
        found = [json.loads(line) for line in lines_of(data)[:limit]]
        for row in found:
            assert row["ctx"] and len(row["endings"]) == 4 and all(row["endings"])
            assert str(row["label"]) in {"0", "1", "2", "3"}
            assert {type(text) for text in (row["ctx"], *row["endings"])} == {str}
        if way == "load":
            assert read == [{"ctx": row["ctx"], "endings": row["endings"],
                             "label": int(row["label"])} for row in found]
        elif way == "script":
            assert f" of {len(found)})" in done.out
        else:
            assert f"HellaSwag  | {len(found)} examples" in done.out

    fuzz(18, 200, check, st.dictionaries(st.integers(0, 5), CHANGES, max_size=2),
         st.one_of(st.none(), TEXTS), st.one_of(st.none(), st.integers(1, 7), st.just(10**30)),
         st.sampled_from(["load", "load", "load", "script", "train"]))


# -----------------------------------------------------------------------------
# flags

WORDS = st.one_of(
    st.sampled_from(["", "x", "-1", "0", "1", "1.5", "1e3", "1_0", "\u0661", "nan", "inf", "-inf",
                     "None", "True", "false", "--", "-x", "--x", "[red]", "{}", "%s", "\udcff",
                     "a b", "\n", "\x1b[31m", "../x", "x" * 300, str(10**30), str(-(10**30)),
                     "9" * 5000, "1e-320", "1e999"]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5))
HUGE = str(10**30)
# of every field: values with which a run is possible, and values with which none is
FLAGS = {
    "data": (["shards", "shards/", "./shards", "pydoc"], ["", "nowhere", "h.jsonl", "model"]),
    "out_dir": (["run", "a/b c", "ä", "-x", "run/../run"], ["h.jsonl", "h.jsonl/x", "x" * 300]),
    "init_from": (["", "model"], ["gpt2", "nowhere", "shards", "h.jsonl"]),
    "n_layer": (["1", "2"], ["0", "-1"]),
    "n_head": (["1", "2", "4"], ["0", "-1", "3", HUGE]),
    "n_embd": (["4", "8", "16"], ["0", "-1", "7", HUGE, "10" * 8]),
    "vocab_size": (["257"], ["0", "-1", "50257", "258", HUGE]),
    "B": (["1", "2"], ["0", "-1", "3", HUGE, "1000"]),
    "T": (["1", "4", "8"], ["0", "-1", "3", HUGE, "4096"]),
    "total_batch_size": (["16", "32", "64"], ["0", "-16", "17", HUGE, "256"]),
    "max_steps": (["1", "2", "None"], ["0", "-1"]),
    "max_lr": (["6e-4", "1", "0.1"], ["-1", "nan", "inf", "-inf"]),
    "min_lr": (["None", "0", "1e-4"], ["-1", "nan", "inf", "1e9"]),
    "warmup_steps": (["0", "1", HUGE], ["-1"]),
    "weight_decay": (["0", "0.1", "1"], ["-1", "nan", "-inf"]),
    "shuffle": (["True"], []),
    "seed": (["0", "1", str(2**63 - 1)], ["-1", str(2**63), HUGE]),
    "eval_every": (["1", "2", HUGE], ["0", "-1"]),
    "val_tokens": (["1", "64", HUGE], ["0", "-1"]),
    "hellaswag": (["none", "h.jsonl", "heldout"], ["", "nowhere", "model", hellaswag.HUB]),
    "hellaswag_limit": (["1", "5"], ["0", "-1"]),
    "prompt": (["", "a", "ä\n日", "<|endoftext|>", "x" * 500, "\udcff"], []),
    "sample_tokens": (["0", "1", "8"], ["-1"]),
    "temperature": (["0", "1", "0.5", "1e9", "inf", "1e-9", "1e-40", "1e-320"],
                    ["-1", "nan", "-inf"]),
    "checkpoint_every": (["1", "2", HUGE], ["0", "-1"]),
    "keep": (["1", "2", "None", HUGE], ["0", "-1"]),
    "keep_every": (["1", "2", "None", HUGE], ["0", "-1"]),
    "resume": (["True"], []),
    "skip_spikes": (["0", "6", "None", "inf"], ["-1", "nan"]),
    "print_every": (["1", HUGE], ["0", "-1"]),
    "device": (["cpu", "auto"], ["", "cuda", "mps", "tpu", "meta", "cuda:99", "cpu:x", "-1"]),
    "dtype": (["auto", "float32", "bfloat16"], ["", "float64", "int8"]),
    "compile": (["None", "False"], []),
}
RATES = ["1e30", "1e38", "1e300"]  # the loss may be no number: an error then
NOT_TRAINING = {"out_dir", "eval_every", "val_tokens", "hellaswag", "hellaswag_limit", "prompt",
                "sample_tokens", "temperature", "checkpoint_every", "keep", "keep_every", "resume",
                "print_every", "device", "compile", "data"}
NUMBERS = [name for name in FLAGS if name not in ("data", "out_dir", "init_from", "prompt",
                                                   "hellaswag", "device")]


@st.composite
def settings_of_a_run(draw):
    """{field: value as text}, and whether such a run is possible: None where it is not known."""
    fields = draw(st.lists(st.sampled_from(list(FLAGS)), unique=True, max_size=6))
    values = {name: draw(st.sampled_from(FLAGS[name][0])) for name in fields}
    ok, kind = True, draw(st.sampled_from(["good", "good", "bad", "words", "rates"]))
    bad = [name for name in FLAGS if FLAGS[name][1]]
    if kind == "bad":
        name, ok = draw(st.sampled_from(bad)), False
        values[name] = draw(st.sampled_from(FLAGS[name][1]))
        if name in ("n_layer", "n_head", "n_embd") and values.get("init_from"):
            ok = None  # the sizes are those of the weights
    elif kind == "words":
        name, ok = draw(st.sampled_from(NUMBERS)), None
        values[name] = draw(WORDS)
    elif kind == "rates":
        name, ok = draw(st.sampled_from(["max_lr", "weight_decay"])), None
        values[name] = draw(st.sampled_from(RATES))
    return values, ok


def number(text):
    try:
        return int(text)
    except ValueError:
        return None


def bounded(values):
    """The settings with what would only take long in a run that is allowed made small."""
    values = {"B": "2", "T": "8", "total_batch_size": "16", "max_steps": "1", "n_embd": "8",
              "n_head": "2", "hellaswag": "none"} | values
    small = {"n_layer": 2, "max_steps": 2, "sample_tokens": 8, "hellaswag_limit": 5}
    for name, most in small.items():
        if (number(values.get(name, "")) or 0) > most:
            values[name] = str(most)
    if values["hellaswag"] == "heldout":
        values.setdefault("hellaswag_limit", "5")
        if values["hellaswag_limit"] == "None":
            values["hellaswag_limit"] = "5"
    if values.get("data") == "pydoc":
        values["val_tokens"] = "64"
        values["max_steps"] = "1" if values["max_steps"] == "None" else values["max_steps"]
    return values


def fit(values):
    """Whether good values go with each other."""
    if values.get("init_from"):
        if int(values["T"]) > 16:
            return False
    elif int(values["n_embd"]) % int(values["n_head"]):
        return False
    low = values.get("min_lr", "None")
    if low != "None" and float(low) > float(values.get("max_lr", "6e-4")):
        return False
    return int(values["total_batch_size"]) % (int(values["B"]) * int(values["T"])) == 0


def as_flags(values):
    for name, value in values.items():
        flag = f"--{name.replace('_', '-')}"
        if name in ("shuffle", "resume"):
            yield flag if value == "True" else f"{flag}={value}"
        else:
            yield f"{flag}={value}"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """Everything that a run's flags can name."""
    box = tmp_path_factory.mktemp("flags") / "box"
    write_shards(box / "shards", 200, 120)
    small_gpt(n_layer=1, n_embd=8).save_pretrained(box / "model")
    write_jsonl(box / "h.jsonl", four_endings(6))
    return box


def test_flags_of_train_gpt2(fuzz, run_folder):
    """What is possible runs, what is not is refused, and what is no matter of training changes
    no bit of the weights."""
    trained = {}
    base = [arg for arg in SMALL if arg not in ("--data", "shards", "--out-dir", "run")]

    def check(drawn, preset):
        values, ok = drawn
        values = bounded({"data": "shards", "out_dir": "run"} | values)
        ok = ok and fit(values)
        out = values["out_dir"]
        with sandbox(run_folder) as box:
            done = call(train_gpt2.main, [preset, *base, *as_flags(values)], box, out)
            if ok is not None:
                assert done.code == (0 if ok else 2), f"{values}: {done.err or done.out}"
            if done.code or "usage: " in done.out:
                return
            newest = sorted((box / out).glob("checkpoint_*"))[-1]
            weights = load_file(newest / "model.safetensors")
            log = train_gpt2.read_log(box / out / "log.txt")
        steps = values["max_steps"]
        if steps != "None":
            assert int(newest.name[11:]) == int(steps) == len(log["train"][0])
        same = tuple(sorted((name, value) for name, value in values.items()
                            if name not in NOT_TRAINING)) + (values["data"] == "pydoc", preset)
        known = trained.setdefault(same, weights)
        assert weights.keys() == known.keys()
        for name in weights:
            assert torch.equal(weights[name].nan_to_num(), known[name].nan_to_num()), name

    check(({}, True), "laptop")  # to compare with
    fuzz(18, 250, check, settings_of_a_run(), st.sampled_from(["laptop", "gpt2-124M"]))


def test_words_for_flags(fuzz, run_folder):
    """Any words at all, as flags, values and presets, to each of the three programs."""
    names = st.sampled_from(["--" + name.replace("_", "-") for name in (
        *NUMBERS, "source", "shard-size", "workers", "tokenizer", "limit", "model", "compile",
        "no-compile", "nonsense", "help")])
    words = st.lists(st.one_of(names, WORDS, st.tuples(names, WORDS).map("=".join)), min_size=1,
                     max_size=3)
    ends = {train_gpt2: ["--out-dir", "run", "--max-steps", 0],
            hellaswag: ["--limit", 0], fineweb: ["--out", "out", "--max-tokens", 0]}

    def check(program, words):
        with sandbox() as box:
            done = call(program.main, [*words, *ends[program]], box)
        assert done.code == 2 or "usage: " in done.out

    fuzz(8, 100, check, st.sampled_from(list(ends)), words)


def test_flags_of_fineweb(fuzz, documents):
    """The shards hold the documents in the order asked for, up to the number asked for."""
    expected = expected_tokens(make_documents(12))
    good = {"source": ["docs", "docs/"], "out": ["new", "a/b", "ä"], "shard_size": ["100", "3000"],
            "max_tokens": ["None", "1", "150", HUGE], "workers": ["1", "3", HUGE],
            "seed": ["None", "0", HUGE], "tokenizer": ["bytes"]}
    bad = {"source": ["nowhere", "out", "docs/000.parquet"], "out": ["out", "docs/000.parquet"],
           "shard_size": ["0", "-1", "1.5", "nan", ""], "max_tokens": ["0", "-1", "x"],
           "workers": ["0", "-1", "None"], "seed": ["-1", "1e3"], "tokenizer": ["gpt2", "x", ""]}
    either = {"shard_size": [HUGE, str(10**15), str(2**62)]}

    @st.composite
    def flags(draw):
        values = {name: draw(st.sampled_from(good[name])) for name in good}
        ok, kind = True, draw(st.sampled_from(["good", "good", "bad", "either", "words"]))
        if kind == "words":
            ok, name = None, draw(st.sampled_from(["shard_size", "max_tokens", "seed"]))
            values[name] = draw(WORDS)
            if name == "shard_size" and 0 < (number(values[name]) or 0) < 100:
                values[name] = "100"  # fewer would take long
        elif kind != "good":
            pool = bad if kind == "bad" else either
            name = draw(st.sampled_from(list(pool)))
            values[name] = draw(st.sampled_from(pool[name]))
            ok = False if kind == "bad" else None
        return values, ok

    def check(drawn):
        values, ok = drawn
        with sandbox(documents) as box:
            done = call(fineweb.main, as_flags(values), box, values["out"])
            if ok is not None:
                assert done.code == (0 if ok else 2), f"{values}: {done.err or done.out}"
            if done.code:
                return
            tokens = all_tokens(box / values["out"])
        most = number(values["max_tokens"])
        if values["seed"] == "None":
            assert tokens == expected[:most]
        else:
            assert len(tokens) == len(expected[:most])
            assert most and most < len(expected) or sorted(tokens) == sorted(expected)

    fuzz(6, 60, check, flags())


# -----------------------------------------------------------------------------
# foreign weights


@st.composite
def foreign(draw):
    """What to do to config.json and to model.safetensors."""
    part = draw(st.sampled_from(["config", "config", "keys", "header", "bytes"]))
    config = draw(st.tuples(CHANGES, TEXTS)) if part == "config" else ([], None)
    keys = draw(st.dictionaries(st.sampled_from([
        "n_layer", "n_head", "n_embd", "n_positions", "vocab_size", "n_inner", "model_type",
        "architectures", "auto_map", "dtype", "layer_norm_epsilon", "activation_function",
        "quantization_config", "tie_word_embeddings", "attn_pdrop", "_attn_implementation",
        "return_dict", "use_cache", "pad_token_id", "num_labels", "id2label"]), st.one_of(
            JUNK, st.sampled_from(["llama", "gelu", "float16", "x.y--z", {"AutoModel": "a.B"}])),
        max_size=2)) if part == "keys" else {}
    header = draw(CHANGES) if part == "header" else []
    return config, keys, header, draw(EDITS) if part == "bytes" else []


def tensors_in(data):
    """{name: float32 array} of a .safetensors file by the format's definition."""
    header, data = split_tensors(data)
    header.pop("__metadata__", None)
    return {name: np.frombuffer(data[slice(*facts["data_offsets"])], "<f4").reshape(facts["shape"])
            for name, facts in header.items() if facts["dtype"] == "F32"}


def test_foreign_weights(fuzz, run_folder):
    """Weights that are taken are those in the file, to the bit."""
    whole = (run_folder / "model" / "model.safetensors").read_bytes()
    config = json.loads((run_folder / "model" / "config.json").read_text())

    def check(made, way):
        (changes, text), keys, header_changes, edits = made
        now = changed(config, changes)
        now = now | keys if isinstance(now, dict) else now
        if isinstance(now, dict):  # so large a network would be legal, and fill the memory
            assume(not any(type(now.get(k)) in (int, float) and now[k] > 10
                           for k in ("n_layer", "num_labels")))
            assume(not any(type(now.get(k)) in (int, float) and 100 < now[k] < 10**9
                           for k in ("n_embd", "n_inner")))
        header, data = split_tensors(whole)
        data = edited(join_tensors(changed(header, header_changes), data), edits)
        loaded = []
        with sandbox(run_folder) as box:
            (box / "model" / "config.json").write_bytes(written(json.dumps(now), text))
            (box / "model" / "model.safetensors").write_bytes(data)
            if way == "load":
                done = call(lambda: loaded.append(train_gpt2.GPT.from_pretrained("model")), [], box)
            elif way == "train":
                done = call(train_gpt2.main, [*SMALL, "--init-from", "model"], box, "run")
            else:
                done = call(hellaswag.main, ["--model", "model", "--data", "h.jsonl", "--device",
                                             "cpu"], box)
        if made == (([], None), {}, [], []):
            assert done.code == 0, done.err
        if done.code:
            return
        if way == "script":
            assert done.out.count(" of 6)") == 2
        elif way == "load":
            wanted = tensors_in(data)
            for name, p in loaded[0].named_parameters():
                value = p.t() if name.endswith(train_gpt2.TRANSPOSED) else p
                if name in wanted:
                    assert value.detach().numpy().tobytes() == wanted[name].tobytes(), name

    fuzz(10, 140, check, foreign(), st.sampled_from(["load", "train", "script"]))
