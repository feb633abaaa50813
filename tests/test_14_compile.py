"""torch.compile changes the speed and nothing else; where it cannot work, eager says so."""

import shutil
import sys

import pytest
import torch
from helpers import CPU, TINY, lively_gpt, start, write_shards

import train_gpt2
from train_gpt2 import Ranks, compile_model

compiler = pytest.mark.skipif(sys.platform == "win32" or not shutil.which("g++"),
                              reason="torch.compile on a CPU needs a C++ compiler")


@compiler
def test_compiled_loss_and_gradients_are_eager_ones():
    model = lively_gpt(n_layer=1)
    compiled = compile_model(model, CPU, wanted=True)
    assert compiled is not model
    idx, targets = torch.randint(257, (2, 16)), torch.randint(257, (2, 16))
    _, expected = model(idx, targets)
    expected.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    _, loss = compiled(idx, targets)
    loss.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient, atol=1e-5, rtol=0)


def test_default_is_on_for_cuda_alone(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model: "compiled" if model == "m" else
                        lambda x: None)
    monkeypatch.setattr(torch, "zeros", lambda *args, **kwargs: None)
    assert compile_model("m", CPU, None) == "m"
    assert compile_model("m", Ranks(torch.device("mps")), None) == "m"
    assert compile_model("m", Ranks(torch.device("cuda")), None) == "compiled"
    assert compile_model("m", Ranks(torch.device("cuda")), False) == "m"


def test_without_a_compiler_eager_in_one_line(monkeypatch, capsys):
    def broken(function):
        raise RuntimeError("Triton not found\nand a long story")

    monkeypatch.setattr(torch, "compile", broken)
    model = lively_gpt()
    assert compile_model(model, CPU, wanted=True) is model
    assert capsys.readouterr().out == (
        "torch.compile does not work here (RuntimeError): running eagerly\n")


class Recorder(torch.nn.Module):
    """Stands in for the compiled module: the same results, and a list of who called."""

    def __init__(self, model):
        super().__init__()
        self.model, self.calls = model, []
        Recorder.last = self

    def forward(self, *args):
        self.calls.append((args[0].shape, torch.is_grad_enabled()))
        return self.model(*args)


def test_compile_stays_on_with_everything_in_the_loop(tmp_path, monkeypatch):
    """Training runs the compiled module, always in one shape; evaluation the same weights plain."""
    monkeypatch.setattr(torch, "compile", lambda f: Recorder(f) if isinstance(f, train_gpt2.GPT)
                        else f)
    shards = write_shards(tmp_path / "shards")
    monkeypatch.setattr(sys, "argv", ["train_gpt2.py", "gpt2-124M", *TINY, "--data", str(shards),
                                      "--out-dir", str(tmp_path / "run"), "--compile",
                                      "--max-steps", "5", "--eval-every", "2",
                                      "--hellaswag", "heldout", "--hellaswag-limit", "20"])
    train_gpt2.main()
    assert Recorder.last.calls == [((8, 32), True)] * (5 * 2)  # 5 steps of 2 micro-steps
    log = train_gpt2.read_log(tmp_path / "run" / "log.txt")
    assert log["val"][0] == log["hella"][0] == [0, 2, 4, 5]
    # the checkpoint's names are the plain module's: with the wrapper's, this would be refused
    train_gpt2.GPT.from_pretrained(tmp_path / "run" / "checkpoint_000005")


@compiler
def test_compiled_under_two_ranks(tmp_path):
    """compile inside, DDP outside: the same losses as eagerly."""
    shards, logs = write_shards(tmp_path / "shards"), {}
    for flag in "--compile", "--no-compile":
        done = start("train_gpt2.py", *TINY, "--n-layer", 1, "--data", shards, "--max-steps", 4,
                     "--sample-tokens", 0, "--out-dir", tmp_path / flag, flag, ranks=2)
        assert done.returncode == 0, done.stderr
        assert (", compiled" in done.stdout) == (flag == "--compile")
        logs[flag] = train_gpt2.read_log(tmp_path / flag / "log.txt")
    for kind in "train", "val":
        assert logs["--compile"][kind][1] == pytest.approx(logs["--no-compile"][kind][1], abs=1e-4)
