"""The house rules a machine can check: lengths, rooms, silent imports, style, README, CI."""

import ast
import graphlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# found without helpers.py: a circle of imports is to be reported, so it must not end this file
ROOT = Path(__file__).resolve().parent.parent

# Every file of the program and the most lines it may have, in the order of imports: a file uses
# only those above it. Past its budget, take a line out, or argue for more in the commit.
BUDGETS = {
    "nanogpt/terminal.py": 110,
    "nanogpt/__init__.py": 5,
    "nanogpt/common.py": 150,
    "nanogpt/settings.py": 60,
    "nanogpt/presets.py": 120,
    "nanogpt/disk.py": 150,
    "nanogpt/lock.py": 50,
    "nanogpt/weights.py": 150,
    "nanogpt/models.py": 100,
    "nanogpt/characters.py": 100,
    "nanogpt/tokenizer_file.py": 100,
    "nanogpt/tokenizer.py": 150,
    "nanogpt/gigatoken.py": 70,
    "nanogpt/exports.py": 100,
    "nanogpt/launch.py": 100,
    "nanogpt/heartbeat.py": 120,
    "nanogpt/ranks.py": 200,
    "nanogpt/perplexity.py": 120,
    "nanogpt/records.py": 100,
    "nanogpt/formats.py": 150,
    "nanogpt/sources.py": 250,
    "nanogpt/manifest.py": 100,
    "nanogpt/shards.py": 300,
    "nanogpt/ramp.py": 100,
    "nanogpt/cpu.py": 150,
    "nanogpt/trial.py": 150,
    "nanogpt/track.py": 60,
    "nanogpt/fsdp.py": 150,
    "nanogpt/muon.py": 110,
    "nanogpt/sharding.py": 200,
    "nanogpt/drift.py": 150,
    "nanogpt/health.py": 130,
    "nanogpt/report.py": 320,
    "nanogpt/cards.py": 60,
    "nanogpt/memory.py": 140,
    "nanogpt/speed.py": 100,
    "nanogpt/card.py": 120,
    "nanogpt/checkpoints.py": 405,
    "nanogpt/sampling.py": 100,
    "nanogpt/guard.py": 150,
    "nanogpt/losses.py": 50,
    "nanogpt/profiler.py": 60,
    "hellaswag.py": 350,
    "fineweb.py": 360,
    "nanogpt/own_text.py": 100,
    "nanogpt/plan.py": 200,
    "nanogpt/scores.py": 150,
    "train_gpt2.py": 800,
    "sample.py": 150,
}
# The tools, in the order of imports.
TOOLS = ["cli", "lecture", "check", "bench", "proof", "tools"]
WITHOUT_THE_PROGRAM = ["cli", "lecture", "check"]  # they repair it, so it may be broken

PROGRAM = [path.relative_to(ROOT).as_posix()
           for path in sorted([*ROOT.glob("*.py"), *ROOT.glob("nanogpt/**/*.py")])
           if path.name != "conftest.py"]
TOOL_FILES = [path.relative_to(ROOT).as_posix()
              for path in sorted(ROOT.glob("build_nanogpt/**/*.py"))]
FILES = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path
         for path in PROGRAM + TOOL_FILES}  # by module


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def imports(path):
    """The files of ours that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(read(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} line {node.lineno}: write the whole name of the module"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {FILES[name] for name in names if name in FILES} - {"build_nanogpt/__init__.py"}


def test_every_file_of_the_program_has_a_budget():
    assert sorted(BUDGETS) == sorted(PROGRAM)


@pytest.mark.parametrize("path", BUDGETS)
def test_length(path):
    lines = read(path).count("\n")
    assert lines <= BUDGETS[path], f"{path} has {lines} lines, {BUDGETS[path]} at most"


@pytest.mark.parametrize("path", PROGRAM + TOOL_FILES)
def test_functions_fit_on_a_screen(path):
    for node in ast.walk(ast.parse(read(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= 60, f"{path}: {node.name} has {lines} lines, 60 at most"


@pytest.mark.parametrize("path", BUDGETS)
def test_a_file_of_the_program_uses_only_those_above_it(path):
    order = list(BUDGETS)
    below = imports(path) - set(order[: order.index(path)])
    assert not below, f"{path} imports {sorted(below)}"


@pytest.mark.parametrize("path", TOOL_FILES)
def test_tools_import_in_one_direction(path):
    place = path.split("/")[1].removesuffix(".py")
    if place in ("__init__", "__main__"):
        return
    allowed = TOOLS[: TOOLS.index(place) + 1]
    for used in imports(path):
        if used in BUDGETS:
            assert place not in WITHOUT_THE_PROGRAM, f"{path} imports {used}"
        else:
            assert used.split("/")[1].removesuffix(".py") in allowed, f"{path} imports {used}"


def test_no_circle_of_imports():
    graphlib.TopologicalSorter({path: imports(path) for path in PROGRAM + TOOL_FILES}).prepare()


def test_the_first_code_is_gpt2():
    defined = [node.name for node in ast.parse(read("train_gpt2.py")).body
               if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    assert defined[:2] == ["GPTConfig", "CausalSelfAttention"]


WATCH = """
import importlib, sys, threading
events = {"socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec",
          "os.fork", "os.posix_spawn"}
