"""A run that is told to stop saves after its step, says how to resume, and exits with status 0."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT, TINY, _child, context, free_port, main_here, start, write_shards

import train_gpt2
from nanogpt.common import UserError
from nanogpt.guard import Stop
from nanogpt.report import read_log

pytestmark = pytest.mark.slow

RUN = [*TINY, "--B", 4, "--eval-every", 5, "--val-tokens", 512, "--sample-tokens", 0]


def values(folder):
    return [line for line in (folder / "log.txt").read_text().splitlines() if line[0] != "#"]


def run_of(tmp_path, *flags):
    return [*RUN, "--data", tmp_path / "shards", "--out-dir", tmp_path / "run", *flags]


@pytest.mark.parametrize("name, step", [("SIGTERM", 3), ("SIGUSR1", 4), ("SIGHUP", 2),
                                        ("SIGINT", 0)])
def test_it_saves_and_goes_on_to_the_bit(name, step, tmp_path, monkeypatch, capsys):
    """After the current step, whether an evaluation is due (step 5) or not."""
    write_shards(tmp_path / "shards")
    flags = run_of(tmp_path, "--max-steps", 8)
    main_here(monkeypatch, *flags)
    expected = values(tmp_path / "run")
    accumulate, calls = train_gpt2.accumulate_gradients, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == step + 1:
            handler = signal.getsignal(getattr(signal, name))
            assert handler not in (signal.SIG_DFL, signal.default_int_handler), "nobody listens"
            os.kill(os.getpid(), getattr(signal, name))
        return accumulate(*args)

    monkeypatch.setattr(train_gpt2, "accumulate_gradients", interrupted)
    main_here(monkeypatch, *flags)
    said = capsys.readouterr().out
    saved = tmp_path / "run" / f"checkpoint_{step + 1:06d}"
    assert f"stopped by {name} at step {step + 1}: the same command with --resume continues" in said
    assert len(calls) == step + 1, "it did not stop at once"
    assert [path.name for path in (tmp_path / "run").glob("checkpoint_*")] == [saved.name]
    main_here(monkeypatch, *flags, "--resume")
    log = read_log(tmp_path / "run" / "log.txt")
    assert values(tmp_path / "run")[len(expected):] == expected
    assert log["train"][0] == list(range(8)) and log["val"][0] == [0, 5, 8]


def test_a_signal_to_one_rank_stops_both_at_one_step(tmp_path):
    """The log of 2 ranks, one of which gets the signal, equals an unbroken run's."""
    write_shards(tmp_path / "shards")
    flags = list(map(str, run_of(tmp_path, "--max-steps", 200)))
    log, port = tmp_path / "run" / "log.txt", str(free_port())
    processes = []
    for rank in range(2):
        environment = dict(OMP_NUM_THREADS="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
                           RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
        processes.append(context().Process(target=_child, args=(
            ROOT / "train_gpt2.py", flags, environment, os.getcwd(), f"{tmp_path}/{rank}.out",
            f"{tmp_path}/{rank}.err")))
        processes[-1].start()
    while not (log.exists() and "\n7 train" in log.read_text()):
        assert all(process.is_alive() for process in processes)
        time.sleep(0.002)
    os.kill(processes[1].pid, signal.SIGTERM)
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0], (tmp_path / "1.err").read_text()
    assert "stopped by a signal to another rank at step" in (tmp_path / "0.out").read_text()
    done = start("train_gpt2.py", *flags, "--max-steps", 40, "--resume", ranks=2)
    assert done.returncode == 0, done.stderr
    assert read_log(log)["train"][0] == list(range(40))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to another process")
def test_a_second_ctrl_c_leaves_at_once(tmp_path):
    """Even while the first one waits: here, for a step that never ends."""
    code = ("import os, signal, time\nfrom nanogpt.guard import Stop\nstop = Stop()\n"
            "os.kill(os.getpid(), signal.SIGINT)\nprint(stop.asked, flush=True)\n"
            "os.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\nprint('still here')")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT and done.stdout == "SIGINT\n"


@pytest.mark.parametrize("error", [None, UserError, KeyboardInterrupt])
def test_the_signals_are_given_back(error, tmp_path, monkeypatch):
    """However the run ends."""
    write_shards(tmp_path / "shards")
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT")
               if hasattr(signal, name)]
    before = [signal.getsignal(number) for number in numbers]
    seen, accumulate = [], train_gpt2.accumulate_gradients

    def ends(*args):
        seen.extend(signal.getsignal(number) for number in numbers)
        if error:
            raise error
        return accumulate(*args)

    monkeypatch.setattr(train_gpt2, "accumulate_gradients", ends)
    with pytest.raises(error) if error else contextlib.nullcontext():
        main_here(monkeypatch, *run_of(tmp_path, "--max-steps", 1))
    assert not set(seen) & set(before), "it never had them"
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.skipif(os.name == "nt", reason="Windows lacks two of them")
@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT", "SIGTERM", "SIGUSR1"])
def test_what_is_ignored_stays_ignored(name):
    """As nohup ignores SIGHUP, and a shell SIGINT for what a script runs with `&`."""
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Stop() as stop:
            os.kill(os.getpid(), number)
            assert stop.asked == ""
            other = signal.SIGTERM if name != "SIGTERM" else signal.SIGHUP
            os.kill(os.getpid(), other)
            assert stop.asked == signal.Signals(other).name
            assert signal.getsignal(number) == signal.SIG_IGN
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)
