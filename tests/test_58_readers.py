"""Whoever reads what a program prints may leave: the program goes on, and its status is its own."""

import io
import os
import subprocess
import sys

import pytest
from helpers import ROOT, TINY, start, write_shards

from nanogpt.common import UserError, run
from nanogpt.report import read_log

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no preexec_fn")

PROGRAM = """
import sys
from tqdm import tqdm
from nanogpt.common import UserError, run

def main():
    for i in tqdm(range(3000), file=sys.stderr):
        print("more than a pipe holds", i)
    print("a note", file=sys.stderr)
    with open(sys.argv[1], "w") as file:
        file.write("everything")
        file.flush()
        print("said to nobody")
        sys.stdout.flush()
    if len(sys.argv) > 2:
        raise UserError("bad")

run(main)
"""


def a_pipe():
    """Its reading end is closed: EPIPE."""
    ours, theirs = os.pipe()
    os.close(ours)
    return theirs


def a_terminal():
    """It is closed: EIO."""
    ours, theirs = os.openpty()
    os.close(ours)
    return theirs


def program(*args, **more):
    done = subprocess.Popen([sys.executable, "-c", PROGRAM, *map(str, args)], cwd=ROOT, **more)
    said = done.communicate(timeout=60)
    return done.returncode, *said


@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize("gone", [a_pipe, a_terminal])
def test_the_reader_has_left(gone, failing, tmp_path):
    out = gone()
    status, _, _ = program(tmp_path / "file", *["fail"] * failing, stdout=out, stderr=out,
                           start_new_session=True)
    os.close(out)
    assert status == (2 if failing else 0)
    assert (tmp_path / "file").read_text() == "everything"


@pytest.mark.parametrize("gone", [a_pipe, a_terminal])
def test_stderr_is_still_read(gone, tmp_path):
    """Nothing is said about the reader who left: Python itself would, at the end."""
    out = gone()
    status, _, said = program(tmp_path / "file", stdout=out, stderr=subprocess.PIPE)
    os.close(out)
    assert status == 0 and said.endswith(b"a note\n") and b"rror" not in said


@pytest.mark.parametrize("closed", [[1], [2], [1, 2], [0, 1, 2]])
def test_started_without_them(closed, tmp_path):
    """With `>&-`: a file that the program opens must not become its stdout."""
    status, _, _ = program(tmp_path / "file", preexec_fn=lambda: [os.close(n) for n in closed],
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert status == 0
    assert (tmp_path / "file").read_text() == "everything"


def test_a_pipe_that_does_not_wait(tmp_path):
    """Another program has made it non-blocking; here it is full before anybody reads."""
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    done = subprocess.Popen([sys.executable, "-c", PROGRAM, tmp_path / "file"], cwd=ROOT,
                            stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    while not os.get_blocking(ours) or not os.read(ours, 1):
        pass
    with open(ours, "rb") as reader:
        said = reader.read()
    _, errors = done.communicate(timeout=60)
    assert done.returncode == 0 and said.endswith(b"said to nobody\n"), errors


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux alone has it")
def test_a_full_disk_is_no_reader_who_left(tmp_path):
    """The program goes on, but whoever looks for its output must know that it is not whole."""
    with open("/dev/full", "w") as full:
        status, _, said = program(tmp_path / "file", stdout=full, stderr=subprocess.PIPE)
    assert (tmp_path / "file").read_text() == "everything"
    assert status == 2 and said.decode().splitlines()[-1] == (
        "error: standard output is incomplete ([Errno 28] No space left on device)")


class OutStream(io.StringIO):
    """A notebook's: it has no number."""


def test_a_notebook_gets_its_own_back(monkeypatch):
    out, err = OutStream(), OutStream()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)

    def main():
        print("→ é", end="")
        raise UserError("bad")

    with pytest.raises(SystemExit):
        run(main)
    assert (sys.stdout, sys.stderr) == (out, err)
    assert (out.getvalue(), err.getvalue()) == ("→ é", "error: bad\n")


def test_the_errors_of_a_terminal_are_left_alone(monkeypatch):
    """What its code page lacks is escaped, by run() alone."""
    bytes_ = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(bytes_, encoding="ascii"))
    run(lambda: print("caf\xe9"))
    assert bytes_.getvalue() == b"caf\\xe9\n" and sys.stdout.errors == "strict"


@pytest.mark.slow
def test_a_run_whose_terminal_is_closed(tmp_path):
    """Its log is whole, and it leaves its checkpoint."""
    write_shards(tmp_path / "shards")
    flags = [*TINY, "--data", tmp_path / "shards", "--max-steps", 3, "--val-tokens", 512,
             "--sample-tokens", 0]
    start("train_gpt2.py", *flags, "--out-dir", tmp_path / "read")
    out = a_terminal()
    done = subprocess.run([sys.executable, ROOT / "train_gpt2.py", *map(str, flags), "--out-dir",
                           tmp_path / "unread"], stdout=out, stderr=out, start_new_session=True)
    os.close(out)
    assert done.returncode == 0
    logs = [read_log(tmp_path / name / "log.txt") for name in ("read", "unread")]
    assert logs[0]["train"] == logs[1]["train"] and logs[0]["val"] == logs[1]["val"]
    assert (tmp_path / "unread" / "checkpoint_000003").is_dir()