def refuse(event, args):
    if event in events:
        raise SystemExit(f"importing {name}: {event} {args}")
sys.addaudithook(refuse)
for name in sys.argv[1:]:
    importlib.import_module(name)
    if threading.active_count() > 1:
        sys.exit(f"importing {name}: {threading.enumerate()}")
if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
    sys.exit("CUDA is initialized")
print("torch" in sys.modules, end="")
"""


@pytest.mark.parametrize("heavy", [True, False], ids=["program and bench", "lecture and check"])
def test_imports_print_start_and_reach_nothing(heavy, tmp_path):
    """Of every file, in a fresh process; and what repairs the lecture does without torch."""
    light = [name for name, path in FILES.items() if path.startswith("build_nanogpt/") and (
        path.count("/") == 1 or path.split("/")[1] in WITHOUT_THE_PROGRAM)]
    names = light if not heavy else ["train_gpt2", *(name for name in FILES if name not in light)]
    done = subprocess.run([sys.executable, "-c", WATCH, *names], cwd=tmp_path, capture_output=True,
                          text=True, env={"PYTHONPATH": str(ROOT), "PATH": "",
                                          "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"})
    assert (done.returncode, done.stdout, done.stderr) == (0, str(heavy), "")
    assert list(tmp_path.iterdir()) == []


def is_installed():
    """Whether `pip install -e .` was run in this folder. (setuptools' egg-info, which lies in the
    folder itself, counts as a distribution too, and does not say.)"""
    facts = [each.read_text("direct_url.json")
             for each in importlib.metadata.distributions(name="build_nanogpt")]
    return ROOT.as_uri() in [json.loads(text)["url"] for text in facts if text]


@pytest.mark.skipif(not is_installed(), reason="needs pip install -e . in this folder")
def test_installed_it_can_be_imported_in_any_folder(tmp_path):
    code = "from train_gpt2 import GPT, GPTConfig; print(GPT.__module__, GPTConfig().n_layer)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True,
                          text=True)
    assert (done.stdout, done.stderr) == ("train_gpt2 12\n", "")


LEAVES = """
import multiprocessing.util, subprocess, sys, tempfile

def test_that_leaves_folders(tmp_path):
    tempfile.mkdtemp(dir=tmp_path)
    tempfile.mkdtemp()
    multiprocessing.util.get_temp_dir()
    subprocess.run([sys.executable, "-c", "import tempfile; tempfile.mkdtemp()"], check=True)
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_a_test_run_leaves_only_pytests_own_folder(workers, tmp_path):
    """In the temporary folder, where torchrun, torch.compile and multiprocessing leave theirs."""
    for name in "temporary", "tests":
        (tmp_path / name).mkdir()
    (tmp_path / "tests/conftest.py").write_text(read("tests/conftest.py"), encoding="utf-8")
    (tmp_path / "tests/test_it.py").write_text(LEAVES, encoding="utf-8")
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-n", str(workers), "tests"],
                          cwd=tmp_path, env=env | {"TMPDIR": str(tmp_path / "temporary")},
                          capture_output=True, text=True)
    assert "1 passed" in done.stdout and "Error" not in done.stderr, done.stdout + done.stderr
    [left] = (tmp_path / "temporary").iterdir()
    assert left.name.startswith("pytest-of-")


def test_ruff_is_content():
    """By name, since another test may have a temporary folder in this one."""
    names = ["build_nanogpt", "examples", "nanogpt", "steps", "tests",
             *(path.name for path in ROOT.glob("*.py"))]
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", *names], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_ci_runs_what_the_readme_says():
    readme, script = read("README.md"), read(".ci/run")
    assert "pip install -e . && python train_gpt2.py laptop\n" in readme
    assert "pip install -e '.[test]' && pytest\n" in readme
    commands = [line.replace(" -q", "") for line in script.splitlines()
                if line.startswith("python -m")]
    assert commands == ["python -m pip install -e '.[test]'", "python -m pytest",
                        "python -m build_nanogpt check --latest-only"]


def test_readmes_table_of_sizes_is_true():
    import torch

    from train_gpt2 import GPT, PRESETS, GPTConfig

    rows = re.findall(r"^\| `([\w.-]+)`.*?\| (\d+), (\d+), ([\d,]+) \| ([\d,]+) \| (\d+) \| "
                      r"([\d.e-]+) \| ([\d,]+) \|$", read("README.md"), re.MULTILINE)
    assert [row[0] for row in rows] == list(PRESETS)
    n_ids = {"laptop": 257, "shakespeare-char": 65, "shakespeare-char-cpu": 65}
    for name, *numbers in rows:
        preset = PRESETS[name]
        with torch.device("meta"):
            model = GPT(GPTConfig(preset.T, n_ids.get(name, 50257), preset.n_layer, preset.n_head,
                                  preset.n_embd))
        assert [float(number.replace(",", "")) for number in numbers] == [
            preset.n_layer, preset.n_head, preset.n_embd, model.num_params(), preset.T,
            preset.max_lr, preset.total_batch_size], name
