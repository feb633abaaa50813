"""The house's rules that a machine can check: style, README, the command that CI runs."""

import ast
import re
import subprocess
import sys

import pytest
import torch
from helpers import ROOT

from train_gpt2 import GPT, PRESETS, GPTConfig

SCRIPTS = ["train_gpt2.py", "fineweb.py", "hellaswag.py", "common.py",
           *(f"nanogpt/{path.name}" for path in sorted((ROOT / "nanogpt").glob("*.py")))]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_ruff_is_content():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", "."], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_functions_fit_on_a_screen(name):
    for node in ast.walk(ast.parse(read(name))):
        if isinstance(node, ast.FunctionDef) and node.name != "main":
            assert node.end_lineno - node.lineno < 60, f"{name}: {node.name}"


def test_ci_runs_what_the_readme_says():
    readme, script = read("README.md"), read(".ci/run")
    assert "    pip install -e . && python train_gpt2.py laptop\n" in readme
    assert "    pip install -e '.[test]' && pytest\n" in readme
    commands = [line for line in script.splitlines() if line.startswith("python -m")]
    assert commands == ["python -m pip install -q -e '.[test]'", "python -m pytest"]


def test_readmes_table_of_sizes_is_true():
    rows = re.findall(r"^\| `([\w.-]+)`.*?\| (\d+), (\d+), ([\d,]+) \| ([\d,]+) \| (\d+) \| "
                      r"([\d.e-]+) \| ([\d,]+) \|$", read("README.md"), re.MULTILINE)
    assert [row[0] for row in rows] == list(PRESETS)
    for name, *numbers in rows:
        preset = PRESETS[name]
        with torch.device("meta"):
            model = GPT(GPTConfig(preset.T, preset.vocab_size, preset.n_layer, preset.n_head,
                                  preset.n_embd))
        assert [float(number.replace(",", "")) for number in numbers] == [
            preset.n_layer, preset.n_head, preset.n_embd, model.num_params(), preset.T,
            preset.max_lr, preset.total_batch_size], name
