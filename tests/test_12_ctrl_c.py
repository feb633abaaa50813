"""Ctrl-C ends a program in silence from its first import on; whoever imports it keeps his own."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
from helpers import ROOT

PROGRAMS = [name for name in ("train_gpt2.py", "hellaswag.py", "fineweb.py")
            if (ROOT / name).exists()]
PROGRAM = """
import signal
from nanogpt.common import run
def handler():
    print({signal.SIG_DFL: "kills", signal.default_int_handler: "raises",
           signal.SIG_IGN: "ignored"}[signal.getsignal(signal.SIGINT)])
handler()
run(handler)
handler()
"""
STOPPED = """
import os, signal
from nanogpt.common import run
def main():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        print("tidied up")
run(main)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to another process")
@pytest.mark.parametrize("module", ["dataclasses", "tyro", "numpy"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_during_the_imports(program, module, tmp_path):
    """The signal comes in the middle of one of them."""
    kill = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"
    (tmp_path / f"{module}.py").write_text(kill)
    done = subprocess.run([sys.executable, ROOT / program], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


@pytest.fixture
def project(tmp_path):
    """A folder with the rooms and two programs."""
    shutil.copytree(ROOT / "nanogpt", tmp_path / "project" / "nanogpt")
    (tmp_path / "project" / "program.py").write_text(PROGRAM)
    (tmp_path / "project" / "stopped.py").write_text(STOPPED)
    return tmp_path / "project"


def lines_of(*command, cwd, **more):
    done = subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(cwd)}, **more)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no preexec_fn")
def test_importing_changes_nothing(project, tmp_path):
    """Only a program that Python was started with is changed, and only outside run()."""
    (tmp_path / "elsewhere.py").write_text(PROGRAM)
    as_a_notebook_does = "import runpy; runpy.run_path('program.py', run_name='__main__')"
    assert lines_of("program.py", cwd=project) == ["kills", "raises", "kills"]
    for command in ["-c", PROGRAM], ["-c", as_a_notebook_does], [tmp_path / "elsewhere.py"]:
        assert lines_of(*command, cwd=project) == ["raises"] * 3, command
    assert lines_of("program.py", cwd=project, preexec_fn=lambda: signal.signal(
        signal.SIGINT, signal.SIG_IGN)) == ["ignored"] * 3


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to another process")
def test_while_main_runs(project):
    """It tidies up; then it says nothing, and the status is the shell's own for Ctrl-C."""
    done = subprocess.run([sys.executable, "stopped.py"], cwd=project, capture_output=True,
                          text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "tidied up\n", "")
