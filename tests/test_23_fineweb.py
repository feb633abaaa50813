"""fineweb.py: parquet to shards, any document, stopped anywhere, always the same bytes."""

import json
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import ROOT, gpt2_vocabulary_missing, start

from common import UserError, get_tokenizer
from fineweb import HUB, Config, bytes_to_download, check_disk, encode, find_source


def make_documents(n, seed=0):
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdefghij \n.,äß→"))
    return ["".join(rng.choice(letters, size=rng.integers(0, 400))) for _ in range(n)]


def write_parquet(folder, documents, files=2, row_group_size=10):
    folder.mkdir(parents=True, exist_ok=True)
    for i, part in enumerate(np.array_split(np.array(documents, dtype=object), files)):
        table = pa.table({"id": list(range(len(part))), "text": pa.array(list(part), pa.string())})
        pq.write_table(table, folder / f"{i:03d}.parquet", row_group_size=row_group_size)
    return folder


def fineweb(source, out, *args, tokenizer="bytes"):
    return start("fineweb.py", "--source", source, "--out", out, "--tokenizer", tokenizer,
                 "--workers", 2, *args)


def tokens_of(folder):
    paths = sorted(folder.glob("*.npy"), key=lambda path: path.stem[-6:])  # val is number 0
    return np.concatenate([np.load(path) for path in paths])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def expected_tokens(documents, tokenizer="bytes"):
    enc = get_tokenizer(tokenizer)
    return [id for text in documents for id in (enc.eot_token, *enc.encode_ordinary(text))]


def test_round_trip(tmp_path):
    documents = make_documents(75)
    source = write_parquet(tmp_path / "docs", documents)
    done = fineweb(source, tmp_path / "out", "--shard-size", 4000)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("needs about 0.0 GB for shards")
    tokens = tokens_of(tmp_path / "out")
    assert tokens.tolist() == expected_tokens(documents)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    files = sorted(path.name for path in (tmp_path / "out").glob("*.npy"))
    assert [shard["file"] for shard in manifest["shards"]] == sorted(files, key=lambda f: f[-10:])
    assert manifest["shards"][0]["file"] == "docs_val_000000.npy"
    assert manifest["shards"][1]["file"] == "docs_train_000001.npy"
    assert {s["tokens"] for s in manifest["shards"][:-1]} == {4000}
    assert manifest["tokens"] == len(tokens) == sum(s["tokens"] for s in manifest["shards"])
    assert manifest["documents"] == 75 == sum(s["documents"] for s in manifest["shards"])
    assert (manifest["tokenizer"], manifest["vocab_size"], manifest["end_of_text"],
            manifest["complete"]) == ("bytes", 257, 256, True)
    assert all(np.load(tmp_path / "out" / file).dtype == np.uint16 for file in files)


@pytest.mark.skipif(bool(gpt2_vocabulary_missing()), reason=gpt2_vocabulary_missing())
def test_gpt2s_tokens(tmp_path):
    documents = [*make_documents(20), "<|endoftext|> in a text is text, and so is <|endoftext|>"]
    done = fineweb(write_parquet(tmp_path / "docs", documents), tmp_path / "out",
                   "--shard-size", 1000, tokenizer="gpt2")
    assert done.returncode == 0, done.stderr
    tokens = tokens_of(tmp_path / "out")
    assert tokens.tolist() == expected_tokens(documents, "gpt2")
    assert (tokens == 50256).sum() == 21


def test_any_document_length_and_empty_documents(tmp_path):
    documents = ["", "x" * 12_345, None, "", "y", "z " * 3000]
    done = fineweb(write_parquet(tmp_path / "docs", documents, files=1, row_group_size=2),
                   tmp_path / "out", "--shard-size", 1000)
    assert done.returncode == 0, done.stderr
    texts = [document for document in documents if document is not None]
    assert tokens_of(tmp_path / "out").tolist() == expected_tokens(texts)


