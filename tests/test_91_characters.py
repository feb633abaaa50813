"""--tokenizer chars: every character is a token. Against nanoGPT's way, dictionaries of the sorted
set of characters, and against Python's own text."""

import json

import numpy as np
import pytest
from helpers import (
    contents,
    fineweb,
    make_documents,
    refused,
    stopped,
    tokens_of,
    write_parquet,
)

from nanogpt.common import UserError
from nanogpt.tokenizer import encode, encoding, get_tokenizer, key_of
from nanogpt.characters import Characters

VERSE = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n"
# of every length in UTF-8, line ends of every system, what is no letter, both ends of Unicode
HARD = "\0\t\n\r\n\x85\u2028 a\u0301é漢\ufeff\uffff😀🏳️‍🌈\U0010ffff<|endoftext|>"


def by_hand(texts, eot):
    """Ids as nanoGPT's shakespeare_char makes them; before each text an end-of-text, if any."""
    stoi = {c: i for i, c in enumerate(sorted(set("".join(texts))))}
    return [id for text in texts for id in [*[len(stoi)] * eot, *(stoi[c] for c in text)]]


@pytest.mark.parametrize("text", [VERSE, HARD, "a", "".join(map(chr, range(0xD800)))],
                         ids=["verse", "hard", "one", "a whole plane"])
@pytest.mark.parametrize("eot", [False, True])
def test_ids_are_nanogpts_and_lead_back(text, eot):
    characters = "".join(sorted(set(text)))
    enc = get_tokenizer(f"chars{'+eot' * eot}:{characters}")
    assert enc.encode_ordinary(text) == by_hand([text], False)
    assert encode(enc, text).tolist() == by_hand([text], eot)
    assert encode(enc, text).dtype == np.uint16
    assert enc.n_vocab == len(characters) + eot
    assert enc.eot_token == (len(characters) if eot else None)
    assert enc.decode(enc.encode_ordinary(text)) == text
    assert enc.decode_bytes(enc.encode_ordinary(text)) == text.encode()
    if eot:
        assert enc.decode([0, enc.eot_token, 0]) == f"{characters[0]}<|endoftext|>{characters[0]}"
    assert enc.encode_ordinary("") == [] and enc.decode([]) == ""


def test_characters_may_look_like_a_key():
    enc = get_tokenizer("chars:" + "".join(sorted(set("chars+eot:gpt2.json"))))
    assert enc.decode(enc.encode_ordinary("chars:gpt2.json")) == "chars:gpt2.json"


@pytest.mark.parametrize("text, named", [
    ("caf\u00e9", "'é' (character 3 of a text, in 'café')"),
    ("\n" * 70 + "~ok", "'~' (character 70"), ("A", "'A' (character 0"), ("😀", "(character 0"),
    ("\ud800", "'\\ud800' (character 0")])
def test_an_unknown_character_is_named_with_its_place(text, named):
    with pytest.raises(UserError) as error:
        Characters("\n acfko").encode_ordinary(text)
    assert named in str(error.value) and "this tokenizer's 7 characters" in str(error.value)
    assert str(error.value).count("\\n") <= 40  # not all of the text


@pytest.mark.parametrize("characters", ["", "ba", "aa", "".join(map(chr, range(2**16)))])
def test_what_is_no_vocabulary(characters):
    with pytest.raises(UserError, match="up to 65,535 can be tokens"):
        Characters(characters, eot=True)


def test_halves_of_surrogate_pairs_are_the_replacement_character():
    """UTF-8 has no code for them; tiktoken does the same."""
    text = "a\ud83d b\ude00"
    enc = Characters("".join(sorted(set(" ab\ufffd"))))
    assert enc.decode(enc.encode_ordinary(text)) == "a\ufffd b\ufffd"
    bytes_ = get_tokenizer("bytes")
    assert bytes_.decode(bytes_.encode_ordinary(text)) == "a\ufffd b\ufffd"


@pytest.mark.parametrize("documents", [[VERSE * 3 + HARD], [HARD, "", VERSE], make_documents(75)],
                         ids=["one", "three", "many"])
