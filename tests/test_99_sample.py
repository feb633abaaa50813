"""sample.py writes what transformers would, each sample in its turn, and nothing else."""

import json
import re
import signal
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers import (
    gpt2_vocabulary_missing, letters_gpt, lively_gpt, offline, refusal, small_gpt, start,
)
from safetensors.torch import load_file, save_file

import sample
from nanogpt.common import run
from nanogpt.exports import tokenizer_files
from nanogpt.sampling import say_once
from nanogpt.tokenizer import get_tokenizer

RULE = "---------------\n"


@pytest.fixture
def folder(tmp_path):
    """A network of 16 positions, in transformers' layout."""
    lively_gpt().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def said(monkeypatch, capsys):
    """said(MODEL, ...): what the program prints, in this process: (stdout, stderr)."""
    def call(*args):
        monkeypatch.setattr(sys, "argv", ["sample.py", "--device", "cpu", *map(str, args)])
        say_once.cache_clear()
        run(sample.main)
        return capsys.readouterr()

    return call


@torch.no_grad()
def transformers_says(folder, prompt, n):
    """Its greedy text, prompt included."""
    from transformers import GPT2LMHeadModel

    ids = torch.tensor([list(prompt.encode())])
    found = GPT2LMHeadModel.from_pretrained(folder).generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False,
        pad_token_id=0, eos_token_id=None)
    return bytes(found[0].tolist()).decode("utf-8", "replace").rstrip("\ufffd")


def test_at_temperature_0_it_is_transformers_text(folder, said):
    out, err = said(folder, "abé", "--temperature", 0, "--max-tokens", 12)
    assert out == transformers_says(folder, "abé", 12) + "\n" and err == ""


LETTERS = "chars:" + "".join(sorted(set(" abcdefghijklmnopqrstuvwxyzT.\n")))


@pytest.mark.parametrize("key", ["bytes", LETTERS, pytest.param("gpt2", marks=pytest.mark.skipif(
    gpt2_vocabulary_missing() != "", reason=gpt2_vocabulary_missing()))],
    ids=["bytes", "characters", "gpt2"])
def test_at_temperature_0_a_pipeline_writes_the_same(key, tmp_path, said):
    from transformers import pipeline

    enc = get_tokenizer(key)
    lively_gpt(vocab_size=enc.n_vocab, block_size=64).save_pretrained(tmp_path)
    for name, text in tokenizer_files(enc, 64).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    [theirs] = pipeline("text-generation", str(tmp_path))("The cat", max_new_tokens=40,
                                                          do_sample=False)
    out, _ = said(tmp_path, "The cat", "--temperature", 0, "--max-tokens", 40)
    assert out == theirs["generated_text"].rstrip("\ufffd") + "\n"
    assert len(set(enc.encode_ordinary(out))) > 12


def test_samples_in_their_order_however_many_at_once(folder, said):
    flags = [folder, "The ", "--max-tokens", 40, "--seed", 3]
    out, err = said(*flags, "--n", 32)
    texts = out.split(RULE)
    assert len(set(texts)) == 32 and all(text.startswith("The ") for text in texts)
    assert all(text.endswith("\n") for text in texts)
    assert err == "past 16 tokens the window slides: it reads the last 8 to 16\n"
    for more in ["--n", 32, "--B", 1], ["--n", 32, "--B", 5], ["--n", 2], ["--n", 1]:
        assert said(*flags, *more).out == RULE.join(texts[: more[1]])
    assert said(*flags[:-1], 4).out != texts[0]


def test_far_past_the_window(folder, said):
    letters_gpt().save_pretrained(folder)
    out, err = said(folder, "x", "--max-tokens", 3000)
    assert re.fullmatch("x[a-z]{3000}\n", out) and err.count("slides") == 1
    assert said(folder, "y" * 40, "--max-tokens", 1).err.count("slides") == 1
    assert said(folder, "y" * 8, "--max-tokens", 8).err == ""


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_16_bits(dtype, folder, said):
    assert said(folder, "a", "--dtype", dtype, "--max-tokens", 9).out.startswith("a")


def test_of_a_run_the_newest_or_the_best_checkpoint(tmp_path, said):
    for seed, step in enumerate((5, 10, 15)):
        lively_gpt(seed=seed).save_pretrained(tmp_path / f"checkpoint_{step:06d}")
    (tmp_path / "log.txt").write_text("5 val 3.0\n10 val 1.0\n15 val 2.0\n")
    flags = ["a", "--temperature", 0, "--max-tokens", 15]
    by_step = {step: said(tmp_path / f"checkpoint_{step:06d}", *flags).out for step in (10, 15)}
    assert said(tmp_path, *flags).out == by_step[15] != by_step[10]
    assert said(tmp_path, *flags, "--best").out == by_step[10]


@pytest.mark.skipif(gpt2_vocabulary_missing() != "", reason=gpt2_vocabulary_missing())
def test_gpt2s_vocabulary_and_its_padding(tmp_path, said):
    """A folder with 50,304 rows, as nanoGPT has them: the last 47 have no token."""
    model = small_gpt(vocab_size=50257, n_embd=8)
    model.save_pretrained(tmp_path / "model")
    padded = small_gpt(vocab_size=50304, n_embd=8)
    padded.load_state_dict({name: torch.cat((t, 9 + torch.zeros(47, 8))) if len(t) == 50257 else t
                            for name, t in model.state_dict().items()})
    padded.save_pretrained(tmp_path / "padded")
    flags = ["Hello, I'm", "--n", 3, "--max-tokens", 12]
    assert said(tmp_path / "padded", *flags).out == said(tmp_path / "model", *flags).out


