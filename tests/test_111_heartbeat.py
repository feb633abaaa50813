"""A rank that falls silent ends the run in one line; one that is only slow does not."""

import datetime
import os
import re
import signal
import sys
import threading
import time

import pytest
import torch
import torch.distributed as dist
from helpers import ROOT, TINY, free_port, start, together, write_shards

from nanogpt import heartbeat
from nanogpt.common import run
from nanogpt.heartbeat import Heartbeat

RUN = [*TINY, "--B", 4, "--total-batch-size", 4 * 32 * 2, "--max-steps", 12, "--eval-every", 50,
       "--val-tokens", 512, "--sample-tokens", 0]
STOPS = f"""import os, signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
import train_gpt2
from nanogpt import common, heartbeat
heartbeat.Heartbeat.__init__.__defaults__ = (5, 60)  # seconds of patience
rank, step = os.environ["RANK"], train_gpt2.train_step
def stopping(t, lr):
    if t.step == 5 and rank in os.environ["STOPPED"]:
        me = os.getpid()
        if os.fork() == 0:  # whoever is stopped cannot wake up by itself
            time.sleep(float(os.environ["SECONDS"]))
            os.kill(me, signal.SIGCONT)
            os._exit(0)
        os.kill(me, signal.SIGSTOP)
    return step(t, lr)
train_gpt2.train_step = stopping
if __name__ == "__main__":
    common.run(train_gpt2.main)
"""
can_stop = pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="Windows has no such signal")


def stopped(tmp_path, ranks, seconds):
    script = tmp_path / "run.py"
    script.write_text(STOPS)
    return start(script, *RUN, "--data", write_shards(tmp_path / "shards"), "--out-dir",
                 tmp_path / "run", ranks=2, env={"STOPPED": ranks, "SECONDS": str(seconds)})


@can_stop
@pytest.mark.slow
def test_a_frozen_rank_is_named(tmp_path):
    done = stopped(tmp_path, "1", 12)
    # torch may add a warning of its own, if it was stopped in the middle of a call to the store
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(lines) == 2, done.stderr
    assert "error: rank 0 waits for rank 1 (" in lines[0], done.stderr
    assert "), silent for " in lines[0] and ", last seen " in lines[0]
    assert "another process of this run has ended" in lines[1]  # when it wakes up


@can_stop
@pytest.mark.slow
def test_a_slow_rank_is_waited_for_and_so_is_a_frozen_machine(tmp_path):
    """Stopped for less than the patience; or all at once and longer, as when a laptop sleeps."""
    for ranks, seconds in ("1", 2), ("01", 8):
        done = stopped(tmp_path, ranks, seconds)
        assert done.returncode == 0 and not done.stderr, done.stderr


@pytest.fixture
def pair():
    """The Heartbeats of two ranks that have heard of each other."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    both = [Heartbeat("127.0.0.1", server.port, "beat", rank, 2, 200, 30) for rank in range(2)]
    while not all(text for each in both for text, _, _ in each.seen):
        time.sleep(0.01)
    yield both
    for each in both:
        each.stop()


def test_words_for_silence(pair):
    for rank, mine in enumerate(pair):
        assert mine.silence() == ""
        mine.stop()
        mine.heard[1 - rank] = time.monotonic() - 201
        host = os.uname().nodename if hasattr(os, "uname") else ""
        assert f"rank {rank} waits for rank {1 - rank} ({host}" in mine.silence()
        assert ", silent for 201 s, last seen " in mine.silence()
        mine.answered = time.monotonic() - 300
        where = f"127.0.0.1:{mine.server[1]} (rank 0's machine)"
        assert f"rank {rank} has had no answer from {where} for 300 s: " in mine.silence()
        mine.begin_anew()
        assert mine.silence() == ""


def test_a_rank_that_never_beat_is_named_too():
    """The others go on beating and hear each other; only that one counts as silent."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    both = [Heartbeat("127.0.0.1", server.port, "beat", rank, 3, 200, 30) for rank in range(2)]
    until = time.monotonic() + 20
    while not all(text for each in both for text, _, _ in each.seen[:2]):
        assert time.monotonic() < until
        time.sleep(0.01)
    for mine in both:
        mine.stop()
        assert mine.silence() == ""
        mine.heard[2] = time.monotonic() - 201
        assert f"rank {mine.rank} waits for rank 2 (a machine not heard of), silent for 201 s, " \
               "last seen at its start: " in mine.silence()


