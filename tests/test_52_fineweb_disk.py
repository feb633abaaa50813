"""The disk a run needs, with files and disks of known sizes; the bar, compared with the tokens."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import FakeHub, expected_tokens, fineweb, make_documents, stopped, write_parquet

import fineweb as program
from nanogpt.common import UserError
from fineweb import Config, read_manifest, write_shards
from nanogpt.sources import HUB, bytes_to_download, estimate_tokens, find_source


def test_a_folders_tokens_are_estimated_from_its_footers(tmp_path):
    """Only the text column counts, in all row groups and files: a token per byte, or per three."""
    documents = make_documents(300)
    for i, texts in enumerate([documents[:100], documents[100:]]):
        table = pa.table({"more": [3 * text for text in texts], "text": texts})
        pq.write_table(table, tmp_path / f"{i}.parquet", row_group_size=50)
    source = find_source(str(tmp_path))
    n_bytes = sum(len(text.encode()) for text in documents)
    # a page adds its header and the texts' lengths, four bytes each
    assert n_bytes < estimate_tokens(source, "bytes") < 1.1 * n_bytes
    assert estimate_tokens(source, "gpt2") == estimate_tokens(source, "bytes") // 3


def test_what_is_left_to_download(monkeypatch):
    """Ten files of 2 GB, two of them in the cache, ten billion tokens in all."""
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, file, repo_type:
                        "/cached" if file[-11:] < "002.parquet" else None)
    source = find_source(HUB)
    assert estimate_tokens(source, "gpt2") == 10**10
    assert bytes_to_download(Config(), source, 10**10) == 8 * 2 * 10**9
    assert bytes_to_download(Config(), source, 10**9) == 0  # the first file holds a tenth
    assert bytes_to_download(Config(), source, 3 * 10**9) == 2 * 10**9
    assert bytes_to_download(Config(seed=1), source, 10**9) == 8 * 2 * 10**9


def test_too_little_disk_is_found_before_starting(tmp_path, monkeypatch, capsys):
    source = find_source(str(write_parquet(tmp_path / "docs", make_documents(5))))
    config = Config(out=str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(0, 0, 10**10))
    program.check_disk(config, source, 10**9, 0)
    assert "needs about 2.0 GB for shards\n" in capsys.readouterr().out, "there is no download"
    program.check_disk(config, source, 10**15, 10**15)  # all done already
    with pytest.raises(UserError, match="about 2000000.0 GB are needed"):
        program.check_disk(config, source, 10**15, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(0, 0, 10**9))
    with pytest.raises(UserError, match="1.0 GB free"):
        program.check_disk(config, source, 10**9, 0)


def test_shards_and_downloads_of_one_disk_are_added(tmp_path, monkeypatch):
    """20 GB of shards and 20 GB of downloads: 39 GB are enough for either, but not for both."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **kwargs: None)
    source, config = find_source(HUB), Config(out=str(tmp_path / "not" / "yet"))
    for free, enough in (39, False), (41, True):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, free=free:
                            shutil._ntuple_diskusage(0, 0, free * 10**9))
        if enough:
            program.check_disk(config, source, 10**10, 0)
        else:
            with pytest.raises(UserError, match="about 40.0 GB are needed"):
                program.check_disk(config, source, 10**10, 0)


def test_a_run_says_what_it_needs_before_anything_is_written(tmp_path, monkeypatch):
    source, out = write_parquet(tmp_path / "docs", make_documents(75)), tmp_path / "out"
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(0, 0, 9))
    done = fineweb(source, out, "--shard-size", 4000)
    assert done.returncode == 2 and done.stderr.startswith("error: the disk of ")
    assert not list(out.iterdir())
    monkeypatch.undo()
    done = fineweb(source, out, "--shard-size", 4000)
    assert done.returncode == 0 and "\nneeds about 0.0 GB for shards\n" in done.stdout


class Bar:
    """As much of tqdm as fineweb.py uses."""

    def __init__(self):
        self.n = 0

    def update(self, n):
        self.n += n


def test_the_bar_counts_tokens(tmp_path, monkeypatch):
    """Those of this run; the bar's initial value is where the last run stopped."""
    documents = make_documents(75)
    source, out = write_parquet(tmp_path / "docs", documents), tmp_path / "out"
    stopped(2, source, out, "--shard-size", 4000)
    config = Config(source=str(source), out=str(out), shard_size=4000, workers=1,
                    tokenizer="bytes")
    monkeypatch.setattr("fineweb.ProcessPoolExecutor", lambda n, *how: ThreadPoolExecutor(n))
    source, bar = find_source(config.source), Bar()
    write_shards(config, source, read_manifest(config, source), bar)
    assert bar.n == len(expected_tokens(documents)) - 8000


def test_the_bar_is_shown(tmp_path):
    source, out = write_parquet(tmp_path / "docs", make_documents(75)), tmp_path / "out"
    done = fineweb(source, out, "--shard-size", 4000)
    assert done.returncode == 0 and "tok/s" in done.stderr
    assert "tok/s" not in fineweb(source, out, "--shard-size", 4000).stderr  # nothing to do
