"""Text from elsewhere: a server of our own, a stand-in for the hub."""

import hashlib
import http.server
import os
import sys
import threading
from types import ModuleType

import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import (
    contents, expected_tokens, fineweb, make_documents, refused, stopped, tokens_of, write_parquet,
)

from nanogpt import sources

ARGS = "--shard-size", 400


class Site(http.server.BaseHTTPRequestHandler):
    """Serves `pages` by name and counts what is asked for; /cut/ loses its connection half-way."""

    pages, asked = {}, []

    def do_GET(self):
        self.asked.append(self.path)
        data = self.pages.get(self.path.partition("?")[0].removeprefix("/cut"))
        if data is None:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if self.path.startswith("/cut") else data)

    def log_message(self, *args):
        pass


@pytest.fixture
def site(tmp_path, monkeypatch):
    """The address of a site, and a cache of our own."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Site, "pages", {
        "/a.txt": b"A text of a site. " * 99, "/b/a.txt": b"Another. " * 99, "/page": b"<html>",
        "/docs.parquet": (write_parquet(tmp_path / "docs", make_documents(9), files=1)
                          / "000.parquet").read_bytes()})
    monkeypatch.setattr(Site, "asked", [])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_address_is_downloaded_once(site, tmp_path):
    """Though it is longer than the name of a folder may be."""
    address = "/a.txt?version=" + "1" * 300
    for folder in "out", "again":
        done = fineweb(site + address, tmp_path / folder, *ARGS)
        assert done.returncode == 0, done.stderr
        assert tokens_of(tmp_path / folder).tolist() == expected_tokens(
            [Site.pages["/a.txt"].decode()])
        assert (tmp_path / folder / "a_val_000000.npy").exists()
    assert Site.asked == [address]
    assert fineweb(f"{site}/b/a.txt", tmp_path / "b", *ARGS).returncode == 0
    assert tokens_of(tmp_path / "b").tolist() == expected_tokens([Site.pages["/b/a.txt"].decode()])


def test_parquet_of_an_address(site, tmp_path):
    assert fineweb(f"{site}/docs.parquet", tmp_path / "out", *ARGS, "--seed", 1).returncode == 0
    assert sorted(tokens_of(tmp_path / "out")) == sorted(expected_tokens(make_documents(9)))


@pytest.mark.parametrize("name, words", [
    ("cut/a.txt", "the connection was lost"), ("nowhere.txt", "HTTP Error 404"),
    ("page", "nothing to read")])
def test_whole_or_not_at_all(name, words, site, tmp_path):
    """Nothing of it stays, neither in the cache nor in --out."""
    refused(fineweb(f"{site}/{name}", tmp_path / "out", *ARGS), words, f"{site}/{name}")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert not (tmp_path / "out").exists()
    assert name != "page" or not Site.asked


def test_no_network_is_one_line(site, tmp_path):
    refused(fineweb("http://127.0.0.1:9/a.txt", tmp_path / "out"), "cannot get http://127.0.0.1:9",
            "go online")


def test_shakespeare_is_nanogpts(site, tmp_path, monkeypatch):
    """Its address and its checksum; another file is refused, and not kept."""
    assert sources.PLAYS == ("https://raw.githubusercontent.com/karpathy/char-rnn/master/"
                                   "data/tinyshakespeare/input.txt")
    assert sources.SHA256.startswith("86c4e6aa9db7c042") and len(sources.SHA256) == 64
    monkeypatch.setattr(sources, "PLAYS", f"{site}/a.txt")
    refused(fineweb("shakespeare", tmp_path / "out", *ARGS), "a.txt is not nanoGPT's file")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    monkeypatch.setattr(sources, "SHA256", hashlib.sha256(Site.pages["/a.txt"]).hexdigest())
    assert fineweb("shakespeare", tmp_path / "out", *ARGS).returncode == 0
    assert (tmp_path / "out" / "shakespeare_val_000000.npy").exists()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub whose data set somebody/texts is a list of rows. What load_dataset was asked for."""
    rows = [{"id": i, "title": "x", "text": text} for i, text in enumerate(make_documents(30))]
    module, asked = ModuleType("datasets"), []

    def load_dataset(name, config, split, streaming):
        asked.append((name, config, split))
        assert streaming
        if split not in ("train", "test"):
            raise ValueError(f'Bad split: {split}.\nAvailable splits: ["train", "test"]')
        return rows if split == "train" else rows[:10]

    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setattr(sources, "hub_offline", lambda name, kind: name != "somebody/texts")
    monkeypatch.chdir(tmp_path)
    return asked


