"""Bad input, in tables: {(program, words): {name: what is done to a file}}, and the same for flags.

The program must say the words in one line `error: ...` on stderr (of flags that it cannot read,
tyro's own text), end with status 2, and leave every file that was there as it was. Where there are
no words it must end well, with the right result and nothing on stderr. Nothing outside of its
output folder is ever touched. Rows named "not yet" do not hold, and must fail until they do.

At the end hypothesis looks for what nobody thought of: the same few inputs every time, 5,000 new
ones with `pytest --runslow tests/test_fuzz.py`, in three or four minutes of one core.
"""

import dataclasses
import io
import json
import os
import re
import shutil
import struct
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hypothesis.configuration
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiktoken.load
import torch
from helpers import (
    expected_tokens, four_endings, make_documents, offline, small_gpt, tokens_of, write_jsonl,
    write_parquet, write_shards,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file

import fineweb
import hellaswag
import sample
import train_gpt2
from nanogpt.common import run
from nanogpt.disk import digest
from nanogpt.shards import load_data

hypothesis.configuration.set_hypothesis_home_dir(tempfile.gettempdir())  # no .hypothesis here
HUGE, TYRO = 10**30, "╭─"

# programs: main, flags, the folder that it may write to
SMALL = ("--vocab-size 257 --n-layer 1 --n-head 2 --n-embd 8 --device cpu --B 2 --T 8 "
         "--total-batch-size 16 --warmup-steps 1 --val-tokens 32 --sample-tokens 0 --eval-every 3 "
         "--hellaswag none --max-steps 3 --checkpoint-every 1 --data shards").split()
TRAIN = train_gpt2.main, (*SMALL, "--out-dir", "new"), "new"
TUNE = train_gpt2.main, (*SMALL, "--out-dir", "new", "--init-from", "model"), "new"
RESUME = train_gpt2.main, (*SMALL, "--out-dir", "run", "--resume"), "run"
WRITE = sample.main, tuple("run a --max-tokens 3 --device cpu".split()), None
SCORE = hellaswag.main, tuple("--model model --data h.jsonl --device cpu".split()), None
LOOK = (lambda: look(*load_data(train_gpt2.parse_args(SMALL)))), (), None
EXAMPLES = (lambda: print(len(hellaswag.load_examples("h.jsonl")))), (), None
MAKE = fineweb.main, tuple("--source docs --tokenizer bytes --out out --workers 2 --shard-size 500"
                           .split()), "out"
READ, READ_JSON, READ_CSV = (
    (fineweb.main, tuple(f"--source t.{kind} --tokenizer bytes --out new --workers 2".split()),
     "new") for kind in ("txt", "jsonl", "csv"))


def look(train, val):
    """Print the tokens of --data, as a run checks and reads them."""
    train.check()
    val.check()
    print(train.read(0, train.n_tokens).tolist())


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A folder with all that the programs read, whole. No network, threads for processes, and no
    waiting for the disk or for a picture's pixels."""
    def no_network(url):
        raise OSError("tests do not download")

    box = tmp_path_factory.mktemp("whole")
    write_shards(box / "shards", 200, 60, shards=1)
    write_parquet(box / "docs", make_documents(12), row_group_size=3)
    small_gpt(n_layer=1, n_embd=8, block_size=8).save_pretrained(box / "model")
    write_jsonl(box / "h.jsonl", four_endings(6))
    write_jsonl(box / "t.jsonl", [{"text": text, "n": 1} for text in make_documents(12)])
    (box / "t.csv").write_text('text,n\n"a ""quoted"" word\nand a line",1\nb,\n' * 9)
    (box / "t.txt").write_bytes("".join(make_documents(12)).encode())
    with pytest.MonkeyPatch.context() as patch:
        offline(patch, tmp_path_factory.mktemp("cache"))
        patch.setattr(tiktoken.load, "read_file", no_network)
        patch.setattr(fineweb, "ProcessPoolExecutor", lambda n, *how: ThreadPoolExecutor(n))
        patch.setattr(os, "fsync", lambda number: None)
        patch.setattr(Figure, "savefig", lambda self, path, **how: Path(path).write_bytes(b"png"))
        with pytest.MonkeyPatch.context() as here:
            here.chdir(box)
            for main, args, _ in MAKE, RESUME:
                here.setattr(sys, "argv", ["program", *args])
                main()
        yield box


@pytest.fixture
def box(template, tmp_path):
    return shutil.copytree(template, tmp_path / "box")


def contents(folder):
    """The bytes of all files under a folder, and None for its folders."""
    return {path.relative_to(folder): path.read_bytes() if path.is_file() else None
            for path in folder.rglob("*")}


def obey(command, box, capfd):
    """Run a program in the folder `box` and check the rule. Returns its status and its words."""
    (main, args, out), before, code = command, contents(box), 0
    capfd.readouterr()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as warned:
        for kind in DeprecationWarning, PendingDeprecationWarning, ResourceWarning:
            warnings.simplefilter("ignore", kind)
        patch.chdir(box)
        patch.setattr(sys, "argv", ["program", *args])
        try:
            run(main)
        except SystemExit as stop:
            code = stop.code or 0
    said, after = capfd.readouterr(), contents(box)
    err = re.sub(r"\r[^\r\n]*\n?", "", said.err)  # progress bars
    assert code in (0, 2) and not warned, err + str(warned)
    changed = {path for path in before.keys() | after.keys()
               if before.get(path, "absent") != after.get(path, "absent")}
    assert not [path for path in changed if path.parts[0] != out], f"touched {changed}: {err}"
    if code == 0:
        assert not err or main is sample.main and err.startswith("past 8 tokens the window slides")
        return code, said.out
    # weights that are not finite are reported by the checkpoint that holds them, too
    assert re.fullmatch("(error: the last checkpoint: .+\n)?error: .+\n", err) or err.startswith(
        TYRO) and not changed, err
    # of a killed run the halves go; a run that meets a loss of nan has begun, so its log grows
    begun = re.search("^error: (loss|validation loss) ", err, re.MULTILINE)
    harmed = [path for path in changed & before.keys()
              if ".checkpoint_" not in str(path) and not begun]
    assert not harmed, f"harmed {harmed}: {err}"
    return code, err


def table(rows):
    """pytest's parameters (program, words, what) of a table as above."""
    return [pytest.param(*key, what, id=name, marks=[pytest.mark.xfail(strict=True)] * (
        name.startswith("not yet"))) for key, named in rows.items() for name, what in named.items()]


# what can be done to a file: each returns a function of the box


def put(path, data):
    return lambda box: (box / path).write_bytes(data)


def lost(path):
    return lambda box: (box / path).unlink()


def edit(path, change):
    """change(bytes of the file) -> its new bytes."""
    return lambda box: (box / path).write_bytes(change((box / path).read_bytes()))


def half(path):
    return edit(path, lambda data: data[: len(data) // 2])


def values(path, drop=None, **new):
    """Change values of a JSON file."""
    return edit(path, lambda data: json.dumps(
        {k: v for k, v in (json.loads(data) | new).items() if k != drop}).encode())


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return train_shard(".npy", file.getvalue())


def header(text):
    text = text.encode() + b"\n"
    data = b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + TOKENS.tobytes()
    return train_shard(".npy", data)


def shaped(shape):
    return header(f"{{'descr': '<u2', 'fortran_order': False, 'shape': {shape}}}")


def llmc(magic=20240520, version=1, n=40):
    return train_shard(".bin", np.array([magic, version, n] + 253 * [0], "<i4").tobytes()
                       + TOKENS.tobytes())


def train_shard(ending, data):
    """The training shard is this file, and no manifest lists it."""
    def change(box):
        (box / "shards/manifest.json").unlink()
        (box / "shards/text_train_000001.npy").unlink()
        (box / f"shards/x_train_000001{ending}").write_bytes(data)

    return change


def documents(column, name="text"):
    """docs/ holds this column alone, and nothing is made of it yet."""
    def change(box):
        shutil.rmtree(box / "out")
        (box / "docs/001.parquet").unlink()
        pq.write_table(pa.table({name: column}), box / DOCS)

    return change


def moved(path):
    """The newest checkpoint has another name."""
    return lambda box: (box / LAST).rename(box / path)


def linked(box):
    """The newest checkpoint has moved to another disk."""
    moved("run/elsewhere")(box)
    (box / LAST).symlink_to("elsewhere")


def signed(damage):
    """Damage that the checkpoint's manifest agrees with, as a stranger's file might be."""
    def change(box):
        damage(box)
        files = [path for path in (box / LAST).iterdir() if path.name != "manifest.json"]
        (box / LAST / "manifest.json").write_text(json.dumps({p.name: digest(p) for p in files}))

    return change


def lines(encoding="utf-8", **change):
    """h.jsonl, with each example changed."""
    rows = [json.dumps(row | change, ensure_ascii=False) for row in four_endings(6)]
    return put("h.jsonl", "\n".join(rows).encode(encoding))


def tensors(change):
    """change(the model's tensors) -> its new ones."""
    def damage(box):
        found = change({name: t.clone() for name, t in load_file(box / WEIGHTS).items()})
        save_file({name: t.contiguous() for name, t in found.items()}, box / WEIGHTS)

    return damage


def padded(n):
    """The model has n ids, more than its tokenizer."""
    def change(box):
        values(CONFIG, vocab_size=n)(box)
        tensors(lambda t: t | {WTE: torch.cat([t[WTE], torch.ones(n - 257, 8)])})(box)

    return change


TOKENS = np.random.default_rng(0).integers(0, 257, 40).astype("<u2")
TEXTS = pa.array(make_documents(12))
LISTED, MADE, DOCS = "shards/manifest.json", "out/manifest.json", "docs/000.parquet"
LAST, STATE = "run/checkpoint_000003", "run/checkpoint_000003/state.json"
CONFIG, WEIGHTS = "model/config.json", "model/model.safetensors"
FC, BIAS, WTE = "h.0.mlp.c_fc.weight", "transformer.h.0.mlp.c_fc.bias", "transformer.wte.weight"
NO_BIAS = tensors(lambda t: {k: t[k] for k in t if k != BIAS})
NAN = tensors(lambda t: t | {BIAS: t[BIAS] * float("nan")})
FILES = {
    (LOOK, ""): {"a shard": npy(TOKENS), "llm.c's": llmc()},
    (LOOK, "less than one batch"): {"one token": npy(TOKENS[:1]), "no tokens": npy(TOKENS[:0])},
    (LOOK, "the vocabulary ends at 256"): {"too large an id": npy(TOKENS + 200)},
    (LOOK, "not uint16 in one dimension"): {
        "int64": npy(TOKENS.astype(int)), "int16": npy(TOKENS.astype("<i2")),
        "float16": npy(TOKENS.astype("<f2")), "big-endian": npy(TOKENS.astype(">u2")),
        "fields": npy(TOKENS.view([("a", "<u2")])), "2 dimensions": npy(TOKENS.reshape(2, 20))},
    (LOOK, "no llm.c header"): {"Llama 3's": llmc(20240801, 7), "version 2": llmc(version=2),
                                "nanoGPT's": train_shard(".bin", TOKENS.tobytes())},
    (LOOK, "bytes where"): {"39": shaped("(39,)"), "39 in .bin": llmc(n=39),
                            "41 in .bin": llmc(n=41), "-40 in .bin": llmc(n=-40)},
    (LOOK, "is not a complete shard"): {
        "an empty shard": train_shard(".npy", b""), "objects": npy(TOKENS.astype(object)),
        "Python 2's": shaped("(40L,)"), "shape -1": shaped("(-1,)"), "shape 41": shaped("(41,)"),
        "shape ()": shaped("()"), "shape 2**62": shaped(f"({2**62},)"), "list": header("[1]"),
        "git-lfs": train_shard(".npy", b"version https://git-lfs.github.com/spec/v1\n"),
        "a web page": train_shard(".npy", b"<!DOCTYPE html>" + bytes(2000))},
    (TRAIN, "is not a valid manifest ("): {
        "no JSON": put(LISTED, b"{"), "list": put(LISTED, b"[]"), "deep": put(LISTED, b"[" * 10**5),
        "UTF-16": edit(LISTED, lambda data: data.decode().encode("utf-16")),
        "no tokenizer": values(LISTED, "tokenizer"), "shards 5": values(LISTED, shards=5),
        "infinity": edit(LISTED, lambda data: data.replace(b": 60", b": Infinity"))},
    (TRAIN, "was made with tokenizer gpt2"): {
        "another tokenizer": values(LISTED, tokenizer="gpt2")},
    (TRAIN, "tokens, and the manifest lists"): {
        "one more": edit(LISTED, lambda data: data.replace(b": 60", b": 61")),
        "none listed": values(LISTED, shards=[]), "lost": lost("shards/text_val_000000.npy")},

    (MAKE, ""): {
        "cut shard": half("out/docs_train_000002.npy"), "no val": lost("out/docs_val_000000.npy"),
        "large strings": documents(TEXTS.cast(pa.large_string())),
        "nulls": documents(pa.array([None, *TEXTS.to_pylist()])),
        "categories": documents(TEXTS.dictionary_encode()),
        "string views": documents(TEXTS.cast(pa.string_view())),
        "binary": documents(TEXTS.cast(pa.binary())), "another name": documents(TEXTS, "body")},
    (MAKE, "000.parquet"): {
        "Latin-1": documents(pa.array([b"caf\xe9"]).view(pa.string()))},
    (MAKE, "docs holds no documents"): {"all null": documents(pa.array([None], pa.string())),
                                        "no rows": documents(TEXTS[:0])},
    (MAKE, "no text named text or content"): {"numbers": documents(pa.array([1, 2]))},
    (MAKE, "is not a manifest that fineweb.py wrote"): {
        "cut manifest": half(MADE), "{}": put(MADE, b"{}")},
    (MAKE, "begun with order_seed = 1, not None"): {"order": values(MADE, order_seed=1)},
    (MAKE, "begun with files"): {"other files": values(MADE, files={}), "cut docs": half(DOCS)},
    (MAKE, "and no manifest.json"): {"no manifest": lost(MADE)},

    (RESUME, "passed over run/checkpoint_000003"): {
        "cut checkpoint": half(f"{LAST}/model.safetensors"),
        "signed list": signed(put(STATE, b"[]")), "deep": signed(put(STATE, b"[" * 10**5)),
        "signed step": signed(values(STATE, step=2)), "no place": signed(values(STATE, "position")),
        "signed spikes": signed(values(STATE, spikes={"loss": ["x"]})),
        "signed choices": signed(values(STATE, chosen=None))},
    (RESUME, "passed over run/checkpoint_000009"): {"renumbered": moved("run/checkpoint_000009")},
    (RESUME, "passed over run/checkpoint_000004"): {"file": put("run/checkpoint_000004", b"x")},
    (RESUME, "at step 2 of"): {"half saved": moved("run/.checkpoint_000003.tmp")},
    (RESUME, "at step 3 of"): {"link": linked, "note": put(f"{LAST}/README.md", b"x")},
    (RESUME, "error: run/log.txt, line 1"): {"another log": put("run/log.txt", b"\xff\0\n")},
    (RESUME, "error: --data shards does not"): {"shards": signed(values(STATE, shards=[]))},
    (RESUME, "error: run was begun with --n-layer 12"): {"{}": signed(values(STATE, config={}))},

    (EXAMPLES, ""): {
        "examples": lines(), "label 3 as text": lines(label="3"), "3.0": lines(label=3.0),
        "Windows": edit("h.jsonl", lambda data: data.replace(b"\n", b"\r\n")),
        "surrogate": edit("h.jsonl", lambda data: data.replace(b'ctx": "', b'ctx": "\\ud83d')),
        "BOM": lines("utf-8-sig"),
        "empty line": edit("h.jsonl", lambda data: data + b"\n")},
    (EXAMPLES, "h.jsonl line 1 is not a HellaSwag example (this is not UTF-8)"): {
        "Latin-1 jsonl": lines("latin-1", ctx="Caf\xe9"), "UTF-16 jsonl": lines("utf-16")},
    (EXAMPLES, "take validation"): {"test split": lines(label=""), "no label": lines(label=None)},
    (EXAMPLES, "holds no examples"): {"empty jsonl": put("h.jsonl", b"")},
    (EXAMPLES, "label"): {"4": lines(label=4)},
    (EXAMPLES, "endings are not four texts"): {
        "3 endings": lines(endings=["a", "b", "c"]), "empty": lines(endings=["a", "b", "c", ""]),
        "numbers in them": lines(endings=[1, 2, 3, 4]), "null": lines(endings=None)},
    (EXAMPLES, "ctx is not text"): {"no ctx": lines(ctx=""), "ctx null": lines(ctx=None)},
    (EXAMPLES, "h.jsonl line 1 is not a HellaSwag example"): {
        "a number": put("h.jsonl", b"1"), "array": put("h.jsonl", b"[{}]"),
        "depth": put("h.jsonl", b"[" * 10**5), "zip": put("h.jsonl", b"PK\3\4\0\0"),
        "gzip": put("h.jsonl", b"\x1f\x8b\x08\0"), "parquet": put("h.jsonl", b"PAR1\0\0")},

    (TUNE, ""): {"model": tensors(dict), "float16": tensors(lambda t: {k: t[k].half() for k in t}),
                 "the hub's names": tensors(lambda t: {k[12:]: t[k] for k in t})},
    (TUNE, "cannot get the weights of model"): {"none": lost(WEIGHTS), "cut": half(WEIGHTS),
                                                "pickle": put(WEIGHTS, b"\x80\x02}q\0.")},
    (TUNE, "model/config.json says "): {
        "Bloom": values(CONFIG, model_type="bloom"), "wide MLP": values(CONFIG, n_inner=64),
        "-1 layers": values(CONFIG, n_layer=-1), "10**9 layers": values(CONFIG, n_layer=10**9),
        "layers as text": values(CONFIG, n_layer="1")},
    (TUNE, "lacks weights of its config.json"): {"no bias": NO_BIAS},
    (TUNE, "has the shape"): {
        "wider": values(CONFIG, n_embd=16), "fewer ids": tensors(lambda t: t | {WTE: t[WTE][:200]}),
        "nanoGPT's Linear": tensors(lambda t: {k: t[k].t() if FC in k else t[k] for k in t})},
    (TUNE, ", which GPT-2 does not have"): {
        "more": tensors(lambda t: t | {"score": t[BIAS] + 1}),
        "compiled": tensors(lambda t: {f"_orig_mod.{k}": t[k] for k in t})},
    (TUNE, "model: left out 43 of 300 ids"): {"padded": padded(300)},
    (TUNE, "has 400 ids, the run 257"): {"another tokenizer's": padded(400)},
    (TUNE, BIAS): {"nan": NAN, "int8": tensors(lambda t: t | {BIAS: t[BIAS].to(torch.int8)}),
                   "twice": tensors(lambda t: t | {BIAS[12:]: t[BIAS] + 1})},
    (TUNE, "lm_head"): {"untied": tensors(lambda t: t | {"lm_head.weight": t[WTE] + 1})},
    (SCORE, ""): {"scored": tensors(dict), "scored padded": padded(300)},
    (SCORE, "cannot get the model model"): {"scored cut": half(WEIGHTS), "gone": lost(WEIGHTS)},
    (SCORE, "does not fit its config.json"): {"scored wider": values(CONFIG, n_embd=16)},
    (SCORE, "config.json says quantization_config"): {
        "quantized": values(CONFIG, quantization_config={"quant_method": "gptq"})},
    (SCORE, "lacks weights of its config.json"): {"scored less": NO_BIAS},
    (SCORE, "belongs to no known tokenizer"): {"scored, another's": padded(400)},
    (SCORE, "error: example"): {"scored nan": NAN},
}


@pytest.mark.parametrize("command, words, damage", table(FILES))
def test_files(command, words, damage, box, template, capfd):
    damage(box)
    code, said = obey(command, box, capfd)
    fine = not words or command is RESUME and not words.startswith("error") or "left out" in words
    assert code == (0 if fine else 2) and words in said, said
    if fine and command is LOOK:
        assert said == f"{TOKENS.tolist()}\n"
    elif fine and command is EXAMPLES:
        assert said == "6\n"
    elif fine and command is SCORE:
        assert said.count(" of 6)") == 2
    elif fine and command is MAKE:
        assert tokens_of(box / "out").tolist() == expected_tokens(make_documents(12))
    elif fine and command is RESUME:  # to the bits of the run that nobody disturbed
        found, whole = (load_file(each / LAST / "model.safetensors") for each in (box, template))
        assert all(torch.equal(found[name], whole[name]) for name in whole)


FLAGS = {  # (program, words): flags
    (TRAIN, ""): [f"--warmup-steps {HUGE}", "--temperature 1e-40 --sample-tokens 2", "--keep 1",
                  "--hellaswag h.jsonl", "--prompt  --sample-tokens 2"],
    (TRAIN, TYRO): ["--n-layer x", "--B 1.5", "--max-lr", "--dtype float64", "--nonsense 1", "--B=",
                    "--compile=perhaps", "--n-layer 1 2"],
    (TRAIN, "no preset"): ["nowhere", "laptop124"],
    (TRAIN, "give "): ["--n-layer 0", "--max-lr nan", "--seed 9223372036854775808"],
    (TRAIN, "is not a multiple of"): ["--B 3", "--n-head 3"],
    (TRAIN, "cannot write to"): ["--out-dir h.jsonl", f"--out-dir {'x' * 300}"],
    (TRAIN, "no train shards in"): ["--data nowhere", "--data model"],
    (TRAIN, "no file nowhere.txt: name a txt"): ["--data nowhere.txt"],
    (TRAIN, "no HellaSwag file"): ["--hellaswag nowhere", "--hellaswag model"],
    (TRAIN, "cannot get"): ["--init-from gpt2", "--hellaswag Rowan/hellaswag"],
    (TRAIN, "no model"): ["--init-from nowhere", "--init-from h.jsonl"],
    (TRAIN, "tokens, less than"): ["--T 64 --total-batch-size 128", "--total-batch-size 256"],
    (TRAIN, "--device"): ["--device tpu", "--device meta", "--device cuda:99", "--device="],
    (TRAIN, "tokenizer"): ["--vocab-size 258", "--vocab-size 50257"],
    (RESUME, "run was begun with --n-embd 8, not 16"): ["--n-embd 16"],
    (RESUME, "is at step 3: give more"): ["--max-steps 2"],
    (SCORE, ""): ["--limit 6"], (SCORE, TYRO): ["--limit x"], (SCORE, "give 1"): ["--limit 0"],
    (SCORE, "no HellaSwag file"): ["--data nowhere", "--data model"],
    (SCORE, "cannot get the model"): ["--model nowhere", "--model shards"],
    (MAKE, ""): ["--workers 1"], (MAKE, TYRO): ["--seed 1e3"],
    (MAKE, "no tokenizer x"): ["--tokenizer x"],
    (MAKE, "give "): ["--shard-size 0", "--workers 0", "--max-tokens -1", f"--shard-size {HUGE}"],
    (MAKE, "nothing to read"): ["--source shards", "--source model/model.safetensors"],
    (MAKE, "--seed 1 is for parquet"): ["--source t.txt --seed 1"],
    (MAKE, "begun with files"): ["--source docs/000.parquet", "--source h.jsonl --column ctx"],
    (MAKE, "no file, folder or data set a/b"): ["--source a/b"],
    (MAKE, "out was begun with val = 0.1, not 0.2"): ["--val 0.2"],
    (MAKE, "between 0 and 1"): ["--val 0", "--val nan", "--val 1"],
    (MAKE, "out was begun with shard_size = 500, not 300"): ["--shard-size 300"],
    # where GPT-2's vocabulary is cached, and where it is not
    (MAKE, "tokenizer = bytes, not gpt2|cannot get GPT-2's vocabulary"): ["--tokenizer gpt2"],
    (MAKE, "is not a manifest that fineweb.py wrote"): ["--out shards"],
}


@pytest.mark.parametrize("command, words, flags", [
    pytest.param(*key, flags, id=f"{key[0][2]} {flags[:30]}") for key in FLAGS
    for flags in FLAGS[key]])
def test_flags(command, words, flags, box, capfd):
    main, args, out = command
    args = [flags, *args] if words == "no preset" else [*args, *flags.split(" ")]
    code, said = obey((main, args, out), box, capfd)
    assert code == (2 if words else 0) and any(part in said for part in words.split("|")), said


# what nobody thought of: flags, words for flags, other values in a JSON file, other bytes in any

WORDS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5),
    st.sampled_from(["", "--", "-1", "nan", "1_0", "\u0661", "[red]", "%s", str(HUGE), "--B", "--T",
                     "--max-lr", "--seed", "--limit", "--workers", "--tokenizer", "--help"]))
JUNK = [None, True, -1, 0, 2, 1.5, HUGE, 1e308, float("nan"), "", "5", "../x", "\ud800", [], {},
        [[]], [None], {"": {}}]
JSON = {LISTED: TRAIN, "h.jsonl": SCORE, CONFIG: TUNE, STATE: RESUME, MADE: MAKE,
        "t.jsonl": READ_JSON, f"{LAST}/tokenizer.json": WRITE, f"{LAST}/config.json": WRITE}
BYTES = JSON | {"shards/text_train_000001.npy": TRAIN, WEIGHTS: TUNE, DOCS: MAKE, "t.txt": READ,
                "t.csv": READ_CSV}


def places(value):
    """(holder, key) of everything in a JSON value."""
    keys = value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    return [place for key in keys for place in ((value, key), *places(value[key]))]


def other_value(draw):
    def change(data):
        lines = data.startswith((b'{"ctx', b'{"text'))
        found = [json.loads(data.splitlines()[0] if lines else data)]
        holder, key = draw(st.sampled_from(places(found)))
        holder[key] = draw(st.sampled_from(JUNK))
        return json.dumps(found[0]).encode()

    return change


def other_bytes(draw):
    def change(data):
        at = draw(st.integers(0, 999)) * len(data) // 1000
        gone = draw(st.sampled_from([0, 1, HUGE]))
        return data[:at] + draw(st.binary(max_size=9)) + data[at + gone :]

    return change


@pytest.fixture
def fuzz(request):
    """fuzz(check): check(draw) of hypothesis, often."""
    slow = request.config.getoption("--runslow", default=False)
    few = settings(max_examples=1260 if slow else 25, derandomize=not slow, database=None,
                   deadline=None, suppress_health_check=list(HealthCheck))

    def search(check):
        tried = []

        def attempt(data):
            tried.append(None)
            check(data.draw)

        few(given(st.data())(attempt))()
        if slow:
            print(f"\n{request.node.name}: {len(tried)} inputs", file=sys.__stderr__)

    return search


@pytest.mark.parametrize("files, other", [(JSON, other_value), (BYTES, other_bytes)])
def test_any_file(files, other, fuzz, template, capfd):
    def check(draw):
        path = draw(st.sampled_from(list(files)))
        with tempfile.TemporaryDirectory() as folder:
            box = shutil.copytree(template, Path(folder) / "box")
            damage = edit(path, other(draw))
            (signed(damage) if path == STATE else damage)(box)
            obey(files[path], box, capfd)

    fuzz(check)


NUMBERS = ["", "x", "None", "-1", "0", "1", "2", "3", "4", "8", "16", "20", "1e3", "0.5", "1e-300",
           "1e30", "1e300", "nan", "inf", "-inf", *map(str, (2**31, 2**63, HUGE))]
NAMES = ["", "nowhere", "a/b", "x" * 300, "none", "heldout", "pydoc", "h.jsonl", "docs", "shards",
         "model", "run", "out", "auto", "cpu", "cuda", "mps", "meta", "cpu:7", "\u00e4\n", "[red]",
         "%s", "docs/000.parquet", LISTED, "gpt2", "Rowan/hellaswag", "HuggingFaceFW/fineweb-edu"]
ENDLESS = "max_steps", "sample_tokens", "n", "max_tokens"  # what the user asks for may take a year


def flags_of(config):
    """Every flag of a program with values that its type allows, and some that it does not."""
    for field in dataclasses.fields(config):
        name, kind = field.name.replace("_", "-"), str(field.type)
        if field.name == "compile":  # it takes seconds
            yield from ("--no-compile", "--compile=x")
        elif "bool" in kind:
            yield from (f"--{name}", f"--no-{name}", f"--{name}=x")
        else:
            plain = NAMES if "str" in kind else NUMBERS[: -3 if field.name in ENDLESS else None]
            for value in re.findall("'(.*?)'", kind) + ["x"] if "Literal" in kind else plain:
                yield f"--{name}={value}"


CONFIGS = {TRAIN: train_gpt2.TrainConfig, TUNE: train_gpt2.TrainConfig, SCORE: hellaswag.Config,
           RESUME: train_gpt2.TrainConfig, MAKE: fineweb.Config, WRITE: sample.Config}


def test_any_flags(fuzz, template, capfd):
    flags = {command: list(flags_of(config)) for command, config in CONFIGS.items()}

    def check(draw):
        command = draw(st.sampled_from(list(CONFIGS)))
        main, args, out = command
        more = draw(st.lists(st.sampled_from(flags[command]), min_size=1, max_size=3))
        for flag in more:
            if flag.startswith(("--out=", "--out-dir=")):
                out = flag.partition("=")[2].partition("/")[0]
        with tempfile.TemporaryDirectory() as folder:
            box = shutil.copytree(template, Path(folder) / "box")
            obey((main, [*args, *more], out), box, capfd)

    fuzz(check)


def test_any_words(fuzz, template, capfd):
    def check(draw):
        main, _, _ = draw(st.sampled_from([TRAIN, SCORE, MAKE, WRITE]))
        words = draw(st.lists(WORDS, min_size=1, max_size=3))
        obey((main, [*words, "--nonsense"], None), template, capfd)

    fuzz(check)