def test_seed_shuffles_documents_and_nothing_else(tmp_path):
    documents = make_documents(300)
    source = write_parquet(tmp_path / "docs", documents, row_group_size=3)  # two windows of groups
    streams = {}
    for name, args in {"a": ["--seed", 1], "again": ["--seed", 1, "--workers", 1],
                       "b": ["--seed", 2]}.items():
        done = fineweb(source, tmp_path / name, "--shard-size", 20_000, *args)
        assert done.returncode == 0, done.stderr
        streams[name] = tokens_of(tmp_path / name).tolist()

    def texts(tokens):
        return bytes(t if t < 256 else 0 for t in tokens).split(b"\0")[1:]

    assert streams["a"] == streams["again"] != streams["b"]
    in_order = [text.encode() for text in documents]
    assert sorted(texts(streams["a"])) == sorted(texts(streams["b"])) == sorted(in_order)
    # far from the source's order: a document's neighbour is rarely its old one
    place = {text: i for i, text in enumerate(in_order)}
    places = [place[text] for text in texts(streams["a"])]
    assert sum(b - a == 1 for a, b in zip(places, places[1:], strict=False)) < 15


def test_max_tokens(tmp_path):
    documents = make_documents(75)
    done = fineweb(write_parquet(tmp_path / "docs", documents), tmp_path / "out",
                   "--shard-size", 2000, "--max-tokens", 5555)
    assert done.returncode == 0, done.stderr
    assert tokens_of(tmp_path / "out").tolist() == expected_tokens(documents)[:5555]


def test_a_rerun_is_free(tmp_path):
    source, out = write_parquet(tmp_path / "docs", make_documents(50)), tmp_path / "out"
    assert fineweb(source, out, "--shard-size", 2000).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    done = fineweb(source, out, "--shard-size", 2000)
    assert done.returncode == 0 and "tokens of 50 documents" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


@pytest.mark.parametrize("flags", [[], ["--seed", "1"], ["--max-tokens", "900123"]])
def test_killed_half_way_and_started_again_the_same_bytes(flags, tmp_path):
    source = write_parquet(tmp_path / "docs", make_documents(4000), row_group_size=40)
    args = ["--shard-size", "10000", *flags]
    assert fineweb(source, tmp_path / "whole", *args).returncode == 0
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, ROOT / "fineweb.py", "--source", source, "--out", killed, "--tokenizer",
         "bytes", "--workers", "1", *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(killed.glob("*.npy"))) < 3:
        time.sleep(0.005)
    process.kill()
    process.wait()
    shards = len(list(killed.glob("*.npy")))
    assert 3 <= shards < len(list((tmp_path / "whole").glob("*.npy"))), "not killed half-way"
    # what a kill in the middle of writing leaves behind, and a shard that somebody lost
    (killed / ".docs_train_000009.npy.tmp").write_bytes(b"half a shard")
    (killed / "docs_train_000002.npy").unlink()
    assert fineweb(source, killed, *args).returncode == 0
    assert contents(killed) == contents(tmp_path / "whole")


def test_killed_before_or_after_the_last_manifest(tmp_path):
    """A shard that is written and not yet listed is written again; a shard size that the source
    divides by leaves no empty one."""
    documents = ["x" * 99] * 40  # 4,000 tokens
    source = write_parquet(tmp_path / "docs", documents)
    for folder in "whole", "again":
        assert fineweb(source, tmp_path / folder, "--shard-size", 1000).returncode == 0
    manifest = json.loads((tmp_path / "again" / "manifest.json").read_text())
    assert [shard["tokens"] for shard in manifest["shards"]] == [1000] * 4
    unlisted = manifest["shards"].pop()
    manifest |= {"complete": False, "tokens": 3000, "documents": 30}
    (tmp_path / "again" / "manifest.json").write_text(json.dumps(manifest))
    assert unlisted["following"] is None
    assert fineweb(source, tmp_path / "again", "--shard-size", 1000).returncode == 0
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")


def refused(done, *words):
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def test_bad_input_is_one_line(tmp_path):
    source, out = write_parquet(tmp_path / "docs", make_documents(50)), tmp_path / "out"
    refused(fineweb(tmp_path / "nowhere", out), "nowhere", ".parquet")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.parquet").write_bytes(b"no parquet at all")
    refused(fineweb(tmp_path / "broken", out), "a.parquet", "fetch it again")
    for table in {"words": ["a"]}, {"text": [1]}:
        pq.write_table(pa.table(table), tmp_path / "broken" / "a.parquet")
        refused(fineweb(tmp_path / "broken", out), "a.parquet", "no column of strings named text")
    refused(fineweb(source, out, "--shard-size", 0), "--shard-size 0")
    refused(fineweb(source, out, "--workers", 0), "--workers 0")
    (tmp_path / "file").write_text("")
    refused(fineweb(source, tmp_path / "file" / "out"), "cannot write to")
    assert not out.exists() or not list(out.iterdir())


