"""The vocabulary is the data's: its manifest says which ids there are and which one ends a text."""

import argparse
import json
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import (
    TINY, gpt2_vocabulary_missing, load_streams, main_here, refusal, write_shards,
)

import hellaswag
import train_gpt2
from nanogpt.common import UserError
from nanogpt.manifest import find_tokenizer
from nanogpt.report import read_log
from nanogpt.tokenizer import check_tokenizer, get_tokenizer

RUN = [flag for flag in TINY if flag not in ("--vocab-size", "257", "Hello, I'm a language model,")]
RUN.remove("--prompt")
LETTERS = " abcdefgh"


def write_letters(folder, end_of_text=None):
    """Shards of characters, as fineweb.py --tokenizer chars writes them."""
    folder.mkdir()
    n_ids = len(LETTERS) + (end_of_text is not None)
    rng, listed = np.random.default_rng(0), []
    for split, n in ("val", 3000), ("train", 9000):
        name = f"letters_{split}_{len(listed):06d}.npy"
        np.save(folder / name, rng.integers(n_ids, size=n, dtype=np.uint16))
        listed.append({"file": name, "tokens": n, "documents": 1})
    manifest = {"tokenizer": "chars", "characters": LETTERS, "vocab_size": n_ids,
                "end_of_text": end_of_text, "shards": listed}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def change(folder, **facts):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


@pytest.mark.parametrize("end_of_text", [None, len(LETTERS)])
def test_characters_are_the_manifests(end_of_text, tmp_path):
    key, n_ids, end = find_tokenizer(str(write_letters(tmp_path / "data", end_of_text)))
    assert key == ("chars:" if end_of_text is None else "chars+eot:") + LETTERS
    assert (n_ids, end) == (len(LETTERS) + (end_of_text is not None), end_of_text)
    enc = get_tokenizer(key)
    assert (enc.n_vocab, enc.eot_token) == (n_ids, end)
    assert enc.decode(enc.encode_ordinary("bad cafe"[:7])) == "bad caf"


def test_without_a_manifest_it_is_gpt2s_or_by_its_number(tmp_path):
    folder = str(write_shards(tmp_path / "data", manifest=False))
    assert find_tokenizer(folder) == ("gpt2", 50257, 50256)
    assert find_tokenizer(folder, 257) == ("bytes", 257, 256)
    assert find_tokenizer("pydoc") == ("bytes", 257, 256)
    with pytest.raises(UserError, match="1000 ids belongs to no known tokenizer"):
        find_tokenizer(folder, 1000)


def test_a_number_that_is_not_the_datas_is_refused(tmp_path):
    folder = str(write_letters(tmp_path / "data"))
    assert find_tokenizer(folder, 9)[1] == 9
    with pytest.raises(UserError, match="made with tokenizer chars, but the run uses bytes: leave"):
        find_tokenizer(folder, 257)


@pytest.mark.parametrize("facts, words", [
    ({"vocab_size": None}, "says vocab_size = None"), ({"vocab_size": 70000}, "= 70000"),
    ({"characters": None}, "not a valid manifest"), ({"tokenizer": None}, "vocab_size")])
def test_a_manifest_without_a_vocabulary_is_refused(facts, words, tmp_path):
    folder = write_letters(tmp_path / "data")
    change(folder, **facts)
    if facts.get("tokenizer", "") is None:
        change(folder, vocab_size=None)
    with pytest.raises(UserError, match=words):
        find_tokenizer(str(folder))


def test_documents_end_where_the_manifest_says(tmp_path):
    """Without an end of text, the last id is a character like the others."""
    for end, name in (None, "one"), (len(LETTERS), "many"):
        folder = write_letters(tmp_path / name, end)
        train, _ = load_streams(folder, "--vocab-size", str(9 + bool(end)), shuffle=True)
        tokens = train.shards[0].open()
        expected = [0] if end is None else sorted({0, *np.flatnonzero(tokens == end).tolist()})
        assert train.documents(0).tolist() == expected


@pytest.mark.parametrize("end_of_text", [None, len(LETTERS)])
def test_heldout_endings_are_cut_from_the_text_alone(end_of_text, tmp_path):
    folder = write_letters(tmp_path / "data", end_of_text)
    _, val = load_streams(folder, "--vocab-size", str(9 + bool(end_of_text)))
    text = "".join(LETTERS[i] for i in np.load(folder / "letters_val_000000.npy") if i < 9)
    enc, config = get_tokenizer(f"chars:{LETTERS}"), argparse.Namespace(
        hellaswag="heldout", hellaswag_limit=5, seed=1)
    found = hellaswag.load_run(config, enc, 64, val)
    expected = hellaswag.encode(hellaswag.cut_examples(text, 5, seed=1), enc, 64)
    assert len(found) == 5 and list(map(repr, found)) == list(map(repr, expected))


