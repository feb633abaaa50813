"""Ctrl-C goes to the terminal's whole group: fineweb.py gets it, and its workers do not."""

import os
import signal
import subprocess
import sys
from concurrent.futures import Future

import pytest
from helpers import make_documents, write_parquet

import fineweb
from nanogpt.sources import find_source
from nanogpt.terminal import ctrl_c_stays


class Pool:
    """Says what the processes that it starts would inherit."""

    def __init__(self):
        self.seen = []

    def submit(self, task, *args):
        self.seen.append(signal.getsignal(signal.SIGINT))
        future = Future()
        future.set_result(task(*args))
        return future


def test_workers_start_without_it(tmp_path, monkeypatch):
    """But a download, which may take minutes, can be stopped."""
    source = find_source(str(write_parquet(tmp_path, make_documents(50))))
    pool, downloading = Pool(), []
    path, before = source.path, signal.getsignal(signal.SIGINT)

    def watched(i):
        downloading.append(signal.getsignal(signal.SIGINT))
        return path(i)

    monkeypatch.setattr(type(source), "path", lambda self, i: watched(i))
    config = fineweb.Config(source=str(tmp_path), tokenizer="bytes")
    list(fineweb.tokenised(config, source, pool))
    assert set(pool.seen) == {signal.SIG_IGN} and set(downloading) == {before}
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.skipif(os.name == "nt", reason="on Windows nothing is inherited")
def test_a_process_inherits_it():
    with ctrl_c_stays():
        done = subprocess.run([sys.executable, "-c", "import signal\n"
                               "print(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)"],
                              capture_output=True, text=True)
    assert done.stdout == "True\n"
