"""--tokenizer FILE.json: against the tokenizers library, with files that it trains here."""

import json
import re

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
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from nanogpt.common import UserError
from nanogpt.tokenizer import encode, folder_key, get_tokenizer, key_of

HARD = "a <|endoftext|></s> é漢😀\r\n  \t\x85\0 x" + "aaaa " * 9


def trained(kind="bytes", end="<|endoftext|>", texts=()):
    """A Tokenizer of 300 ids: pairs of bytes, pieces of words, or Unigram with its marks of spaces.
    """
    train = dict(vocab_size=300, special_tokens=[end, "<unk>", "<pad>"], show_progress=False)
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **train)
    elif kind == "words":
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(**train)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token="<unk>", **train)
    tokenizer.train_from_iterator([*texts, *make_documents(75)], trainer)
    return tokenizer


def without_special(tokenizer, text):
    """Its ids for a text in which no special token is looked for, because it has none."""
    facts = json.loads(tokenizer.to_str()) | {"added_tokens": []}
    return Tokenizer.from_str(json.dumps(facts)).encode(text).ids


@pytest.mark.parametrize("kind", ["bytes", "words", "unigram"])
def test_ids_are_the_librarys(kind, tmp_path):
    tokenizer, path = trained(kind), str(tmp_path / "any name.json")
    tokenizer.save(path)
    enc = get_tokenizer(path)
    hard = HARD.replace("<|endoftext|>", "") if kind == "unigram" else HARD
    for text in [hard, "", *make_documents(20, seed=1)]:
        ids = without_special(tokenizer, text)
        assert enc.encode_ordinary(text) == ids
        assert encode(enc, text).tolist() == [0, *ids] and encode(enc, text).dtype == np.uint16
        assert enc.decode(ids) == tokenizer.decode(ids, skip_special_tokens=False)
    assert (enc.n_vocab, enc.eot_token) == (tokenizer.get_vocab_size(), 0)
    assert 0 not in enc.encode_ordinary(HARD + "<|endoftext|><|endoftext|>")
    if kind == "bytes":
        assert enc.decode(enc.encode_ordinary(HARD)) == HARD
        assert enc.decode_bytes(enc.encode_ordinary(HARD)) == HARD.encode()
        assert enc.decode([0]) == "<|endoftext|>"
        for n in range(40):  # a character may be in several tokens
            some = enc.encode_ordinary(HARD)[:n]
            assert enc.decode_bytes(some) == HARD.encode()[: len(enc.decode_bytes(some))]
            assert enc.decode_bytes(some).decode(errors="replace") == enc.decode(some)
        assert enc.decode(enc.encode_ordinary("a\ud800")) == "a\ufffd"


def test_nothing_is_put_in_front_cut_off_or_padded(tmp_path):
    """What a file asks for beside its ids: a frame around each text, a length for all."""
    tokenizer = trained()
    expected = without_special(tokenizer, HARD)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<unk> $A <|endoftext|>", special_tokens=[("<unk>", 1), ("<|endoftext|>", 0)])
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=9999)
    assert len(tokenizer.encode(HARD).ids) == 9999
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert get_tokenizer(str(tmp_path / "tokenizer.json")).encode_ordinary(HARD) == expected


@pytest.mark.parametrize("end", ["<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]"])
def test_end_of_text_by_any_of_its_names(end, tmp_path):
    trained(end=end).save(str(tmp_path / "tokenizer.json"))
    assert get_tokenizer(str(tmp_path / "tokenizer.json")).eot_token == 0


