"""Every script imports silently: no output, no network, nothing started, nothing written."""

import subprocess
import sys

import pytest
from helpers import ROOT

SCRIPTS = ["train_gpt2", "fineweb", "hellaswag"]

WATCHED_IMPORT = """
import os, socket, sys
def refuse(*args, **kwargs):
    raise SystemExit("the import opened a socket")
socket.socket.connect = socket.getaddrinfo = refuse
import {name}
import torch
assert not torch.cuda.is_initialized()
assert not torch.distributed.is_initialized()
"""


@pytest.mark.parametrize("name", SCRIPTS)
def test_import_is_silent(name, tmp_path):
    done = subprocess.run([sys.executable, "-c", WATCHED_IMPORT.format(name=name)], cwd=tmp_path,
                          env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path),
                               "PYTHONDONTWRITEBYTECODE": "1"},
                          capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [*SCRIPTS, "common"])
def test_program_stands_alone(name):
    """The program never leans on the tools around the lecture."""
    assert "build_nanogpt" not in (ROOT / f"{name}.py").read_text(encoding="utf-8")
