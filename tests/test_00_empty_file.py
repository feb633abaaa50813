"""Every script imports silently: no output, no network, nothing started, nothing written."""

# check: always (it reads every script of the folder)

import ast
import subprocess
import sys

import pytest
from helpers import ROOT, start

SCRIPTS = {".".join(path.relative_to(ROOT).with_suffix("").parts): path
           for path in sorted([*ROOT.glob("*.py"), *ROOT.glob("nanogpt/*.py")])}

WATCHED_IMPORT = """
import os, socket, sys
def refuse(*args, **kwargs):
    raise SystemExit("the import opened a socket")
socket.socket.connect = socket.getaddrinfo = refuse
import {name}
if "torch" in sys.modules:
    import torch
    assert not torch.cuda.is_initialized()
    assert not torch.distributed.is_initialized()
"""


def test_the_program_is_there_and_runs():
    assert {"nanogpt.common", "train_gpt2"} <= set(SCRIPTS)
    assert start("train_gpt2.py", "--help").returncode in (0, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_import_is_silent(name, tmp_path):
    """Importing the file must print nothing, start nothing and touch no network."""
    done = subprocess.run([sys.executable, "-c", WATCHED_IMPORT.format(name=name)], cwd=tmp_path,
                          env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path),
                               "PYTHONDONTWRITEBYTECODE": "1"},
                          capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_program_stands_alone(name):
    """The program never leans on the tools around the lecture."""
    assert "build_nanogpt" not in SCRIPTS[name].read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SCRIPTS)
def test_text_is_opened_with_an_encoding(name):
    """A Windows machine with another code page would read it wrong."""
    for node in ast.walk(ast.parse(SCRIPTS[name].read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(
            node.func, "id", "")
        binary = any(isinstance(a, ast.Constant) and "b" in str(a.value) for a in node.args[1:2])
        method = isinstance(node.func, ast.Attribute)
        if method and called in ("read_text", "write_text") or (
                called == "open" and not method and not binary):
            assert "encoding" in {k.arg for k in node.keywords}, f"{name} line {node.lineno}"
