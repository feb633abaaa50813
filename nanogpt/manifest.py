"""What a folder of shards says it is: its manifest.json."""

import json
from pathlib import Path

from nanogpt.common import UserError


def check_manifest(path, tokenizer, shards):
    """Refuse shards of another tokenizer, and shards that are not the ones listed.

    Returns {file: its SHA-256, or ""}.
    """
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        made_with = str(manifest["tokenizer"])
        listed = {str(shard["file"]): int(shard["tokens"]) for shard in manifest["shards"]}
        sums = {str(shard["file"]): str(shard.get("sha256", "")) for shard in manifest["shards"]}
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} is not a valid manifest ({type(error).__name__}): make the shards "
                        "again, or remove it if they are from elsewhere") from None
    if made_with != tokenizer:
        raise UserError(f"the shards in {path.parent} were made with tokenizer {made_with}, but "
                        f"the run uses {tokenizer}: choose other --data, or another --vocab-size")
    found = {Path(shard.name).name: shard.n_tokens for shard in shards}
    for name in sorted(listed.keys() | found.keys()):
        if found.get(name) != listed.get(name):
            raise UserError(f"{path.parent / name} holds {found.get(name, 'no')} tokens, and the "
                            f"manifest lists {listed.get(name, 'none')}: make the shards again")
    return sums
