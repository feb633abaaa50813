"""--data an address, .md as text, other files named, --init-from a run's folder."""

import gzip
import http.server
import io
import os
import sys
import threading
from pathlib import Path

import huggingface_hub.constants
import pytest
from helpers import (
    CPU, TINY, expected_tokens, fineweb, lively_gpt, main_here, refusal, tokens_of, write_shards,
)

import train_gpt2
from nanogpt.common import UserError
from nanogpt.own_text import folder_beside, is_text, own_shards
from nanogpt.report import read_log
from nanogpt.sources import find_source
from nanogpt.tokenizer import get_tokenizer
from train_gpt2 import TrainConfig

ARGS = "--shard-size", 400
RUN = [*TINY, "--val-tokens", 512, "--sample-tokens", 0, "--max-steps", 2]
TEXT = "a cab, a bee; " * 500


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in, beside the cache for downloads."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


# a folder of many files


def test_markdown_is_text_and_other_files_are_named(here):
    """README.md is about a folder's texts, unless it is named itself."""
    for name, text in {"a.md": "# One", "B.MD.gz": "", "b/README.md": "about", "b/c.png": "",
                       "b/d.PNG": "", "b/Makefile": "", "b/e.txt": "two"}.items():
        path = here / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(b"zero") if name.endswith("gz") else text.encode())
    done = fineweb(here / "docs", here / "out", *ARGS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("found 1 .md, 1 .md.gz, 1 .txt\n"
                                  "skipped 4 other files: .png, Makefile, README.md\n")
    assert sorted(tokens_of(here / "out")) == sorted(expected_tokens(["zero", "# One", "two"]))
    assert is_text("docs") and is_text("docs/a.md")
    done = fineweb(here / "docs" / "b" / "README.md", here / "about", *ARGS)
    assert done.returncode == 0 and "skipped" not in done.stdout, done.stderr
    assert sorted(tokens_of(here / "about")) == sorted(expected_tokens(["about"]))


def test_many_kinds_are_not_all_named(here):
    (here / "docs").mkdir()
    for name in ["a.txt", *(f"b.{i}" for i in range(12))]:
        (here / "docs" / name).write_text("text")
    said = fineweb(here / "docs", here / "out", *ARGS).stdout.splitlines()[1]
    assert said == "skipped 12 other files: .0, .1, .10, .11, .2, .3, .4, .5, .6, ..."


def test_what_runs_have_written_is_no_text(here):
    """--data . is right beside them, too, however often."""
    run = here / "mine" / "log" / "run"
    (run / "checkpoint_000001").mkdir(parents=True)
    (here / "mine" / "a.txt").write_text("Once")
    for name in "log.txt", "config.toml", "checkpoint_000001/config.json":
        (run / name).write_text("{\n")
    assert find_source(str(here / "mine")).files == ("a.txt",)
    (run / "config.toml").unlink()  # somebody's own log
    assert len(find_source(str(here / "mine")).files) == 3


def test_a_file_that_is_not_there_is_named(here):
    with pytest.raises(UserError, match="no file nosuch.txt: name a txt"):
        find_source("nosuch.txt")


def test_a_folder_of_other_files_alone(here):
    (here / "docs").mkdir()
    (here / "docs" / "README.md").write_text("about")
    assert not is_text("docs")
    done = fineweb(here / "docs", here / "out")
    assert done.returncode == 2 and f"nothing to read in {here / 'docs'}: name a txt, md, jsonl" \
        in done.stderr


@pytest.mark.parametrize("name, said", [("-", "standard input"), ("-.jsonl", "1 .jsonl")])
def test_standard_input_is_called_that(name, said, here, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'"a text"')))
    assert fineweb(name, here / "out", *ARGS).stdout.startswith(f"found {said}\n")


# --data https://...


