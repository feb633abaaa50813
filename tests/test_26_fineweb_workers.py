"""Workers: the same bytes for any number of them, in real processes and in any order."""

import subprocess
import sys
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import psutil
import pytest
from helpers import (
    ROOT,
    contents,
    expected_tokens,
    fineweb,
    make_documents,
    refused,
    start,
    tokens_of,
    write_parquet,
)

import fineweb as program
from nanogpt.sources import find_source


@pytest.mark.slow
def test_processes_write_what_threads_write(tmp_path):
    """The program as its user starts it. A worker is a fresh process that imports fineweb.py: what
    main does has to be behind `if __name__ == "__main__"`, and a task's arguments are pickled."""
    documents = make_documents(75)
    source = write_parquet(tmp_path / "docs", documents)
    args = ["--source", source, "--tokenizer", "bytes", "--shard-size", 4000]
    done = start("fineweb.py", *args, "--out", tmp_path / "processes", "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("tokens of 75 documents") == 1
    assert tokens_of(tmp_path / "processes").tolist() == expected_tokens(documents)
    assert fineweb(source, tmp_path / "threads", "--shard-size", 4000).returncode == 0
    assert contents(tmp_path / "threads") == contents(tmp_path / "processes")


@pytest.mark.slow
def test_any_number_of_processes_the_same_bytes(tmp_path):
    source = write_parquet(tmp_path / "docs", make_documents(300), row_group_size=3)
    args = ["--source", source, "--tokenizer", "bytes", "--shard-size", 4000]
    for n in 1, 2, 3:
        done = start("fineweb.py", *args, "--out", tmp_path / str(n), "--workers", n)
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "3")


class Pool:
    """Tasks that are done when they have to be, the newest first; it counts how many wait."""

    def __init__(self):
        self.waiting, self.most, self.done = [], 0, []

    def submit(self, function, path, group, tokenizer):
        task = Future()
        task.result = lambda: self.finish(task)
        self.waiting.append((task, function, path, group, tokenizer))
        self.most = max(self.most, len(self.waiting))
        return task

    def finish(self, task):
        while not task.done():
            newest, function, path, group, tokenizer = self.waiting.pop()
            newest.set_result(function(path, group, tokenizer))
            self.done.append((path, group))
        return Future.result(task)


@pytest.mark.parametrize("workers", [1, 3])
def test_order_and_memory_are_bounded(workers, tmp_path):
    """Tasks that end in another order than they began come out in the source's order, and never do
    more than two a worker wait: all of a source at once would fill the memory."""
    documents = make_documents(75)
    source = find_source(str(write_parquet(tmp_path / "docs", documents, row_group_size=3)))
    pool, config = Pool(), program.Config(workers=workers, tokenizer="bytes")
    parts = list(program.tokenised(config, source, pool))
    assert np.concatenate([tokens for _, tokens in parts]).tolist() == expected_tokens(documents)
    assert [first for first, _ in parts] == [
        (file, group) for file, groups in enumerate([13, 13]) for group in range(groups)]
    assert pool.most == 2 * workers
    assert len(pool.done) == 26 and (workers == 1 or pool.done != sorted(pool.done))


def test_too_few_or_too_many_workers_are_one_line(tmp_path):
    source, out = write_parquet(tmp_path / "docs", make_documents(5)), tmp_path / "out"
    refused(fineweb(source, out, "--workers", 0), "--workers 0")
    refused(fineweb(source, out, "--workers", 10**30), f"--workers {10**30}: give")
    refused(fineweb(source, out, "--shard-size", 0), "--shard-size 0")
    assert not out.exists()


def test_a_killed_worker_is_one_line(tmp_path, monkeypatch):
    """The system kills a process for want of memory: the message says that fewer may help."""
    def killed(*args):
        raise BrokenProcessPool("A process in the process pool was terminated abruptly")

    monkeypatch.setattr(program, "tokenise", killed)
    done = fineweb(write_parquet(tmp_path / "docs", make_documents(5)), tmp_path / "out")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]  # under the progress bar, when there is one
    assert last.startswith("error: a worker was killed") and "--workers than 2" in last
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_workers_end_when_the_program_is_killed(tmp_path):
    """They, and the process that cleans up after them, would wait for ever."""
    source, kin = write_parquet(tmp_path / "docs", make_documents(2000), row_group_size=5), []
    process = subprocess.Popen(
        [sys.executable, ROOT / "fineweb.py", "--source", source, "--out", tmp_path / "out",
         "--tokenizer", "bytes", "--workers", "2", "--shard-size", "1000"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / "out/docs_train_000001.npy").exists():
        kin = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    assert len(kin) == 3 and not psutil.wait_procs(kin, timeout=60)[1]