def test_a_data_set_of_the_hub(hub, tmp_path):
    done = fineweb("somebody/texts", tmp_path / "out", *ARGS)
    assert done.returncode == 0, done.stderr
    assert tokens_of(tmp_path / "out").tolist() == expected_tokens(make_documents(30))
    assert (tmp_path / "out" / "texts_val_000000.npy").exists()
    assert set(hub) == {("somebody/texts", None, "train")}
    args = "--config", "en", "--split", "test", "--column", "title"
    assert fineweb("somebody/texts", tmp_path / "titles", *args, *ARGS[:1], 5).returncode == 0
    assert tokens_of(tmp_path / "titles").tolist() == expected_tokens(["x"] * 10)
    assert hub[-1] == ("somebody/texts", "en", "test")


def test_it_resumes(hub, tmp_path):
    assert fineweb("somebody/texts", tmp_path / "whole", *ARGS).returncode == 0
    stopped(3, "somebody/texts", tmp_path / "out", *ARGS)
    refused(fineweb("somebody/texts", tmp_path / "out", *ARGS, "--split", "test"), "begun with")
    assert fineweb("somebody/texts", tmp_path / "out", *ARGS).returncode == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_what_the_hub_does_not_have(hub, tmp_path):
    refused(fineweb("some/folder", tmp_path / "out"), "data set some/folder", "go online")
    refused(fineweb("folder", tmp_path / "out"), "nothing to read in folder")
    done = fineweb("somebody/texts", tmp_path / "out", "--split", "val")
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and last.startswith("error: somebody/texts: Bad split: val.")
    assert '"train", "test"' in last and "--split" in last
    done = fineweb("somebody/texts", tmp_path / "out", "--column", "body")
    assert "no text named body: choose a --column of ['title', 'text']" in done.stderr


def test_a_folder_of_this_name_comes_first(hub, tmp_path):
    write_parquet(tmp_path / "somebody" / "texts", make_documents(5))
    assert fineweb("somebody/texts", tmp_path / "out", *ARGS).returncode == 0
    assert tokens_of(tmp_path / "out").tolist() == expected_tokens(make_documents(5))
    assert hub == []


def test_fineweb_edu_has_its_own_way(hub, monkeypatch, tmp_path):
    """Unless another configuration is asked for."""
    monkeypatch.setattr(sources, "hub_offline", lambda name, kind: False)
    done = fineweb(sources.HUB, tmp_path / "out", *ARGS, "--config", "CC-MAIN-2024-10")
    assert done.returncode == 0, done.stderr
    assert set(hub) == {(sources.HUB, "CC-MAIN-2024-10", "train")}


@pytest.mark.slow
def test_the_real_datasets(tmp_path, monkeypatch):
    """A local folder in place of the hub's: documents, columns and splits as its own reader has
    them, also in a process that stops in the middle of the stream."""
    datasets = pytest.importorskip("datasets", reason="comes with pip install -e .")
    load, documents = datasets.load_dataset, make_documents(300)
    for split, texts in ("train", documents), ("test", documents[:50]):
        os.makedirs(tmp_path / "set" / "data", exist_ok=True)
        pq.write_table(pa.table({"url": ["x"] * len(texts), "text": texts}),
                       tmp_path / "set" / "data" / f"{split}-00000.parquet", row_group_size=20)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, *args, **more: load(
        str(tmp_path / "set"), *args, cache_dir=str(tmp_path / "cache"), **more))
    monkeypatch.setattr(sources, "hub_offline", lambda name, kind: False)
    for name, split, n in ("train", "train", None), ("test", "test", None), ("some", "train", 999):
        args = [*ARGS, "--split", split, *(["--max-tokens", n] if n else [])]
        done = fineweb("somebody/texts", tmp_path / name, *args)
        assert done.returncode == 0, done.stderr
        texts = documents if split == "train" else documents[:50]
        assert tokens_of(tmp_path / name).tolist() == expected_tokens(texts)[:n]
    for flag in "--split", "--config":
        done = fineweb("somebody/texts", tmp_path / "none", flag, "nothing")
        assert done.returncode == 2 and "choose another --config or --split" in done.stderr
