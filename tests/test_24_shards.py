"""Training reads shards: ours and llm.c's, whole ones of the run's tokenizer, in little memory."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, TINY, start, text_tokens, write_shards

from common import UserError
from train_gpt2 import TokenStream, find_shards, load_data, open_shard, parse_args, python_manual


def write_bin(path, tokens, magic=20240520, version=1):
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(tokens)
    path.write_bytes(header.tobytes() + np.asarray(tokens, dtype="<u2").tobytes())
    return path


def test_our_shards_and_llm_cs_are_read_alike(tmp_path):
    tokens = text_tokens(1000)
    np.save(tmp_path / "a_train_000001.npy", tokens)
    for path in tmp_path / "a_train_000001.npy", write_bin(tmp_path / "a_train_000002.bin", tokens):
        shard = open_shard(path)
        assert shard.n_tokens == 1000
        assert np.array_equal(shard.open(), tokens)


def test_shards_in_the_order_of_their_names(tmp_path):
    for i in 3, 1, 2:
        np.save(tmp_path / f"x_train_{i:06d}.npy", np.full(10, i, dtype=np.uint16))
    write_bin(tmp_path / "x_val_000000.bin", [0] * 10)
    (tmp_path / "notes.txt").write_text("not a shard")
    train, val = find_shards(tmp_path, "bytes")
    stream = TokenStream(train, 257)
    assert stream.read(0, 30).tolist() == [1] * 10 + [2] * 10 + [3] * 10
    assert [shard.n_tokens for shard in val] == [10]


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


NPY_DAMAGES = {
    "cut short": cut,
    "longer than it says": lambda p: p.write_bytes(p.read_bytes() + b"more"),
    "cut in its header": lambda p: p.write_bytes(p.read_bytes()[:40]),
    "a huge shape": lambda p: p.write_bytes(p.read_bytes().replace(b"(1000,)", b"(9**99)", 1)),
    "an odd header": lambda p: p.write_bytes(p.read_bytes().replace(b"'descr'", b"[3]:{} ", 1)),
    "random bytes": lambda p: p.write_bytes(np.random.default_rng(0).bytes(5000)),
    "empty": lambda p: p.write_bytes(b""),
    "int64": lambda p: np.save(p, np.zeros(100, dtype=np.int64)),
    "big-endian": lambda p: np.save(p, np.zeros(100, dtype=">u2")),
    "two-dimensional": lambda p: np.save(p, np.zeros((10, 10), dtype=np.uint16)),
    "objects": lambda p: np.save(p, np.array([{}, {}], dtype=object), allow_pickle=True),
}


@pytest.mark.parametrize("damage", NPY_DAMAGES)
def test_damaged_npy_is_named(damage, tmp_path):
    path = tmp_path / "x_train_000001.npy"
    np.save(path, text_tokens(1000))
    NPY_DAMAGES[damage](path)
    with pytest.raises(UserError, match="x_train_000001.npy is no whole shard") as error:
        open_shard(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", [
    cut, lambda p: write_bin(p, [1] * 9, magic=20240521), lambda p: write_bin(p, [1], version=2),
    lambda p: p.write_bytes(b""), lambda p: p.write_bytes(b"\1" * 3000)])
def test_damaged_bin_is_named(damage, tmp_path):
    path = write_bin(tmp_path / "x_train_000001.bin", text_tokens(1000))
    damage(path)
    with pytest.raises(UserError, match="x_train_000001.bin is no whole shard"):
        open_shard(path)


def test_manifest_must_agree(tmp_path):
    folder = write_shards(tmp_path / "shards")
    find_shards(folder, "bytes")
    with pytest.raises(UserError, match="of the tokenizer bytes, the run is of gpt2"):
        find_shards(folder, "gpt2")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][1]["tokens"] += 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="holds 20000 tokens, and the manifest lists 20001"):
        find_shards(folder, "bytes")
    manifest["shards"][1]["tokens"] -= 1
    last = manifest["shards"].pop()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="000002.npy holds 20000 tokens, and the manifest lists no"):
        find_shards(folder, "bytes")
    manifest["shards"].append(last)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / last["file"]).unlink()
    with pytest.raises(UserError, match="000002.npy holds no tokens, and the manifest lists 20000"):
        find_shards(folder, "bytes")
    for broken in "{}", "[]", "{", '{"tokenizer": [], "shards": [1]}':
        (folder / "manifest.json").write_text(broken)
        with pytest.raises(UserError, match="is no manifest"):
            find_shards(folder, "bytes")


def test_missing_folder_missing_split(tmp_path):
    with pytest.raises(UserError, match='run "python fineweb.py", or try'):
        find_shards(tmp_path / "nowhere", "gpt2")
    np.save(tmp_path / "x_train_000001.npy", text_tokens(10))
    with pytest.raises(UserError, match="no val shards"):
        find_shards(tmp_path, "gpt2")


def test_an_epoch_is_derived_from_the_shards_found(tmp_path):
    folder = write_shards(tmp_path / "shards", n_train=5000, n_val=500)
    done = start("train_gpt2.py", *TINY, "--data", folder, "--out-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "steps      | 9 = 0.92 epochs" in done.stdout  # 4,999 // 512
    assert "5,000 tokens in 2 shards" in done.stdout


MEASURE = """
import re, sys
sys.path.insert(0, {root!r})
import train_gpt2