def test_nothing_of_another_run_is_overwritten(tmp_path):
    source, out = write_parquet(tmp_path / "docs", make_documents(50)), tmp_path / "out"
    assert fineweb(source, out, "--shard-size", 2000).returncode == 0
    before = contents(out)
    refused(fineweb(source, out, "--shard-size", 3000), "shard_size = 2000, not 3000")
    refused(fineweb(source, out, "--shard-size", 2000, "--seed", 1), "order_seed = None, not 1")
    refused(fineweb(write_parquet(tmp_path / "other", make_documents(9)), out, "--shard-size",
                    2000), "files")
    assert contents(out) == before
    (out / "manifest.json").unlink()
    refused(fineweb(source, out, "--shard-size", 2000), "no manifest.json")
    assert contents(out).items() <= before.items()


def test_damaged_row_group_names_its_file(tmp_path):
    source = write_parquet(tmp_path / "docs", make_documents(50), files=1)
    data = bytearray((source / "000.parquet").read_bytes())
    data[600:1600] = bytes(1000)
    (source / "000.parquet").write_bytes(data)
    done = fineweb(source, tmp_path / "out")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]  # under the progress bar
    assert last.startswith("error: ") and "000.parquet is damaged in row group 0" in last


def test_too_little_disk_is_found_before_starting(tmp_path, monkeypatch, capsys):
    source = find_source(str(write_parquet(tmp_path / "docs", make_documents(5))))
    config = Config(out=str(tmp_path))
    check_disk(config, source, 10**9, 0)
    assert "needs about 2.0 GB for shards and 0.0 GB for the download" in capsys.readouterr().out
    check_disk(config, source, 10**15, 10**15)  # all done already
    with pytest.raises(UserError, match="about 2000000.0 GB are needed"):
        check_disk(config, source, 10**15, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(0, 0, 10**9))
    with pytest.raises(UserError, match="1.0 GB free"):
        check_disk(config, source, 10**9, 0)


class FakeHub:
    """Ten files of 2 GB, two of them in the cache."""

    def list_repo_tree(self, repo, folder, repo_type):
        assert (repo, folder, repo_type) == (HUB, "sample/10BT", "dataset")
        return [SimpleNamespace(path=f"{folder}/{i:03d}.parquet", size=2 * 10**9)
                for i in reversed(range(10))] + [SimpleNamespace(path="x.md", size=9)]

    def repo_info(self, *args, **kwargs):
        return None


def test_the_hubs_sample_in_order_and_what_is_left_to_download(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, file, repo_type:
                        "/cached" if file[-11:] < "002.parquet" else None)
    source = find_source(HUB)
    assert source.files == tuple(f"sample/10BT/{i:03d}.parquet" for i in range(10))
    assert bytes_to_download(Config(), source, 10**10) == 8 * 2 * 10**9
    assert bytes_to_download(Config(), source, 10**9) == 0  # the first file holds a tenth
    assert bytes_to_download(Config(), source, 3 * 10**9) == 2 * 10**9
    assert bytes_to_download(Config(seed=1), source, 10**9) == 8 * 2 * 10**9


def test_no_network_is_one_line(tmp_path):
    done = start("fineweb.py", "--out", tmp_path / "out", env={"HF_HUB_OFFLINE": "1"})
    refused(done, "cannot reach the hub for HuggingFaceFW/fineweb-edu", "--source")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(bool(gpt2_vocabulary_missing()), reason=gpt2_vocabulary_missing())
def test_a_million_spaces():
    """More than tiktoken's pattern bears in one piece."""
    enc = get_tokenizer("gpt2")
    for text in "a" + " " * 1_000_000 + "x", "x" * 300_000, "a b " * 50_000:
        tokens = encode(enc, text)
        assert tokens[0] == enc.eot_token and enc.decode(tokens[1:]) == text
    assert encode(enc, "a b " * 50_000)[1:] == enc.encode_ordinary("a b " * 50_000)