def test_a_token_of_that_name_that_is_not_special_does_not_count(tmp_path):
    facts = json.loads(trained().to_str())
    facts["added_tokens"][0]["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(UserError, match="no special token to end a text with"):
        get_tokenizer(str(tmp_path / "tokenizer.json"))


LARGE = {"version": "1.0", "added_tokens": [], "model": {
    "type": "BPE", "vocab": {f"t{i}": i for i in range(2**16 + 1)}, "merges": []}}
PANIC = {"version": "1.0", "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
         "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}


@pytest.mark.parametrize("text, word", [
    (None, "No such file"), ("", "EOF"), ("{}", "Model missing"), ("[" * 10**5, "is not"),
    ("\xff", "expected value"), ('{"model": {"type": "BPE", "vocab": {}, "merges": []}}', "empty"),
    (json.dumps(LARGE), "65,537 ids"), (json.dumps(PANIC), "is not a tokenizer.json")],
    ids=["absent", "empty", "no model", "deep", "latin", "no ids", "many ids", "panic"])
def test_refused_in_one_line(text, word, tmp_path):
    source, path = write_parquet(tmp_path / "docs", ["a"], files=1), tmp_path / "tokenizer.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    refused(fineweb(source, tmp_path / "out", tokenizer=path), str(path), word, "another")
    assert not (tmp_path / "out").exists()


def test_a_character_without_an_id(tmp_path):
    """Of a tokenizer that has none for the unknown; dropping it would not be seen."""
    vocab = {"a": 0, "b": 1, "<|endoftext|>": 2}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    enc = get_tokenizer(str(tmp_path / "tokenizer.json"))
    assert enc.encode_ordinary("abba") == [0, 1, 1, 0]
    with pytest.raises(UserError, match=r"tokenizer.json cannot encode 'abc'\.\.\. \(.*UNK"):
        enc.encode_ordinary("abc")


def test_shards_and_a_copy_beside_them(tmp_path):
    documents = make_documents(75)
    source, path = write_parquet(tmp_path / "docs", documents), tmp_path / "mine.json"
    tokenizer = trained()
    tokenizer.save(str(path))
    flags = ["--tokenizer", path, "--shard-size", 1000]
    assert fineweb(source, tmp_path / "whole", *flags).returncode == 0
    stopped(2, source, tmp_path / "out", *flags)
    before = contents(tmp_path / "out")
    trained(texts=["abcdefg"] * 99).save(str(tmp_path / "other.json"))  # as many ids
    refused(fineweb(source, tmp_path / "out", *flags, "--tokenizer", tmp_path / "other.json"),
            "was begun with tokenizer_sha256 =")
    assert contents(tmp_path / "out") == before
    assert fineweb(source, tmp_path / "out", *flags).returncode == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")

    out, ids = tmp_path / "out", [id for text in documents for id in (
        0, *tokenizer.encode(text).ids)]
    assert tokens_of(out).tolist() == ids
    assert (out / "tokenizer.json").read_bytes() == path.read_bytes()
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["tokenizer"], manifest["vocab_size"], manifest["end_of_text"],
            manifest["documents"]) == ("tokenizer.json", 300, 0, 75)
    path.unlink()
    assert get_tokenizer(key_of(manifest, out)).encode_ordinary("abc") == tokenizer.encode(
        "abc").ids
    (out / "tokenizer.json").write_text(tokenizer.to_str() + " ", encoding="utf-8")
    with pytest.raises(UserError, match="is not the tokenizer that the shards were made with"):
        key_of(manifest, out)
    (out / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="is not the tokenizer that the shards were made with"):
        key_of(manifest, out)


def test_anothers_tokenizer_json_is_not_overwritten(tmp_path):
    source, out = write_parquet(tmp_path / "docs", ["a", "b"]), tmp_path / "out"
    trained().save(str(tmp_path / "mine.json"))
    out.mkdir()
    (out / "tokenizer.json").write_text("mine", encoding="utf-8")
    refused(fineweb(source, out, tokenizer=tmp_path / "mine.json"), "is another tokenizer", "--out")
    assert contents(out) == {"tokenizer.json": b"mine"}


def test_a_manifest_leads_to_no_other_file(tmp_path):
    trained().save(str(tmp_path / "secret.json"))
    with pytest.raises(UserError, match="shards/tokenizer.json is not the tokenizer"):
        key_of({"tokenizer": "../secret.json", "tokenizer_sha256": ""}, tmp_path / "shards")


def test_the_key_of_a_networks_folder(tmp_path):
    """Its tokenizer.json; else by the number of ids, which GPT-2s pad for speed."""
    for name, n in ("gpt2", 50257), ("gpt2", 50304), ("bytes", 257), ("bytes", 264):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "vocab_size": n}))
        assert folder_key(tmp_path) == name
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "vocab_size": 1000}')
    with pytest.raises(UserError, match="a vocabulary of 1000 ids"):
        folder_key(tmp_path)
    for text in "{", '{"model_type": "gpt_neox", "vocab_size": 50304}':
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=re.escape(str(tmp_path / "config.json"))):
            folder_key(tmp_path)
    with pytest.raises(UserError, match="config.json"):
        folder_key(tmp_path / "nowhere")
    trained().save(str(tmp_path / "tokenizer.json"))
    assert get_tokenizer(folder_key(tmp_path)).n_vocab == 300