def test_shards_of_characters(documents, tmp_path):
    """One document needs no end-of-text; several have one before each, as with other tokenizers."""
    source = write_parquet(tmp_path / "docs", documents, files=min(2, len(documents)))
    done = fineweb(source, tmp_path / "out", "--shard-size", 100, tokenizer="chars")
    assert done.returncode == 0, done.stderr
    several, characters = len(documents) > 1, "".join(sorted(set("".join(documents))))
    assert tokens_of(tmp_path / "out").tolist() == by_hand(documents, several)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    facts = {"tokenizer": "chars", "characters": characters, "documents": len(documents),
             "vocab_size": len(characters) + several,
             "end_of_text": len(characters) if several else None}
    assert {key: manifest[key] for key in facts} == facts
    enc = encoding(key_of(manifest, tmp_path / "out"))
    assert (enc.n_vocab, enc.eot_token) == (manifest["vocab_size"], manifest["end_of_text"])


def test_the_order_of_the_documents_changes_no_id(tmp_path):
    source = write_parquet(tmp_path / "docs", make_documents(75))
    for name, flags in ("plain", []), ("shuffled", ["--seed", 1]):
        assert fineweb(source, tmp_path / name, *flags, tokenizer="chars").returncode == 0
    plain, shuffled = (tokens_of(tmp_path / name) for name in ("plain", "shuffled"))
    assert (plain != shuffled).any() and (np.bincount(plain) == np.bincount(shuffled)).all()


def test_resumed_the_same_bytes_and_other_characters_are_refused(tmp_path):
    """The characters are part of what a folder was begun with, also if there are as many."""
    source, flags = write_parquet(tmp_path / "docs", ["abc" * 99, "cab"]), ["--shard-size", 50]
    sizes = {path.name: path.stat().st_size for path in source.iterdir()}
    chars = ["--tokenizer", "chars", *flags]
    assert fineweb(source, tmp_path / "whole", *chars).returncode == 0
    stopped(2, source, tmp_path / "out", *chars)
    before = contents(tmp_path / "out")
    refused(fineweb(source, tmp_path / "out", *flags), "tokenizer = chars", "not bytes")
    write_parquet(tmp_path / "docs", ["abd" * 99, "dab"])
    assert {path.name: path.stat().st_size for path in source.iterdir()} == sizes
    refused(fineweb(source, tmp_path / "out", *chars), "characters = abc", "not abd")
    assert contents(tmp_path / "out") == before
    write_parquet(tmp_path / "docs", ["abc" * 99, "cab"])
    assert fineweb(source, tmp_path / "out", *chars).returncode == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_refusal_of_many_other_characters_is_short(tmp_path):
    for first, out in (0x4e00, "made"), (0x4e01, "refused"):
        source = write_parquet(tmp_path / "docs", ["".join(map(chr, range(first, first + 300)))])
        done = fineweb(source, tmp_path / "out", tokenizer="chars")
        assert (done.returncode == 0) == (out == "made"), done.stderr
    refused(done, "was begun with characters = \u4e00", "not \u4e01")
    assert sum(c >= "\u4e00" for c in done.stderr) == 2 * 99


@pytest.mark.parametrize("flags, words", [
    (["--tokenizer", "char"], ("no tokenizer char (did you mean chars?)", "choose gpt2, bytes")),
    (["--tokenizer", "cl100k_base"], ("no tokenizer cl100k_base",)),
    (["--tokenizer", "chars", "--encoder", "gigatoken"], ("--encoder gigatoken", "leave out"))])
def test_other_tokenizers_are_refused(flags, words, tmp_path):
    source = write_parquet(tmp_path / "docs", ["a", "b"])
    refused(fineweb(source, tmp_path / "out", *flags), *words)
    assert not (tmp_path / "out").exists()


def test_a_source_without_a_character(tmp_path):
    source = write_parquet(tmp_path / "docs", ["", ""])
    refused(fineweb(source, tmp_path / "out", tokenizer="chars"), "holds no text", "--source")


def test_the_keys_of_the_other_tokenizers():
    assert key_of({"tokenizer": "gpt2"}, "x") == "gpt2"
    assert key_of({"tokenizer": "chars", "end_of_text": 2, "characters": "ab"}, "x") == (
        "chars+eot:ab")
    for broken in {}, {"tokenizer": "chars"}, {"tokenizer": "chars", "end_of_text": None,
                                               "characters": 5}:
        with pytest.raises((KeyError, TypeError)):
            key_of(broken, "x")