def test_rank_0_says_who_waits_for_whom(pair, capsys):
    for mine in pair:
        mine.stop()
    mine = pair[0]
    mine.say_who_waits()
    mine.moved -= 31
    mine.seen = [("7", "a", "in sum_over_ranks (nanogpt/ranks.py, line 9)"),
                 ("8", "b", "in look_at (nanogpt/shards.py, line 8)")]
    mine.say_who_waits()
    mine.say_who_waits()  # once a minute
    assert capsys.readouterr().out == (
        "waiting    | rank 0 (a) in sum_over_ranks (nanogpt/ranks.py, line 9); rank 1 (b) in "
        "look_at (nanogpt/shards.py, line 8)\n")
    mine.moved -= 31
    mine.seen = [mine.seen[0]] * 2  # all are in the same place: nobody waits
    mine.say_who_waits()
    assert capsys.readouterr().out == ""


def test_it_says_so_by_itself(capsys):
    """Another rank is elsewhere for longer than the note's seconds."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    server.set("beat 1", "7|b|in look_at (a|b.py, line 8)")
    mine, said = Heartbeat("127.0.0.1", server.port, "beat", 0, 2, 200, 0.1), ""
    here = "in test_it_says_so_by_itself (tests/test_111_heartbeat.py, line "
    while here not in said or "look_at" not in said:
        time.sleep(0.05)
        said += capsys.readouterr().out
    mine.stop()
    assert "; rank 1 (b) in look_at (a|b.py, line 8)\n" in said


def test_other_programs_are_not_ours(monkeypatch, tmp_path):
    """A folder whose name begins like ours, and packages inside ours."""
    for name in "ours-venv", "ours/venv/lib/site-packages", "ours":
        file = tmp_path / name / "lib.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        names = {}
        exec(compile("def call(f):\n    return f()\n", str(file), "exec"), names)
        monkeypatch.setattr(heartbeat, "ROOT", f"{tmp_path / 'ours'}{os.sep}")
        said = names["call"](heartbeat.place)
        assert said == ("in call (lib.py, line 2)" if name == "ours" else "elsewhere")


def test_where_the_main_thread_is(monkeypatch, tmp_path):
    """The innermost of this program's lines, of whatever it has called."""
    found = []

    def ask():
        thread = threading.Thread(target=lambda: found.append(heartbeat.place()))
        return thread.start(), thread.join(), sys._getframe().f_lineno

    *_, line = ask()
    monkeypatch.setattr(heartbeat, "ROOT", f"{tmp_path}{os.sep}")
    ask()
    assert found == [f"in ask (tests/test_111_heartbeat.py, line {line})", "elsewhere"]


def test_the_server_goes_and_comes_back():
    """The connection is made anew; until then nothing is printed, and nothing waits."""
    port = free_port()
    mine = Heartbeat("127.0.0.1", port, "beat", 0, 1, patience=8)
    for _ in range(2):
        server = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
        beat = mine.seen[0][0]
        while mine.seen[0][0] == beat:
            time.sleep(0.01)
        del server
        time.sleep(0.1)
    mine.stop()
    assert not any(thread.is_alive() for thread in mine.threads)


def impatient(rank, world, port, folder):
    """Rank 1 lives, but does not come: for one second instead of an hour."""
    store = dist.TCPStore("127.0.0.1", port, world, rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world,
                            timeout=datetime.timedelta(seconds=1))
    if rank == 0:
        with open(f"{folder}/said", "w") as sys.stderr, pytest.raises(SystemExit) as ended:
            run(lambda: dist.all_reduce(torch.ones(1)))
        assert ended.value.code == 2
    else:
        time.sleep(2)
    os._exit(0)


def test_a_rank_that_never_comes(tmp_path):
    together(impatient, 2, free_port(), tmp_path)
    said = (tmp_path / "said").read_text()
    assert re.match(r"error: another rank does not answer \(Timed out waiting 1000ms for \w+ "
                    r"operation to complete\): it, its machine or the network is down", said), said


def test_the_kernel_gives_up_first(capsys):
    """Linux sends for 15 minutes, but its tcp_retries2 may say less. Words of gloo's."""
    def fails():
        raise RuntimeError("[/gloo/transport/tcp/pair.cc:537] Read error [10.9.0.2]:55482: "
                           "Connection timed out. This is typically caused by a hanging worker")

    with pytest.raises(SystemExit):
        run(fails)
    assert "(Read error [10.9.0.2]:55482: Connection timed out): it" in capsys.readouterr().err
