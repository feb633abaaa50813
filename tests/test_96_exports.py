"""Our tokenizers in files: against transformers, the tokenizers library, and OpenAI's own list of
merges."""

import functools
import json
import random

import pytest
from helpers import fineweb, gpt2_vocabulary_missing, refused, write_parquet
from tokenizers import Tokenizer, processors
from tokenizers.implementations import ByteLevelBPETokenizer

from nanogpt.exports import merges, tokenizer_files
from nanogpt.tokenizer import folder_key, get_tokenizer

HARD = [*"aZ09 \n\t\r.!'_äß→漢\u00a0\u3000\x85\ufeff\u200d😀\0", "'s", "'ll", "'LL", "\r\n", "\n\n",
        "<|endoftext|>", "<unk>", "e\u0301", "🏳️‍🌈", " " * 300]
needs_gpt2 = pytest.mark.skipif(bool(gpt2_vocabulary_missing()), reason=gpt2_vocabulary_missing())


def hard_text(n_bytes, seed=0):
    """All of Unicode's planes, line ends of every kind, runs of spaces, names of special tokens."""
    rng, parts, size = random.Random(seed), [], 0
    while size < n_bytes:
        code = rng.randrange(0x110000)
        parts += ["" if 0xD800 <= code < 0xE000 else chr(code), rng.choice(HARD),
                  " " * rng.randrange(5), "".join(rng.choices("etaoin", k=rng.randrange(9)))]
        size += sum(len(part.encode()) for part in parts[-4:])
    return "".join(parts)


@functools.cache
def megabyte():
    return hard_text(10**6)


def key_for(kind):
    characters = "".join(sorted(set(megabyte())))
    keys = {"characters": "chars:" + characters, "with end": "chars+eot:" + characters}
    return keys.get(kind, kind)


def write(folder, key, block_size=64):
    """A folder with the tokenizer's files, and the config.json that transformers looks for."""
    folder.mkdir(exist_ok=True)
    enc = get_tokenizer(key)
    for name, text in tokenizer_files(enc, block_size).items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2",
                                                    "vocab_size": enc.n_vocab}))
    return enc


def open_tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, model_max_length=10**9)


@pytest.mark.parametrize("kind", [pytest.param("gpt2", marks=needs_gpt2), "bytes", "characters",
                                  "with end"])
def test_ids_of_a_megabyte_are_ours_and_lead_back(kind, tmp_path):
    enc, text = write(tmp_path, key_for(kind)), megabyte()
    theirs, ids = open_tokenizer(tmp_path), enc.encode_ordinary(text)
    assert len(text.encode()) >= 10**6
    assert theirs(text, split_special_tokens=True)["input_ids"] == ids
    assert theirs.decode(ids) == text
    assert len(theirs) == enc.n_vocab and theirs.eos_token_id == enc.eot_token
    again = get_tokenizer(folder_key(tmp_path))  # without GPT-2's vocabulary, offline
    assert (again.n_vocab, again.eot_token) == (enc.n_vocab, enc.eot_token)
    assert again.encode_ordinary(text) == ids and again.decode(ids) == text
    assert again.decode_bytes(ids[:99]) == enc.decode_bytes(ids[:99])


@needs_gpt2
def test_merges_are_openais():
    """tiktoken caches the file that OpenAI published, and forgets its order of parts."""
    from tiktoken.load import read_file_cached

    published = read_file_cached("https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
                                 "vocab.bpe").decode().splitlines()[1:]
    assert merges(get_tokenizer("gpt2")) == published and len(published) == 50_000


def test_a_name_in_a_text_is_a_special_token_to_others(tmp_path):
    """As with the published GPT-2; for us it is text. Tools without the setting do the same."""
    enc = write(tmp_path, "bytes")
    theirs = open_tokenizer(tmp_path)
    assert theirs("a" + theirs.eos_token)["input_ids"] == [97, 256]
    assert theirs("a <|endoftext|> b<|endoftext|>c")["input_ids"] == [
        97, 32, 256, 32, 98, 256, 99]  # spaces and letters around it stay
    assert enc.encode_ordinary("a<|endoftext|>")[:2] == [97, ord("<")]
    assert theirs.decode([97, 256, 98]) == "a<|endoftext|>b"
    assert theirs.decode([97, 256, 98], skip_special_tokens=True) == "ab"
    library = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert library.encode("<|endoftext|>").ids == [256]


def test_an_unknown_character_is_an_error_to_others_too(tmp_path):
    write(tmp_path, "chars:ab")
    with pytest.raises(Exception, match="UNK"):
        open_tokenizer(tmp_path)("abc")


def test_a_given_tokenizer_json_is_taken_along(tmp_path):
    """Without what it asks for besides ids, since the network was trained without that."""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([hard_text(9999)], vocab_size=400, special_tokens=["</s>", "<s>"],
                                  show_progress=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 0)])
    tokenizer.enable_truncation(5)
    tokenizer.save(str(tmp_path / "mine.json"))
    enc = write(tmp_path / "folder", str(tmp_path / "mine.json"))
    theirs, text = open_tokenizer(tmp_path / "folder"), hard_text(9999, seed=1)
    assert theirs(text, split_special_tokens=True)["input_ids"] == enc.encode_ordinary(text)
    assert (theirs.eos_token, theirs.eos_token_id) == ("</s>", 0)


LETTERS = "".join(sorted(set(" abcdefghijklmnopqrstuvwxyzT.\n")))


def test_generation_ends_before_the_positions_do():
    """256 new tokens, a pipeline's own default, are too many for a small network."""
    for block_size, most in (1024, 256), (128, 64), (1, 1):
        files = tokenizer_files(get_tokenizer("bytes"), block_size)
        assert json.loads(files["generation_config.json"]) == {
            "max_new_tokens": most, "bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256}
    files = tokenizer_files(get_tokenizer("chars:ab"), 64)  # it has no end of text
    assert json.loads(files["generation_config.json"]) == {"max_new_tokens": 32}


def test_another_encoding_is_refused():
    """Its pattern is not known to be GPT-2's."""
    import tiktoken

    enc = tiktoken.Encoding("other", pat_str="a", mergeable_ranks={b"a": 0},
                            special_tokens={"<|endoftext|>": 1})
    with pytest.raises(ValueError, match="no file is known for other"):
        tokenizer_files(enc, 64)


def test_a_networks_characters_for_another_text(tmp_path):
    """To fine-tune it, with fineweb.py --tokenizer log/.../tokenizer.json."""
    write(tmp_path / "net", f"chars:{LETTERS}")
    given = tmp_path / "net" / "tokenizer.json"
    one = write_parquet(tmp_path / "one", ["cab"], files=1, row_group_size=1)
    assert fineweb(one, tmp_path / "out", "--tokenizer", given).returncode == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["tokenizer"], manifest["vocab_size"], manifest["end_of_text"]) == (
        "chars", len(LETTERS), None)
    two = write_parquet(tmp_path / "two", ["cab", "bac"], files=1)
    refused(fineweb(two, tmp_path / "out2", "--tokenizer", given), "2 documents", "no end-of-text")
    write(tmp_path / "net2", f"chars+eot:{LETTERS}")
    assert fineweb(two, tmp_path / "out3", "--tokenizer", tmp_path / "net2" / "tokenizer.json",
                   "--shard-size", 4).returncode == 0
