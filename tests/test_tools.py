"""python -m build_nanogpt tools: what it compares, and that it sees differences. Tools that are
installed are run; transformers always is."""

import importlib.util
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from helpers import (
    ROOT, TINY, four_endings, gpt2_vocabulary_missing, lively_gpt, stream_of, training, write_jsonl,
)

import train_gpt2
from build_nanogpt.cli import UserError
from build_nanogpt.tools import command, python_tools
from build_nanogpt.tools.case import hard_text, make_case, settled, tokenizer_of
from nanogpt.checkpoints import save_checkpoint
from nanogpt.report import Log
from nanogpt.tokenizer import get_tokenizer

LETTERS = "chars:" + "".join(sorted(set(" Helo:,I'mangudf.\n")))


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    monkeypatch.setattr(command, "ProcessPoolExecutor", lambda *args: ThreadPoolExecutor(1))


def checkpoint(folder, key="bytes"):
    """A checkpoint of a network that was never trained."""
    enc = get_tokenizer(key)
    stream = stream_of([1, 2, 3] * 99, enc.n_vocab)
    stream.enc = enc
    t = training(lively_gpt(vocab_size=enc.n_vocab, block_size=64),
                 train_gpt2.DataLoader(stream, 1, 16), step=3)
    log = Log(folder.parent / "log.txt", master_process=True)
    log.note(config={"vocab_size": 257, "hellaswag": "none"})
    prompt = ["--prompt", "Hello, I'm a languag"]
    save_checkpoint(folder, t, train_gpt2.parse_args([*TINY, *prompt]), log_size=log.size())
    return folder


def said_by(capsys, **config):
    """The exit status of the command, and its lines for the tools."""
    with pytest.raises(SystemExit) as stop:
        command.main(command.Config(text=3000, tokens=8, **config))
    return stop.value.code, capsys.readouterr().out.splitlines()[2:]


@pytest.mark.parametrize("key", ["bytes", LETTERS], ids=["bytes", "characters"])
def test_transformers_agrees(key, tmp_path, capsys):
    """In a checkpoint, or in a run's folder, where the newest one counts."""
    folder = checkpoint(tmp_path / "checkpoint_000003", key)
    for name in folder, tmp_path:
        code, [line] = said_by(capsys, checkpoint=str(name), only=("transformers",))
        assert code == 0 and line.startswith("transformers "), line
        assert " ids equal, text equal (8 tokens), largest logit difference " in line
    code, [line] = said_by(capsys, checkpoint=str(folder), only=("sample",))
    assert code == 0 and re.fullmatch(r"sample +[\d.]+ +text equal \(8 tokens\)", line), line


@pytest.mark.parametrize("name", [name for name in command.TOOLS if name not in (
    "sample", "transformers", "transformers_js")])
@pytest.mark.parametrize("key", ["bytes", LETTERS], ids=["bytes", "characters"])
def test_what_is_installed_agrees(key, name, tmp_path, capsys):
    """Each in this process, on the same checkpoint as transformers."""
    package = command.TOOLS[name][1]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    letters = [{**each, "ctx": "Hello", "endings": ["an egg", "a fold", "nd an", "mud"]}
               for each in four_endings(6)]
    code, [line] = said_by(
        capsys, checkpoint=str(checkpoint(tmp_path / "c", key)), only=(name,),
        hellaswag=str(write_jsonl(tmp_path / "h.jsonl", letters)))
    if "not run: " in line:
        pytest.skip(line)
    assert code == 0 and "difference" in line, line


@pytest.mark.parametrize("key", ["bytes", LETTERS, pytest.param("gpt2", marks=pytest.mark.skipif(
    bool(gpt2_vocabulary_missing()), reason=gpt2_vocabulary_missing()))],
    ids=["bytes", "characters", "gpt2"])
