"""--data names a text: its shards are those of fineweb.py, made once, and beside it."""

import gzip
import json
import os
import threading
from dataclasses import replace

import numpy as np
import pytest
from filelock import FileLock
from helpers import (
    CPU, TINY, contents, fineweb, gpt2_vocabulary_missing, lively_gpt, main_here, make_documents,
    refusal, start, write_jsonl, write_parquet, write_shards,
)

import fineweb as program
import train_gpt2
from nanogpt.common import UserError
from nanogpt.exports import tokenizer_json
from nanogpt.own_text import folder_beside, is_text, own_shards
from nanogpt.report import read_log
from nanogpt.tokenizer import encoding, get_tokenizer
from train_gpt2 import PRESETS, TrainConfig

RUN = [flag for flag in TINY if flag not in ("--vocab-size", "257", "--prompt",
                                             "Hello, I'm a language model,")]
RUN += ["--prompt", "a", "--val-tokens", 256, "--max-steps", 2]
OWN = program.Config
TEXT = "a cab, a bee; " * 500


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in, with a text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text(TEXT)
    return tmp_path


def config_of(data, tokenizer=None, init_from=""):
    return TrainConfig(data=str(data), tokenizer=tokenizer, init_from=init_from)


def shards_of(folder):
    return {name: data for name, data in contents(folder).items() if name.endswith(".npy")}