class Page(http.server.BaseHTTPRequestHandler):
    asked = []

    def do_GET(self):
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(TEXT.encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def site(here, monkeypatch):
    """The address of a text, on a server of our own."""
    monkeypatch.setattr(Page, "asked", [])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/a.txt"
        server.shutdown()
        thread.join()


def test_an_address_is_downloaded_once(site, here, capsys):
    """Its shards are those of the same text on the disk."""
    config = TrainConfig(data=site, tokenizer="bytes")
    out = [own_shards(config, CPU).data for _ in range(2)]
    name = site.removeprefix("http://").replace(":", "_").replace("/", "_")
    assert out == [os.path.join("data", f"{name}.bytes")] * 2
    assert capsys.readouterr().out.count("made in") == 1 and len(Page.asked) == 1
    Path("a.txt").write_text(TEXT)
    own_shards(TrainConfig(data="a.txt", tokenizer="bytes"), CPU)
    assert tokens_of(here / out[0]).tolist() == tokens_of(here / "a.txt.bytes").tolist()


def test_where_its_shards_are():
    for data, folder in (
            ("https://a.b:80/c/d-1.txt?e=../f", "data/a.b_80_c_d-1.txt_e_.._f.gpt2"),
            ("http://a.b/../../c", "data/a.b_.._.._c.gpt2"),
            ("http://a.b/" + "c" * 300, "data/" + "c" * 200 + ".gpt2")):
        assert is_text(data) and str(folder_beside(data, "gpt2")) == os.path.normpath(folder)


def test_an_address_that_cannot_be_read(here, monkeypatch, capsys):
    for data, words in (("http://127.0.0.1:9/a.txt", "cannot get http://127.0.0.1:9/a.txt"),
                        ("http://127.0.0.1:9/a.html", "nothing to read in http://127.0.0.1:9/a.h")):
        said = refusal(train_gpt2.main, *RUN, "--data", data, "--tokenizer", "bytes",
                       monkeypatch=monkeypatch, capsys=capsys)
        assert words in said and os.listdir(here) == []


# --init-from log/NAME


def test_a_presets_prompt_is_left_out_where_the_tokenizer_lacks_it(here, monkeypatch, capsys):
    """Any text can be trained on: without the preset's letters, or without the end of a line."""
    enc, presets = get_tokenizer("chars: abcdefgh"), train_gpt2.PRESETS
    assert train_gpt2.fit_prompt(enc, presets["gpt2-124M"].prompt, presets) == ""
    assert train_gpt2.fit_prompt(enc, "abc", presets) == "abc"
    with pytest.raises(UserError, match="^--prompt: '[?]'"):
        train_gpt2.fit_prompt(enc, "abc?", presets)
    (here / "one.txt").write_text("abc bcd cab " * 999)
    main_here(monkeypatch, *TINY[2:], "--prompt", "\n", "--data", "one.txt", "--tokenizer", "chars",
              "--max-steps", 1, "--val-tokens", 64, "--sample-tokens", 5, "--out-dir", "one")
    said = capsys.readouterr().out
    assert all(set(line.partition(": ")[2]) <= set("'abcd ") for line in said.splitlines()
               if line.startswith("  sample")) and said.count("  sample") >= 4


def test_a_run_begins_where_another_ended(here, monkeypatch):
    """The log has the checkpoint's name: the first run may go on."""
    write_shards(here / "shards")
    data = "--data", "shards"
    main_here(monkeypatch, *RUN, *data, "--out-dir", "first", "--checkpoint-every", 1)
    main_here(monkeypatch, *RUN, *data, "--out-dir", "second", "--init-from", "first")
    first, second = (read_log(here / name / "log.txt") for name in ("first", "second"))
    assert second["val"][1][0] == first["val"][1][-1] < first["val"][1][0]
    assert second["run"]["config"]["init_from"] == os.path.join("first", "checkpoint_000002")


def test_a_folder_of_weights_is_itself_and_an_empty_one_is_refused(here, monkeypatch, capsys):
    write_shards(here / "shards")
    data = "--data", "shards"
    lively_gpt(vocab_size=257, block_size=32).save_pretrained("weights")
    main_here(monkeypatch, *RUN, *data, "--out-dir", "run", "--init-from", "weights")
    assert read_log(here / "run" / "log.txt")["run"]["config"]["init_from"] == "weights"
    said = refusal(train_gpt2.main, *RUN, *data, "--out-dir", "other", "--init-from", "shards",
                   monkeypatch=monkeypatch, capsys=capsys)
    assert "no checkpoint in shards: name the folder of a run, or one with" in said
    assert not (here / "other").exists()