def peak():
    status = open("/proc/self/status").read()
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", status)[1])

shards = [train_gpt2.open_shard({path!r})]
for seed in None, 1:
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
    before = peak()
    stream = train_gpt2.TokenStream(shards, 50257, seed)
    for position in range(0, 10**8, 2 * 10**6):
        stream.read(position, 64 * 1024 + 1)
    print(peak() - before)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK),
                    reason="the peak of a process's memory is read and reset in Linux's /proc")
def test_memory_stays_below_200_MB_beyond_a_batch(tmp_path):
    """A shard of 100M tokens, read from end to end in the video's batches, as it is and shuffled.

    Loading it as int64, as the video does, takes 800 MB.
    """
    path = tmp_path / "big_train_000001.npy"
    tokens = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint16, shape=(10**8,))
    tokens[::500] = 50256
    tokens.flush()
    del tokens
    done = subprocess.run([sys.executable, "-c", MEASURE.format(root=str(ROOT), path=str(path))],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    in_order, shuffled = map(int, done.stdout.split())
    assert 0 < in_order < 200e6 and 0 < shuffled < 200e6, done.stdout


def test_pythons_manual():
    """The laptop's text: bytes, excerpts of a row each, and validation that training has not
    seen."""
    (train,), (val,) = python_manual(128)
    train, val = (bytes(t if t < 256 else 0 for t in shard.open()) for shard in (train, val))
    assert len(train) > 250_000 and len(val) > 25_000
    excerpts = train.split(b"\0")[1:]
    assert max(map(len, excerpts)) <= 3 * 127  # 127 characters, of up to 3 bytes
    assert 100 < np.mean([len(excerpt) for excerpt in excerpts]) < 128
    assert b"statement" in train and b"statement" in val
    train, val = train.replace(b"\0", b""), val.replace(b"\0", b"")
    paragraphs = [p for p in val.split(b"\n\n") if len(p) > 100]
    assert len(paragraphs) > 50 and not any(p in train for p in paragraphs)


def test_too_few_tokens(tmp_path):
    folder = write_shards(tmp_path / "shards", n_train=512, n_val=40)
    config = ["--vocab-size", "257", "--data", str(folder), "--B", "1", "--T", "32"]
    with pytest.raises(UserError, match="512 training tokens, less than one batch of 512"):
        load_data(parse_args([*config, "--total-batch-size", "512"]))
    load_data(parse_args([*config, "--total-batch-size", "256"]))
    with pytest.raises(UserError, match="40 validation tokens, less than one sequence of 40"):
        load_data(parse_args([*config, "--total-batch-size", "256", "--T", "40"]))
