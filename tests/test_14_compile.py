"""torch.compile changes the speed and nothing else; where it cannot work, eager says so."""

import functools
import shutil
import sys

import pytest
import torch
from helpers import TINY, lively_gpt, write_data

import train_gpt2
from train_gpt2 import compile_model

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))

compiler = pytest.mark.skipif(sys.platform == "win32" or not shutil.which("g++"),
                              reason="torch.compile on a CPU needs a C++ compiler")


@pytest.mark.slow
def test_compiled_loss_and_gradients_are_eager_ones(monkeypatch):
    """Traced and differentiated ahead of time, without the minute that a C++ compiler takes."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    same_as_eager(lively_gpt(n_layer=1))


@compiler
@pytest.mark.slow
def test_compiled_by_the_compiler_too():
    same_as_eager(lively_gpt(n_layer=1, n_embd=16))


def same_as_eager(model):
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
    monkeypatch.setattr(torch, "compile", lambda model, **how: "compiled" if model == "m" else
                        lambda x: None)
    monkeypatch.setattr(torch, "zeros", lambda *args, **kwargs: None)
    assert compile_model("m", CPU, None) == "m"
    assert compile_model("m", MPS, None) == "m"
    assert compile_model("m", CUDA, None) == "compiled"
    assert compile_model("m", CUDA, False) == "m"


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


def test_training_runs_the_compiled_module(tmp_path, monkeypatch):
    """Training runs the compiled module, and it is called in one shape alone."""
    monkeypatch.setattr(torch, "compile", lambda f, **how: (
        Recorder(f) if isinstance(f, train_gpt2.GPT) else f))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train_gpt2.py", *TINY, "--data",
                                      str(write_data(tmp_path / "data")), "--compile",
                                      "--max-steps", "3"])
    train_gpt2.main()
    calls = Recorder.last.calls
    assert {shape for shape, _ in calls} == {(8, 32)}
    assert [training for _, training in calls].count(True) == 3 * 2  # 3 steps of 2 micro-steps


def test_flags_for_compile():
    assert train_gpt2.parse_args([]).compile is None
    assert train_gpt2.parse_args(["--compile"]).compile is True
    assert train_gpt2.parse_args(["--no-compile"]).compile is False
