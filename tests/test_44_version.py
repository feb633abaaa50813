"""What a report of a mistake needs: --version, and a traceback that says so."""

import platform
import subprocess
import sys

import torch
from helpers import ROOT, start

import nanogpt


def test_version(tmp_path):
    done = start("train_gpt2.py", "--version")
    assert done.returncode == 0 and not done.stderr and done.stdout.count("\n") == 1
    for part in (f"lecture {nanogpt.__version__}", f"Python {platform.python_version()}",
                 f"torch {torch.__version__}", platform.system()):
        assert part in done.stdout


def test_a_traceback_says_what_to_do_with_it():
    code = "from nanogpt.common import run\ndef main():\n    return 1 / 0\nrun(main)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr
    assert sys.version_info < (3, 11) or "please report it as an issue" in done.stderr