def test_ids_are_compared_with_our_own_tokenizers(key, tmp_path, monkeypatch):
    """And not a tokenizer.json with itself, unless it is somebody else's, or nothing else is there.
    """
    folder = checkpoint(tmp_path / "c", key)
    assert tokenizer_of(folder).name == key.partition(":")[0]
    if key == "bytes":
        text = (folder / "tokenizer.json").read_text("utf-8")
        (folder / "tokenizer.json").write_text(text.replace(": 256", ":  256"), "utf-8")
        assert tokenizer_of(folder).name == "tokenizer.json"


@pytest.mark.parametrize("change, word", [
    (lambda found: {**found, "ids": found["ids"][:-1]}, "ids DIFFER"),
    (lambda found: {**found, "back": "x"}, "ids DIFFER"),
    (lambda found: {**found, "written": "x"}, "text DIFFERS"),
    (lambda found: {**found, "logits": found["logits"] + 0.002}, "difference 2.0e-03"),
    (lambda found: {**found, "logits": found["logits"] * np.nan}, "difference nan")])
def test_a_difference_is_seen(change, word, tmp_path, capsys, monkeypatch):
    original = python_tools.transformers
    monkeypatch.setattr(python_tools, "transformers", lambda *args: change(original(*args)))
    code, [line] = said_by(capsys, checkpoint=str(checkpoint(tmp_path / "c")),
                           only=("transformers",))
    assert code == 1 and "DIFFERS: " in line and word in line, line


def test_what_cannot_run_is_said_and_what_fails_counts(tmp_path, capsys, monkeypatch):
    folder = str(checkpoint(tmp_path / "c"))

    def lacks(*args):
        raise NotImplementedError("needs a file")

    def fails(*args):
        raise RuntimeError("broken\nhere")

    monkeypatch.setitem(command.TOOLS, "lm_eval", ("python_tools", "no-such-package", 1e-3))
    code, [line] = said_by(capsys, checkpoint=folder, only=("lm_eval",))
    assert (code, line.split(maxsplit=1)[1]) == (
        0, "not run: not installed: pip install no-such-package")
    monkeypatch.setattr(python_tools, "transformers", lacks)
    code, [line] = said_by(capsys, checkpoint=folder, only=("transformers",))
    assert code == 0 and line.endswith("not run: needs a file")
    monkeypatch.setattr(python_tools, "transformers", fails)
    code, [line] = said_by(capsys, checkpoint=folder, only=("transformers",))
    assert code == 1 and line.endswith("failed: RuntimeError: broken here")


@pytest.mark.parametrize("config, word", [
    (dict(only=("gpt4all",)), "no tool gpt4all"), (dict(tokens=0), "--tokens 0"),
    (dict(text=0), "--text 0"), (dict(prompt="x" * 64), "has 64 tokens: give 1 to 63"),
    (dict(checkpoint="nowhere"), "nowhere is neither")])
def test_bad_flags(config, word, tmp_path):
    folder = str(checkpoint(tmp_path / "c"))
    with pytest.raises(UserError, match=word):
        command.main(command.Config(**{"checkpoint": folder, **config}))


def test_the_hard_text(tmp_path):
    """Of characters that the tokenizer has, and of all planes where it has all."""
    text = hard_text(get_tokenizer("bytes"), 9000)
    assert {ord(c) >> 16 for c in text} == set(range(17)) and "<|endoftext|>" in text
    assert "<|endoftext|>" not in settled(text, "<|endoftext|>")
    assert max(map(ord, settled(text))) < 0x10FFFF
    enc = get_tokenizer(LETTERS)
    assert len(set(hard_text(enc, 999))) > 9 and enc.encode_ordinary(hard_text(enc, 999))
    case = make_case(command.Config(checkpoint=str(checkpoint(tmp_path / "c")), text=99))
    assert replace(case, text="") != case and len(case.new_ids) == 32


def test_the_page_names_every_tool():
    """In the order of the lines that the command prints, with what each needs."""
    page = (ROOT / "docs/tools.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)`", page, re.M) == list(command.TOOLS)
    assert len(re.findall(r"^- \*\*", page, re.M)) >= 6
