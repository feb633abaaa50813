"""A folder belongs to one run: a second one is refused as long as the first lives."""

import gc
import os
import signal
import time

import pytest
from filelock import FileLock
from helpers import ROOT, TINY, _child, context, main_here, refusal, start, write_shards

import train_gpt2
from nanogpt.common import UserError

pytestmark = pytest.mark.slow

RUN = [*TINY, "--val-tokens", 512, "--sample-tokens", 0]


def wait_for(condition, process, seconds=60):
    """Wait until condition() is true; the process must stay alive."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.is_alive() and time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def at_work(tmp_path):
    """A process that trains for a long time and is at its third step."""
    data, log = write_shards(tmp_path / "shards"), tmp_path / "run" / "log.txt"
    flags = [*RUN, "--data", data, "--out-dir", tmp_path / "run", "--max-steps", 10**6]
    process = context().Process(target=_child, args=(
        ROOT / "train_gpt2.py", [str(flag) for flag in flags], {"OMP_NUM_THREADS": "1"},
        os.getcwd(), str(tmp_path / "out"), str(tmp_path / "err")))
    process.start()
    wait_for(lambda: log.exists() and "\n2 train" in log.read_text(), process)
    yield process
    process.kill()
    process.join()


def test_it_is_refused_while_the_first_lives_and_no_longer(at_work, tmp_path, monkeypatch, capsys):
    """A killed run leaves its lock file behind, and that blocks nobody."""
    flags = [*RUN, "--data", tmp_path / "shards", "--out-dir", tmp_path / "run", "--max-steps", 1]
    for more in [], ["--resume"]:
        said = refusal(train_gpt2.main, *flags, *more, monkeypatch=monkeypatch, capsys=capsys)
        assert f"another run is at work in {tmp_path / 'run'}" in said
    assert (tmp_path / "run" / "log.txt").read_text().count("config") == 1
    os.kill(at_work.pid, signal.SIGKILL)
    at_work.join()
    assert (tmp_path / "run" / ".lock").exists()
    done = start("train_gpt2.py", *flags)
    assert done.returncode == 0, done.stderr


def test_a_run_of_two_ranks_is_refused_on_both(at_work, tmp_path):
    flags = [*RUN, "--data", tmp_path / "shards", "--out-dir", tmp_path / "run", "--max-steps", 1]
    done = start("train_gpt2.py", *flags, ranks=2)
    assert done.returncode == 2
    assert done.stderr.count("error: another run is at work in") == 2
    assert "Traceback" not in done.stderr


def test_other_folders_are_free(at_work, tmp_path):
    done = start("train_gpt2.py", *RUN, "--data", tmp_path / "shards", "--out-dir",
                 tmp_path / "other", "--max-steps", 1)
    assert done.returncode == 0, done.stderr


def test_a_run_that_has_ended_frees_its_folder(tmp_path, monkeypatch):
    """At once, and not when Python next collects its garbage: torch's optimizers keep frames."""
    gc.disable()
    try:
        main_here(monkeypatch, *TINY, "--max-steps", 1, "--val-tokens", 512, "--sample-tokens", 0,
                  "--data", write_shards(tmp_path / "shards"), "--out-dir", tmp_path / "run")
        FileLock(tmp_path / "run" / ".lock").acquire(timeout=0)
    finally:
        gc.enable()


@pytest.mark.parametrize("where", ["prepare_training", "accumulate_gradients"])
def test_a_run_that_fails_frees_its_folder(where, tmp_path, monkeypatch):
    """The next one begins in the same process, while the error still holds main()'s names."""
    flags = [*RUN, "--data", write_shards(tmp_path / "shards"), "--out-dir", tmp_path / "run",
             "--max-steps", 1]

    def fails(*args):
        raise UserError("by the test")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="by the test") as held:
        patch.setattr(train_gpt2, where, fails)
        main_here(patch, *flags)
    main_here(monkeypatch, *flags)
    assert held.traceback
