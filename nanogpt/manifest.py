"""What a folder of shards says it is: its manifest.json."""

import json
from pathlib import Path

from nanogpt.common import UserError
from nanogpt.tokenizer import TOKENIZERS, key_of, tokenizer_name


def read_manifest(path):
    """A manifest.json: all of it, its tokenizer's key, {shard: tokens}, {shard: SHA-256, or ""}.
    Raises UserError if it is not one."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        key = key_of(manifest, path.parent)
        listed = {str(shard["file"]): int(shard["tokens"]) for shard in manifest["shards"]}
        sums = {str(shard["file"]): str(shard.get("sha256", "")) for shard in manifest["shards"]}
        return manifest, key, listed, sums
    except UserError:  # about its tokenizer.json
        raise
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} is not a valid manifest ({type(error).__name__}): make the shards "
                        "again, or remove it if they are from elsewhere") from None


def find_tokenizer(data, vocab_size=None):
    """(Key of --data's tokenizer, number of ids, end-of-text id or None): the manifest's;
    without one, by vocab_size, where None means GPT-2's. Raises UserError if the two differ."""
    path, facts = Path(data, "manifest.json"), {}
    if data == "pydoc":
        key = "bytes"
    elif path.exists():
        facts, key, _, _ = read_manifest(path)
    else:
        key = tokenizer_name(vocab_size or TOKENIZERS["gpt2"])
    n_ids = TOKENIZERS.get(key) or facts.get("vocab_size")
    if vocab_size not in (None, n_ids):
        raise UserError(f"{data} was made with tokenizer {facts.get('tokenizer', key)}, but the "
                        f"run uses {tokenizer_name(vocab_size)}: leave out --vocab-size")
    if type(n_ids) is not int or not 1 <= n_ids <= 2**16:
        raise UserError(f"{path} says vocab_size = {n_ids}: make the shards again")
    return key, n_ids, facts.get("end_of_text", n_ids - 1)


def check_manifest(path, tokenizer, shards):
    """Refuse shards of another tokenizer, and shards that are not the ones listed.

    Returns {file: its SHA-256, or ""}.
    """
    manifest, made_with, listed, sums = read_manifest(path)
    if made_with != tokenizer:
        raise UserError(f"the shards in {path.parent} were made with tokenizer "
                        f"{manifest['tokenizer']}, but the run uses {tokenizer}: choose other "
                        "--data, or leave out --vocab-size")
    found = {Path(shard.name).name: shard.n_tokens for shard in shards}
    for name in sorted(listed.keys() | found.keys()):
        if found.get(name) != listed.get(name):
            raise UserError(f"{path.parent / name} holds {found.get(name, 'no')} tokens, and the "
                            f"manifest lists {listed.get(name, 'none')}: make the shards again")
    return sums