@pytest.mark.slow
def test_nobody_gives_the_vocabulary(tmp_path, monkeypatch, capsys):
    """Network, header and samples follow the data; the next run of the folder resumes."""
    run = [*RUN, "--data", write_letters(tmp_path / "data"), "--val-tokens", 64,
           "--out-dir", tmp_path / "run", "--prompt", "abc"]
    main_here(monkeypatch, *run, "--max-steps", 2)
    said = capsys.readouterr().out
    assert "vocabulary | chars, 9 ids" in said
    assert all(set(line.split(": ", 1)[1][1:-1]) <= set(LETTERS) for line in said.splitlines()
               if line.startswith("  sample"))
    assert read_log(tmp_path / "run" / "log.txt")["run"]["config"]["vocab_size"] == 9
    model = train_gpt2.GPT.from_pretrained(tmp_path / "run" / "checkpoint_000002")
    assert model.config.vocab_size == 9
    main_here(monkeypatch, *run, "--max-steps", 3, "--resume")
    assert "resumed" in capsys.readouterr().out


def test_a_prompt_of_other_characters_is_refused_first(tmp_path, monkeypatch, capsys):
    said = refusal(train_gpt2.main, *RUN, "--data", write_letters(tmp_path / "data"), "--out-dir",
                   tmp_path / "run", "--prompt", "abc?", monkeypatch=monkeypatch, capsys=capsys)
    assert "?" in said and not (tmp_path / "run").exists()


def test_weights_of_another_vocabulary_are_refused(tmp_path, monkeypatch, capsys):
    train_gpt2.GPT(train_gpt2.GPTConfig(32, 10, 2, 2, 32)).save_pretrained(tmp_path / "model")
    said = refusal(train_gpt2.main, *RUN, "--data", write_letters(tmp_path / "data"), "--init-from",
                   tmp_path / "model", "--out-dir", tmp_path / "run", "--prompt", "abc",
                   monkeypatch=monkeypatch, capsys=capsys)
    assert "has 10 ids, the run 9" in said


def write_tokenizer(path, characters, eot=False):
    """A tokenizer.json in which every character is a token, made by the library `tokenizers`."""
    end = {"id": len(characters), "content": "<|endoftext|>", "single_word": False, "lstrip": False,
           "rstrip": False, "normalized": False, "special": True}
    vocab = {c: i for i, c in enumerate(characters)}
    each = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated",
            "invert": False}
    path.write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [end] * eot, "pre_tokenizer": each, "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}}))


def test_weights_that_know_other_characters_are_refused(tmp_path, monkeypatch, capsys):
    """As many of them; the same ones are not."""
    data = write_letters(tmp_path / "data", end_of_text=len(LETTERS))
    train_gpt2.GPT(train_gpt2.GPTConfig(32, len(LETTERS) + 1, 1, 2, 32)).save_pretrained(
        tmp_path / "weights")
    run = [*RUN, "--data", data, "--init-from", tmp_path / "weights", "--max-steps", 1,
           "--out-dir", tmp_path / "run", "--prompt", "a"]
    write_tokenizer(tmp_path / "weights" / "tokenizer.json", " abcdefgi", eot=True)
    said = refusal(train_gpt2.main, *run, monkeypatch=monkeypatch, capsys=capsys)
    assert "id 8 is b'i' to --init-from" in said and ", b'h' to the data's tokenizer: ch" in said
    assert not (tmp_path / "run").exists()
    write_tokenizer(tmp_path / "weights" / "tokenizer.json", LETTERS, eot=True)
    main_here(monkeypatch, *run)
    (tmp_path / "weights" / "tokenizer.json").unlink()  # then nobody can know
    main_here(monkeypatch, *run, "--max-steps", 2)


@pytest.mark.skipif(bool(gpt2_vocabulary_missing()), reason=gpt2_vocabulary_missing())
def test_gpt2s_weights_know_gpt2s_tokens(tmp_path):
    """A tokenizer of another language often has as many ids."""
    other = SimpleNamespace(n_vocab=50257, eot_token=0, decode_bytes=lambda ids: b"%d" % ids[0])
    with pytest.raises(UserError, match="id 1 is .* to --init-from gpt2-xl.*--tokenizer gpt2"):
        check_tokenizer(other, "gpt2-xl")
    check_tokenizer(other, str(tmp_path))  # a folder without a tokenizer.json
    check_tokenizer(other, "")
    check_tokenizer(get_tokenizer("gpt2"), "gpt2-xl")
