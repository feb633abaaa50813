"""--data may be a text: its shards are made once, beside it, as fineweb.py makes them."""

import json
import re
from dataclasses import replace
from pathlib import Path

import fineweb
from nanogpt.common import UserError
from nanogpt.disk import digest
from nanogpt.formats import KINDS
from nanogpt.lock import locked
from nanogpt.ranks import one_rank_first
from nanogpt.sources import ADDRESS, find_source, look_through
from nanogpt.tokenizer import folder_key


def is_text(data):
    """Whether --data is a text: a file, an address, shakespeare, or a folder of files that are not
    shards."""
    path = Path(data)
    if not (data and path.is_dir()):
        named = KINDS.search(path.name)  # even if it is not there
        return data == "shakespeare" or path.is_file() or bool(named or ADDRESS.match(data))
    shards = any(file.suffix in (".npy", ".bin", ".safetensors") or file.name == "manifest.json"
                 for file in path.iterdir())
    return not shards and bool(look_through(path)[0])


def folder_beside(data, tokenizer):
    """The folder for a text's shards, named after it and the tokenizer: beside it; in data/ if it
    is from elsewhere."""
    path = Path("data/shakespeare" if data == "shakespeare" else data)
    if address := ADDRESS.match(data):
        path = Path("data", re.sub(r"[^\w.-]+", "_", data[address.end() :])[-200:].strip("._"))
    if tokenizer.endswith(".json") and Path(tokenizer).exists():  # every checkpoint has one
        tokenizer = f"{Path(tokenizer).stem}-{digest(tokenizer)[1][:8]}"
    return Path(f"{path if path.name.strip('.') else path.resolve()}.{Path(tokenizer).name}")


def own_tokenizer(config):
    """The key of a text's tokenizer: --tokenizer, else that of --init-from's folder, else gpt2."""
    folder = config.init_from if Path(config.init_from or "-").is_dir() else None
    return config.tokenizer or (folder_key(folder) if folder else "gpt2")


def own_shards(config, ranks):
    """The config, with its text's shards as --data, which one rank of each machine makes."""
    if not is_text(config.data):
        return config
    data, key = config.data, own_tokenizer(config)
    out = folder_beside(data, key)
    with one_rank_first(ranks):
        if ranks.ddp_local_rank == 0:
            try:
                make(data, key, out)
            except UserError as error:
                said = str(error).replace("--source", "--data").partition(", a data set of")[0]
                more = f" (python fineweb.py --source {data} --tokenizer {key} --out F; --data F)"
                raise UserError(said + more * any(
                    word in said for word in ("--column", "--out", "another folder"))) from None
    return replace(config, data=str(out))


def make(data, tokenizer, out):
    """Make a text's shards in `out`, unless they are there, of the same text and tokenizer."""
    source = find_source(data)
    made_from = {name: [size, Path(source.path(i)).stat().st_mtime_ns]
                 for i, (name, size) in enumerate(zip(source.files, source.sizes, strict=True))}
    old, files = read_old(out)
    if old.get("complete") and old.get("made_from") == made_from and all(
            (out / file).exists() for file in files):
        return
    print(f"{data}: its shards are made in {out}, with --tokenizer {tokenizer}", flush=True)
    if not any(source.texts()):  # looks at the first: one that cannot be read changes nothing
        raise UserError(f"{data} holds no text: name another --data")
    if old.get("made_from", made_from) != made_from:
        with locked(out, "program", "--data", wait=True):
            old, files = read_old(out)  # again: now nobody else writes there
            for file in files if old.get("made_from") != made_from else ():
                (out / file).unlink(missing_ok=True)
    fineweb.make_shards(fineweb.Config(source=data, out=str(out), tokenizer=tokenizer),
                        wait=True, made_from=made_from)


def read_old(out):
    """The manifest in `out` and the names of its files, its own last; {} if none can be read."""
    try:
        old = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
        files = [Path(shard["file"]).name for shard in old["shards"]]
        return old, files + ["tokenizer.json"] * ("tokenizer_sha256" in old) + ["manifest.json"]
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return {}, []
