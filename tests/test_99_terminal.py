"""sample.py at a terminal, in a pipe, and interrupted."""

import contextlib
import os
import re
import signal
import subprocess
import sys

import pytest
from helpers import ROOT, letters_gpt

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has neither of them")

LONG = ["--max-tokens", str(10**7), "--device", "cpu"]


@pytest.fixture
def folder(tmp_path):
    letters_gpt().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def program(*args, **more):
    return subprocess.Popen([sys.executable, ROOT / "sample.py", *map(str, args)],
                            env=os.environ | {"OMP_NUM_THREADS": "1", "TERM": "dumb"}, **more)


SLIDES = b"past 16 tokens the window slides: it reads the last 8 to 16\n"


@pytest.mark.parametrize("name, status", [("SIGTERM", -15), ("SIGINT", 130), ("SIGKILL", -9)])
def test_killed_in_the_middle(name, status, folder):
    """What was written stays, without a traceback; and it had been written as it came."""
    with program(folder, "ab", *LONG, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        begun = process.stdout.read(300)
        process.send_signal(getattr(signal, name))
        rest, said = process.communicate(timeout=60)
    assert re.fullmatch(b"ab[a-z]{298,}", begun + rest)
    assert (process.returncode, said) == (status, SLIDES)


def test_its_reader_leaves(folder):
    """As with `| head`: it ends at once, in silence."""
    with program(folder, "ab", *LONG, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(20)
        process.stdout.close()
        assert (process.stderr.read(), process.wait(60)) == (SLIDES, -signal.SIGPIPE)


@pytest.mark.parametrize("module", ["dataclasses", "tyro"])
def test_ctrl_c_during_the_imports(module, tmp_path):
    kill = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"
    (tmp_path / f"{module}.py").write_text(kill)
    done = subprocess.run([sys.executable, ROOT / "sample.py", "gpt2"], capture_output=True,
                          env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


class Terminal:
    """Someone at a terminal with the program in front."""

    def __init__(self, *args):
        self.ours, theirs = os.openpty()
        # a session whose terminal this is, so that Ctrl-C goes to the program
        code = ("import fcntl, os, sys, termios; os.setsid(); "
                "fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])")
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, sys.executable, ROOT / "sample.py", *map(str, args)],
            stdin=theirs, stdout=theirs, stderr=theirs,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TERM": "dumb"})
        os.close(theirs)

    def until(self, pattern):
        """What appears, up to a match of the pattern."""
        seen = ""
        while not re.search(pattern, seen):
            part = os.read(self.ours, 1).decode("ascii")
            assert part, seen
            seen += part
        return re.sub(r"\x1b\[\?2004[hl]\r?", "", seen).replace("\r\n", "\n")

    def type(self, keys):
        os.write(self.ours, keys.encode())

    def edits_lines(self):
        """Whether readline waits for a line; otherwise the terminal's driver collects it."""
        import termios  # Windows has none

        return not termios.tcgetattr(self.ours)[3] & termios.ICANON


def test_a_conversation(folder):
    """It asks, writes, asks; Ctrl-C stops a text, the next one still comes; Ctrl-D ends."""
    terminal = Terminal(folder, *LONG)
    assert terminal.until("prompt: ") == "prompt: "
    terminal.type("ab\n")
    seen = terminal.until("[a-z]{100}")
    assert seen.startswith("ab\n" + SLIDES.decode() + "ab")
    terminal.type("\x03")
    assert terminal.until("prompt: ").endswith("\n\nprompt: ")
    terminal.type("cd\n")
    assert "slides" not in terminal.until("cd[a-z]{100}")
    terminal.type("\x03")
    terminal.until("prompt: ")
    terminal.type("\x04")
    assert terminal.process.wait(60) == 0
    os.close(terminal.ours)


def test_a_prompt_on_the_command_line_is_not_a_conversation(folder):
    """The text, and how fast it came; ended by Ctrl-C at once."""
    terminal = Terminal(folder, "ab", "--max-tokens", 14, "--device", "cpu")
    seen = terminal.until("tokens/s\r?\n")
    assert re.fullmatch(r"ab[a-z]{14}\n14 tokens, [\d.]+ tokens/s\n", seen)
    assert terminal.process.wait(60) == 0
    os.close(terminal.ours)
    terminal = Terminal(folder)
    terminal.until("prompt: ")
    # Python's readline shows the prompt, then begins to listen: a Ctrl-C between the two is noted
    # but wakes nothing. Press it again, as people do, while readline still has the terminal.
    for _ in range(60):
        if terminal.edits_lines():
            terminal.type("\x03")
        with contextlib.suppress(subprocess.TimeoutExpired):
            terminal.process.wait(1)
            break
    assert terminal.process.returncode == 130
    os.close(terminal.ours)