class Scripted:
    """A network that says these bytes."""

    def __init__(self, *texts):
        self.texts, self.config = texts, SimpleNamespace(block_size=64)
        self.lm_head = SimpleNamespace(weight=torch.zeros(1))

    def next_tokens(self, idx, max_new_tokens, choose, keep):
        self.idx = idx.tolist()
        for ids in zip(*self.texts, strict=True):
            yield torch.tensor(ids)[:, None]


def scripted(*texts, prompt="", enc=None, **config):
    config = sample.Config("m", n=len(texts), max_tokens=len(texts[0]), **config)
    net = Scripted(*texts)
    sample.write(net, enc or get_tokenizer("bytes"), config, prompt)
    return net


def test_a_sample_that_ends_early_waits_for_those_before_it(capsys):
    scripted([97] * 6, [98, 256, 99, 99, 99, 99], list(b"c--ddd"), stop=("--",), prompt="> ")
    assert capsys.readouterr().out == f"> aaaaaa\n{RULE}> b\n{RULE}> c\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_control_characters_stay_away_from_a_terminal(terminal, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    scripted(list("a\t\x1b[31m\r\nb\x07\x9b".encode()))
    assert capsys.readouterr().out == (
        "a\t\ufffd[31m\r\nb\ufffd\ufffd\n" if terminal else "a\t\x1b[31m\r\nb\x07\x9b\n")


def test_without_a_prompt_a_document_begins_or_a_line(capsys):
    """Characters may have no end-of-text."""
    assert scripted([97]).idx == [[256]]
    enc = SimpleNamespace(eot_token=None, encode_ordinary=lambda text: [ord(c) for c in text],
                          decode_bytes=bytes)
    assert scripted([97], enc=enc).idx == [[10]]
    assert scripted([1], enc=get_tokenizer("chars:ab")).idx == [[0]]  # nor an end of a line
    assert capsys.readouterr().out == "a\na\nb\n"


def test_a_prompt_longer_than_the_network(capsys):
    prompt = "".join(map(chr, range(32, 127)))
    assert scripted([97], prompt=prompt).idx == [list(range(127 - 64, 127))]
    assert capsys.readouterr().out == prompt + "a\n"


def test_started_by_a_script(folder):
    """No prompt and no terminal, nothing on stderr."""
    done = start("sample.py", folder, "--max-tokens", 15, "--device", "cpu")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.endswith("\n")


@pytest.mark.parametrize("args, words", [
    (["nowhere"], "no model nowhere: choose gpt2, gpt2-medium"),
    (["{tmp}"], "no checkpoint in {tmp}: name the folder of a run, or one with"),
    (["{model}", "--best"], "no checkpoint with a validation loss in {model}"),
    (["{model}", "FILE:{tmp}/nothing"], "cannot read the prompt 'FILE:"),
    (["{model}", "FILE:{tmp}/latin"], "give text in UTF-8"),
    (["{model}", "caf\udce9"], "cannot read the prompt 'caf\\udce9'"),
    (["{model}", "--top-p", "0"], "--top-p 0.0: give more than 0"),
    (["{model}", "--top-p", "1.1"], "--top-p 1.1"),
    (["{model}", "--top-p", "nan"], "--top-p nan"),
    (["{model}", "--top-k", "-1"], "--top-k -1: give 0 or more"),
    (["{model}", "--temperature", "-0.1"], "--temperature -0.1: give 0"),
    (["{model}", "--temperature", "nan"], "--temperature nan"),
    (["{model}", "--n", "0"], "--n 0: give 1 or more"),
    (["{model}", "--B", "0"], "--B 0: give 1 or more"),
    (["{model}", "--max-tokens", "0"], "--max-tokens 0: give 1 or more"),
    (["{model}", "--stop", ""], "--stop ''"),
    (["{model}", "--device", "tpu"], "--device tpu"),
    (["{nan}"], "not finite"),
    (["{other}"], "1000 ids"),
])
def test_bad_input_is_one_line(args, words, folder, tmp_path, monkeypatch, capsys):
    offline(monkeypatch, tmp_path / "cache")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    small_gpt(vocab_size=1000).save_pretrained(tmp_path / "other")
    small_gpt().save_pretrained(tmp_path / "nan")
    state = load_file(tmp_path / "nan" / "model.safetensors")
    name = "transformer.ln_f.bias"
    save_file(state | {name: state[name] * torch.nan}, tmp_path / "nan" / "model.safetensors")
    names = {"tmp": tmp_path, "model": folder, "nan": tmp_path / "nan", "other": tmp_path / "other"}
    args = [arg.format(**names) for arg in args]
    assert words.format(**names) in refusal(sample.main, "--device", "cpu", *args,
                                            monkeypatch=monkeypatch, capsys=capsys)


def test_a_folder_whose_tokenizer_is_another_models(folder, monkeypatch, capsys):
    monkeypatch.setattr(sample, "folder_key", lambda place: "bytes")
    config = json.loads((folder / "config.json").read_text())
    small_gpt(vocab_size=400).save_pretrained(folder)
    assert config["vocab_size"] == 257
    assert "has 400 ids, and its tokenizer 257" in refusal(
        sample.main, folder, "--device", "cpu", monkeypatch=monkeypatch, capsys=capsys)


def test_importing_it_leaves_signals_alone():
    """Only the program itself ends with its reader."""
    if hasattr(signal, "SIGPIPE"):
        assert signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN  # Python's own