@pytest.mark.slow
def test_two_commands(here):
    """From a text to a model that writes with the text's own characters."""
    flags = [*RUN, "--data", "a.txt", "--tokenizer", "chars", "--out-dir", "run"]
    done = start("train_gpt2.py", *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("a.txt: its shards are made in a.txt.chars, with --tokenizer ch")
    assert "vocabulary | chars, 7 ids\n" in done.stdout and "1 shards of a.txt," in done.stdout
    done = start("sample.py", "run", "a", "--max-tokens", 9)
    assert done.returncode == 0 and len(done.stdout) == 11, done.stdout + done.stderr
    assert {*done.stdout} <= {*TEXT, "\n"}
    # the text is named there
    again = start("train_gpt2.py", "run/config.toml", "--out-dir", "again")
    assert again.returncode == 0 and "made in" not in again.stdout, again.stderr
    assert read_log("again/log.txt")["train"] == read_log("run/log.txt")["train"]


@pytest.mark.slow
def test_one_rank_makes_them(here):
    done = start("train_gpt2.py", *RUN, "--data", "a.txt", "--tokenizer", "bytes", "--B", 4,
                 ranks=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("made in") == 1 and "waiting" not in done.stdout


def write_kinds(folder):
    """The same eleven documents, in every kind that can be."""
    documents = ["", *make_documents(10)]
    write_parquet(folder / "parquet", documents, files=2, row_group_size=3)
    write_jsonl(folder / "a.jsonl", [{"text": text} for text in documents])
    (folder / "a.json.gz").write_bytes(gzip.compress(json.dumps(documents).encode()))
    (folder / "mixed").mkdir()
    write_jsonl(folder / "mixed" / "a.jsonl", [{"text": text} for text in documents[:6]])
    write_parquet(folder / "mixed" / "b", documents[6:10], files=1)
    (folder / "mixed" / "c.txt").write_bytes(documents[10].encode())


@pytest.mark.parametrize("name", ["a.txt", "parquet", "a.jsonl", "a.json.gz", "mixed"])
@pytest.mark.parametrize("tokenizer", ["chars", "bytes"])
def test_they_are_what_fineweb_makes(name, tokenizer, here, capsys):
    write_kinds(here)
    assert is_text(name)
    config = own_shards(config_of(name, tokenizer), CPU)
    assert config == config_of(f"{name}.{tokenizer}", tokenizer)
    assert fineweb(name, "by hand", tokenizer=tokenizer).returncode == 0
    by_hand = [*shards_of(here / "by hand").values()]
    assert by_hand == [*shards_of(here / f"{name}.{tokenizer}").values()]
    capsys.readouterr()
    before = contents(here / f"{name}.{tokenizer}")
    assert own_shards(config_of(name, tokenizer), CPU) == config
    assert contents(here / f"{name}.{tokenizer}") == before and capsys.readouterr().out == ""


@pytest.mark.parametrize("data, text", [
    ("pydoc", False), ("none", False), ("edu_fineweb10B", False), ("shards", False),
    ("bins", False), ("empty", False), ("inside", False), ("no.txt", True), ("shakespeare", True),
    ("weights", False), ("", False),
    ("a.txt", True), ("folder", True), ("folder/", True), (".", True)])
def test_a_text_is_not_a_folder_of_shards(data, text, here):
    write_shards(here / "shards")
    lively_gpt().save_pretrained(here / "weights")
    for folder in "bins", "empty", "folder", "inside":
        (here / folder).mkdir()
    (here / "bins" / "train.bin").write_bytes(b"")
    (here / "bins" / "readme.txt").write_text("these are shards")
    (here / "folder" / "a.txt").write_text(TEXT)
    write_shards(here / "inside" / "shards")
    (here / "inside" / "shards" / "tokenizer.json").write_text("{}")  # of shards, and no text
    assert is_text(data) is text


def test_where_they_are(here):
    for data, tokenizer, folder in (
            ("a.txt", "gpt2", "a.txt.gpt2"), ("b/c/", "chars", "b/c.chars"),
            ("b/a.txt", "else/my.json", "b/a.txt.my.json"), ("shakespeare", "chars",
                                                        "data/shakespeare.chars")):
        assert str(folder_beside(data, tokenizer)) == os.path.normpath(folder)
    assert folder_beside(".", "bytes") == here.parent / f"{here.name}.bytes"


def test_made_again_when_the_text_has_changed(here):
    """Other files in the folder stay; shards that are too many go."""
    out = here / "a.txt.bytes"
    own_shards(config_of("a.txt", "bytes"), CPU)
    (out / "notes.txt").write_text("mine")
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["shards"].append(manifest["shards"][1] | {"file": "a_train_000002.npy"})
    (out / "manifest.json").write_text(json.dumps(manifest))
    (out / "a_train_000002.npy").write_bytes(b"")
    for text in TEXT.upper(), TEXT[:-9]:  # as long as before, and not
        (here / "a.txt").write_text(text)
        own_shards(config_of("a.txt", "bytes"), CPU)
        assert fineweb("a.txt", text[:9]).returncode == 0
        assert shards_of(out) == shards_of(here / text[:9])
        assert (out / "notes.txt").read_text() == "mine"


def test_another_tokenizer_has_another_folder(here):
    made = []
    for characters in " ,;abce", " ,;abcex":
        encoding.cache_clear()  # a process reads a file once
        (here / "my.json").write_text(tokenizer_json(get_tokenizer(f"chars:{characters}")))
        out = own_shards(config_of("a.txt", "my.json"), CPU).data
        assert out.startswith("a.txt.my-") and len(out) == len("a.txt.my-") + 8
        assert json.loads((here / out / "manifest.json").read_text())["characters"] == characters
        made.append(contents(here / out))
    own_shards(config_of("a.txt", "chars"), CPU)
    folders = sorted(here.glob("a.txt.*"))  # a run may still read the older one
    assert len(folders) == 3 and all(contents(folder) in made for folder in folders[1:])


def test_a_text_that_cannot_be_read_any_more_leaves_its_shards(here):
    out = here / own_shards(config_of("a.txt", "bytes"), CPU).data
    before = contents(out)
    (here / "a.txt").write_bytes("mended".encode("utf-16"))
    with pytest.raises(UserError, match="a.txt line 1: "):
        own_shards(config_of("a.txt", "bytes"), CPU)
    assert contents(out) == before


def test_a_missing_shard_is_made_again(here):
    own_shards(config_of("a.txt", "bytes"), CPU)
    before = contents(here / "a.txt.bytes")
    (here / "a.txt.bytes" / "a_train_000001.npy").unlink()
    own_shards(config_of("a.txt", "bytes"), CPU)
    assert contents(here / "a.txt.bytes") == before


@pytest.mark.parametrize("n", [1, 2, 3])
def test_stopped_half_way(n, here, monkeypatch):
    """The next run finishes what is missing, and does not train on less."""
    monkeypatch.setattr(program, "Config", lambda **set: OWN(**set, shard_size=2500))
    own_shards(config_of("a.txt", "bytes"), CPU)
    whole = contents(here / "a.txt.bytes")
    os.rename("a.txt.bytes", "whole")
    write_shard = program.write_shard

    def write_and_stop(config, manifest, *args):
        write_shard(config, manifest, *args)
        if len(manifest["shards"]) == n:
            raise OSError("stopped by the test")

    if n < 3:
        monkeypatch.setattr(program, "write_shard", write_and_stop)
        with pytest.raises(OSError, match="stopped by the test"):
            own_shards(config_of("a.txt", "bytes"), CPU)
        monkeypatch.setattr(program, "write_shard", write_shard)
    own_shards(config_of("a.txt", "bytes"), CPU)
    assert contents(here / "a.txt.bytes") == whole and len(whole) == 4


def test_two_at_once(here, monkeypatch, capfd):
    """The second run waits for the first, and takes what it made."""
    assert fineweb("a.txt", "by hand").returncode == 0
    write_shards, acquire, waiting = program.write_shards, FileLock.acquire, threading.Event()
    second = threading.Thread(target=own_shards, args=(config_of("a.txt", "bytes"), CPU))
    made = []

    def and_another(*args):
        made.append(args)
        second.start()
        assert waiting.wait(60)
        write_shards(*args)

    def and_say(self, timeout=None, **more):
        if timeout == -1:
            waiting.set()
        return acquire(self, timeout, **more)

    monkeypatch.setattr(program, "write_shards", and_another)
    monkeypatch.setattr(FileLock, "acquire", and_say)
    own_shards(config_of("a.txt", "bytes"), CPU)
    second.join(60)
    assert len(made) == 1 and not (here / "a.txt.bytes" / ".lock").exists()
    assert "waiting for another program in a.txt.bytes" in capfd.readouterr().out
    assert shards_of(here / "a.txt.bytes") == shards_of(here / "by hand")


def test_shards_made_by_hand_are_used_if_they_are_the_texts(here):
    assert fineweb("a.txt", "a.txt.bytes").returncode == 0
    before = contents(here / "a.txt.bytes")
    own_shards(config_of("a.txt", "bytes"), CPU)
    assert contents(here / "a.txt.bytes") == before
    (here / "a.txt").write_text(TEXT * 2)
    with pytest.raises(UserError, match="a.txt.bytes was begun with files = .*remove that folder"):
        own_shards(config_of("a.txt", "bytes"), CPU)
    assert contents(here / "a.txt.bytes") == before


def test_weights_bring_their_tokenizer(here):
    """A run's characters; without a file of them, bytes by their number."""
    net = lively_gpt(vocab_size=8)
    net.save_pretrained("weights")
    (here / "weights" / "tokenizer.json").write_text(
        tokenizer_json(get_tokenizer("chars: ,;abcez")))
    out = own_shards(config_of("a.txt", init_from="weights"), CPU).data
    manifest = json.loads((here / out / "manifest.json").read_text())
    assert out.startswith("a.txt.tokenizer-") and manifest["characters"] == " ,;abcez"
    lively_gpt(vocab_size=257).save_pretrained("bytes")
    assert own_shards(config_of("a.txt", init_from="bytes"), CPU).data == "a.txt.bytes"


def test_presets_say_which_tokenizer():
    assert PRESETS["shakespeare-char"].tokenizer == "chars"
    assert PRESETS["shakespeare-char-cpu"].tokenizer == "chars"
    assert PRESETS["laptop"].tokenizer == "bytes"
    assert PRESETS["finetune"].tokenizer is PRESETS["gpt2-124M"].tokenizer is None


@pytest.mark.skipif(bool(gpt2_vocabulary_missing()), reason=gpt2_vocabulary_missing())
def test_else_it_is_gpt2s(here):
    for init_from in "", "gpt2-medium":
        config = own_shards(config_of("a.txt", init_from=init_from), CPU)
        assert config.data == "a.txt.gpt2"
    ids = [id for name in ("a_train_000001.npy", "a_val_000000.npy")
           for id in np.load(here / "a.txt.gpt2" / name).tolist()]
    assert ids == [50256, *get_tokenizer("gpt2").encode_ordinary(TEXT)]


def test_shakespeare_is_downloaded_once(here, monkeypatch):
    (here / "cache").mkdir()
    (here / "cache" / "input.txt").write_text(TEXT)
    monkeypatch.setattr("nanogpt.sources.fetch", lambda url: here / "cache" / "input.txt")
    data = own_shards(replace(PRESETS["shakespeare-char"]), CPU).data
    assert sorted(contents(here / data)) == ["manifest.json", "shakespeare_train_000001.npy",
                                             "shakespeare_val_000000.npy"]
    assert data == os.path.join("data", "shakespeare.chars")


BAD = {
    "empty.txt": (b"", "empty.txt holds no text: name another --data"),
    "binary.txt": (b"\x00\xff\xfe\x01" * 99, "binary.txt line 1: 'utf-8' codec can't decode"),
    "two.csv": (b"n,body\n1,one\n2,two\n", "two.csv line 2: no text named text or content: choose "
                "a --column of ['n', 'body'] (python fineweb.py --source two.csv --tokenizer "),
    "a.doc": (b"some text", "nothing to read in a.doc: name a txt, "),
    "no.txt": (None, "tsv or parquet file (gz, zst too), a folder of them"),
}


@pytest.mark.parametrize("tokenizer", ["chars", "bytes"])
@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read(name, tokenizer, here, monkeypatch, capsys):
    data, words = BAD[name]
    if data is not None:
        (here / name).write_bytes(data)
    said = refusal(train_gpt2.main, *RUN, "--data", name, "--tokenizer", tokenizer,
                   monkeypatch=monkeypatch, capsys=capsys)
    assert words in said
    assert not (here / "log").exists() and not (here / f"{name}.{tokenizer}").exists()


@pytest.mark.parametrize("tokenizer, words", [
    ("charz", "no tokenizer charz (did you mean chars?)"),
    ("no.json", "no.json is not a tokenizer")])
def test_tokenizers_that_are_not(tokenizer, words, here, monkeypatch, capsys):
    said = refusal(train_gpt2.main, *RUN, "--data", "a.txt", "--tokenizer", tokenizer,
                   monkeypatch=monkeypatch, capsys=capsys)
    assert words in said and sorted(os.listdir(here)) == ["a.txt"]


def test_a_folder_that_cannot_be_written(here, monkeypatch):
    def full(folder):
        raise UserError(f"cannot write to {folder} (Permission denied): choose another folder")

    monkeypatch.setattr(program, "check_writable", full)
    with pytest.raises(UserError, match="to a.txt.bytes .*another folder .python fineweb.py"):
        own_shards(config_of("a.txt", "bytes"), CPU)


@pytest.mark.slow
def test_shards_keep_their_tokenizer(here, monkeypatch, capsys):
    """--tokenizer is for texts, and the table says so."""
    write_shards(here / "shards")
    for tokenizer, words in ("chars", "bytes, 257 ids; --tokenizer chars is for texts\n"), (
            "bytes", "bytes, 257 ids\n"):
        main_here(monkeypatch, *RUN, "--data", "shards", "--tokenizer", tokenizer)
        assert f"vocabulary | {words}" in capsys.readouterr().out


def test_a_table_of_scores_takes_a_text(here, monkeypatch, capsys):
    lively_gpt(vocab_size=257, block_size=32).save_pretrained("weights")
    for data in "a.txt", "a.txt.bytes":
        main_here(monkeypatch, *RUN, "--data", data, "--eval-only", "--init-from", "weights")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line[0] == "{"]
    assert lines[0]["models"][0]["val"] == lines[1]["models"][0]["val"]


def test_a_text_that_is_read_later_is_not_missed(here, monkeypatch):
    """Its time is noted before it is read: one that is written meanwhile counts as changed."""
    make_shards = program.make_shards

    def write_first(*args, **kwargs):
        (here / "a.txt").write_text(TEXT.replace("b", "c"))
        make_shards(*args, **kwargs)

    monkeypatch.setattr(program, "make_shards", write_first)
    own_shards(config_of("a.txt", "chars"), CPU)
    monkeypatch.setattr(program, "make_shards", make_shards)
    (here / "a.txt").write_text(TEXT)
    own_shards(config_of("a.txt", "chars"), CPU)
    manifest = json.loads((here / "a.txt.chars" / "manifest.json").read_text())
    assert manifest["characters"] == " ,;abce"
