"""Our tokenizers as the files that transformers and other tools read.

In a text, these tools take the name <|endoftext|> for the end of the text, as they do with the
published GPT-2, so that `text + tokenizer.eos_token` means what it says. Here, and there with
`split_special_tokens=True`, it is thirteen characters like any others.
"""

import functools
import json

from nanogpt.characters import EACH
from nanogpt.tokenizer import TOKENIZERS
from nanogpt.tokenizer_file import LETTERS

# cuts a text as GPT-2 does, and writes the bytes of each piece as characters
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
              "use_regex": True}


def in_letters(token):
    """A token's bytes, each as GPT-2's files write it."""
    return "".join(LETTERS[byte] for byte in token)


def merges(enc):
    """The pairs that GPT-2's tokens were merged from, in order, of which tiktoken keeps only the
    results. A token's bytes, merged by earlier tokens alone, lowest rank first, end as two parts.
    """
    ranks, pairs = enc._mergeable_ranks, []
    for token, rank in ranks.items():
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            first = min(range(len(parts) - 1),
                        key=lambda i: ranks.get(parts[i] + parts[i + 1], rank))
            parts[first : first + 2] = [parts[first] + parts[first + 1]]
        if len(parts) == 2:
            pairs.append(" ".join(map(in_letters, parts)))
    return pairs


@functools.cache  # an Encoding lives as long as the program, and GPT-2's pairs take a second
def tokenizer_json(enc):
    """The text of a tokenizer.json that gives enc's ids, for the library `tokenizers`."""
    if enc.name == "tokenizer.json":  # as TokenizerFile reads it: nothing added, cut off, padded
        facts = json.loads(enc.text) | {"truncation": None, "padding": None}
        if (facts.get("post_processor") or {}).get("type") != "ByteLevel":
            facts["post_processor"] = None
        return json.dumps(facts, ensure_ascii=False)
    end = {"id": enc.eot_token, "content": "<|endoftext|>", "single_word": False, "lstrip": False,
           "rstrip": False, "normalized": False, "special": True}
    facts = {"version": "1.0", "truncation": None, "padding": None, "normalizer": None,
             "added_tokens": [] if enc.eot_token is None else [end]}
    if enc.name == "chars":  # <unk> is not in the vocabulary, so an unknown character is an error
        facts |= {"pre_tokenizer": EACH, "post_processor": None, "decoder": {"type": "Fuse"}}
        vocab = {c: i for i, c in enumerate(enc.characters)}
        facts["model"] = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    elif enc.name not in TOKENIZERS:
        raise ValueError(f"no file is known for {enc.name}")
    else:
        cut = BYTE_LEVEL | {"use_regex": enc.name == "gpt2"}
        facts |= {"pre_tokenizer": cut, "post_processor": BYTE_LEVEL, "decoder": BYTE_LEVEL}
        vocab = {in_letters(token): i for token, i in enc._mergeable_ranks.items()}
        facts["model"] = {"type": "BPE", "vocab": vocab | enc._special_tokens,
                          "merges": merges(enc)}
    return json.dumps(facts, ensure_ascii=False)


def tokenizer_files(enc, block_size):
    """{file: text} by which transformers and others encode as `enc` does, and stop at its end of
    text, or before the positions end."""
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": block_size,
              "clean_up_tokenization_spaces": False}
    generation = {"max_new_tokens": max(1, min(256, block_size // 2))}  # 256 is transformers' own
    if enc.eot_token is not None:
        for name in "bos", "eos", "unk":  # CTranslate2 asks for all three
            config[f"{name}_token"] = enc.decode([enc.eot_token])
        for name in "bos", "eos", "pad":
            generation[f"{name}_token_id"] = enc.eot_token
    return {"tokenizer.json": tokenizer_json(enc),
            "tokenizer_config.json": json.dumps(config, indent=1) + "\n",
            "generation_config.json": json.dumps(generation, indent=1) + "\n"}
