"""A prompt may be a file or a pipe; a model may be a run, of which the newest or best is meant."""

import subprocess
import sys

import pytest
from helpers import ROOT

from nanogpt.common import UserError
from nanogpt.sampling import find_weights, read_prompt


def test_a_text_is_itself():
    assert read_prompt("ROMEO:\n é") == "ROMEO:\n é"


def test_a_file(tmp_path):
    path = tmp_path / "a prompt.txt"
    path.write_bytes("é\n\nend ".encode())
    assert read_prompt(f"FILE:{path}") == "é\n\nend "


@pytest.mark.parametrize("given, status", [("é\n€".encode(), 0), (b"\xff", 2), (None, 0)])
def test_standard_input(given, status):
    """None: it is closed, and nothing comes."""
    code = ("from nanogpt.common import run; from nanogpt.sampling import read_prompt; "
            "run(lambda: print(ascii(read_prompt('-'))))")
    script = [sys.executable, "-c", code]
    if given is None:
        script = ["sh", "-c", 'exec "$@" <&-', "sh", *script]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, input=given)
    assert done.returncode == status, done.stderr
    if status:
        assert done.stderr.startswith(b"error: cannot read the prompt '-'")
    else:
        assert done.stdout.decode().strip() == ascii((given or b"").decode())


@pytest.mark.parametrize("prompt", ["FILE:nowhere.txt", "FILE:", "FILE:{tmp}", "FILE:{tmp}/latin",
                                    "caf\udce9", "FILE:\0"])
def test_it_cannot_be_read(prompt, tmp_path):
    (tmp_path / "latin").write_bytes("café".encode("latin-1"))
    with pytest.raises(UserError, match="cannot read the prompt .*: give text in UTF-8"):
        read_prompt(prompt.format(tmp=tmp_path))


@pytest.fixture
def run(tmp_path):
    """A run's folder, its log, and something else in it."""
    for name in "checkpoint_000005", "checkpoint_000010", "checkpoint_1000000", "earlier_1":
        (tmp_path / name).mkdir()
    (tmp_path / "log.txt").write_text("0 val 9.0\n5 val 2.0\n7 val 1.0\n10 val 3.0\n")
    return tmp_path


def test_a_runs_newest_and_best_checkpoint(run):
    """The best of those that are still there: step 7 has no checkpoint, step 1,000,000 no loss."""
    assert find_weights(run) == run / "checkpoint_1000000"
    assert find_weights(run, best=True) == run / "checkpoint_000005"


def test_any_other_place_is_as_it_is(run, tmp_path):
    (run / "config.json").write_text("{}")
    for place in run, tmp_path / "nowhere", type(run)("gpt2"):
        assert find_weights(place) == place


def test_a_run_without_checkpoints(run):
    (run / "log.txt").write_text("7 val 1.0\n")
    with pytest.raises(UserError, match="no checkpoint with a validation loss in "):
        find_weights(run, best=True)
    with pytest.raises(UserError, match="no checkpoint in .*earlier_1: name the folder of a run"):
        find_weights(run / "earlier_1")
    for place in run / "nowhere", run / "log.txt":
        with pytest.raises(UserError, match="no checkpoint with a validation loss in "):
            find_weights(place, best=True)
