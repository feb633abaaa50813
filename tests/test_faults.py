"""Every call to the disk fails in turn: one line, status 2, a resume, and nothing foreign is lost.

A run trains, saves, deletes old checkpoints and draws its curves, in this process. Every call that
it makes under its --out-dir (open, write, rename, fsync, lock, and what makes, lists and deletes)
has a place in the order. At one place, or from there on, the calls fail with one error: the run
must end with one line and status 2, or reach its end. Then, on a disk that works, --resume must end
with the losses of the unbroken run, to the last digit, and what somebody put there must still
exist.

The short form takes part in every test run; `pytest --runslow tests/test_faults.py` tries 1,500
combinations and prints a table.
"""

import builtins
import errno
import io
import os
import re
import shutil
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
import safetensors.torch
from helpers import write_shards
from matplotlib.figure import Figure
from safetensors import SafetensorError

import train_gpt2
from nanogpt.common import run
from nanogpt.report import read_log

fcntl = pytest.importorskip("fcntl", reason="Windows has another call")

ERRORS = ("ENOSPC", "EIO", "EACCES", "EINVAL", "ENOLCK", "ESTALE", "EROFS")
ONLY_LOCKS = ("ENOLCK",)  # other calls have no locks to run out of
RUN = ("--vocab-size 257 --n-layer 1 --n-head 2 --n-embd 8 --device cpu --B 2 --T 8 "
       "--total-batch-size 16 --warmup-steps 1 --val-tokens 32 --sample-tokens 0 --eval-every 2 "
       "--hellaswag none --max-steps 4 --checkpoint-every 1 --keep 2 --products plain "
       "--optimizer adamw").split()
FOREIGN = {"notes.txt": "mine", ".checkpoint_notes": "mine, too",
           "checkpoint_000001/notes.md": "of step 1", "checkpoint_000002/notes.md": "of step 2"}


class Disk:
    """A folder whose calls are counted, and fail where they are told to."""

    def __init__(self, folder):
        self.folder, self.lock = str(folder), threading.Lock()
        self.names = {}  # of open numbers
        self.calls, self.at, self.number, self.forever = [], None, None, False

    def told(self, at=None, error="EIO", forever=False):
        """Fail at call number `at`, and at all later ones if forever."""
        self.calls, self.at, self.number, self.forever = [], at, getattr(errno, error), forever

    def call(self, kind, path):
        """One call: raises if it is its turn."""
        path = self.names.get(path, path)
        if isinstance(path, int) or not str(path).startswith(self.folder):
            return
        with self.lock:
            place = len(self.calls)
            self.calls.append((kind, os.path.relpath(str(path), self.folder)))
            turn = self.at is not None and (place >= self.at if self.forever else place == self.at)
        if turn:
            raise OSError(self.number, os.strerror(self.number), str(path))

    def watch(self, patch):
        """Put this object between the program and the system."""
        def wrap(module, name, kind):
            original = getattr(module, name)

            def call(path, *args, **more):
                self.call(kind, path)
                return original(path, *args, **more)

            patch.setattr(module, name, call)

        patch.setattr(os, "fsync", lambda number: None)  # no waiting for a real disk
        for name, kind in dict(mkdir="mkdir", rmdir="rmdir", unlink="unlink", replace="rename",
                               rename="rename", truncate="truncate", listdir="list", scandir="list",
                               fsync="fsync", chmod="chmod").items():
            wrap(os, name, kind)
        flock = fcntl.flock

        def lock(number, what):
            if what == fcntl.LOCK_UN:  # this process lives on: another one would let go by its end
                flock(number, what)
            self.call("lock", number)
            if what != fcntl.LOCK_UN:
                flock(number, what)

        patch.setattr(fcntl, "flock", lock)
        opened, opened_number, closed = io.open, os.open, os.close

        def open_file(path, mode="r", *args, **more):
            if isinstance(path, int):
                return opened(path, mode, *args, **more)
            self.call("open" if "r" in mode else "open to write", path)
            file = opened(path, mode, *args, **more)
            if "r" not in mode and str(path).startswith(self.folder):
                write = file.write
                file = Written(file, lambda data: (self.call("write", path), write(data))[1])
            return file

        def open_number(path, flags, *args, **more):
            self.call("open", path)
            number = opened_number(path, flags, *args, **more)
            self.names[number] = path if isinstance(path, str) else os.fspath(path)
            return number

        def close_number(number):
            self.names.pop(number, None)
            closed(number)

        save = safetensors.torch.save_file

        def save_file(tensors, path, metadata=None):
            """safetensors writes in Rust: it renames a file of its own, and has its own errors."""
            for kind in "open to write", "write", "rename":
                try:
                    self.call(kind, path)
                except OSError as error:
                    raise SafetensorError(f"I/O error: {error.strerror} (os error {error.errno})"
                                          ) from None
            save(tensors, path, metadata)

        for module in builtins, io:
            patch.setattr(module, "open", open_file)
        patch.setattr(os, "open", open_number)
        patch.setattr(os, "close", close_number)
        patch.setattr(safetensors.torch, "save_file", save_file)


class Written:
    """An open file whose write() is another."""

    def __init__(self, file, write):
        self.file, self.write = file, write

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        self.file.__enter__()
        return self

    def __exit__(self, *error):
        return self.file.__exit__(*error)


def values(folder):
    """step and kind -> the value as it was written, of the log's last run."""
    found = {}
    for line in (folder / "log.txt").read_text().splitlines():
        if line.startswith('# {"config"'):
            found = {}
        elif line[0] != "#":
            step, kind, value = line.split()
            found[step, kind] = value
    return found


class Harness:
    """An earlier run of two steps with what somebody put there; a disk; and the unbroken losses."""

    def __init__(self, folder, patch):
        self.folder, self.out = folder, folder / "run"
        self.args = [*RUN, "--data", str(write_shards(folder / "shards", 200, 60, shards=1)),
                     "--out-dir", str(self.out)]
        patch.setattr(Figure, "savefig", lambda figure, path, **how: Path(path).write_bytes(b"png"))
        patch.setattr("nanogpt.report.draw_curves", lambda log, axes, size: read_log(log))
        self.code, self.said = 0, ""
        assert self.start("--keep", "9") == 0
        self.expected = values(self.out)
        assert len(self.expected) == 4 + 3
        for step in 3, 4:
            shutil.rmtree(self.out / f"checkpoint_{step:06d}")
        for name, text in FOREIGN.items():
            (self.out / name).write_text(text)
        shutil.copytree(self.out, folder / "earlier")
        self.disk = Disk(self.out)
        self.disk.watch(patch)

    def start(self, *flags):
        """Run main() here. Returns its status; keeps what it said on stderr."""
        before, sys.stderr = sys.stderr, io.StringIO()
        sys.stderr.reconfigure = lambda **how: None
        argv, sys.argv = sys.argv, ["train_gpt2.py", *self.args, *flags]
        try:
            run(train_gpt2.main)
            return 0
        except SystemExit as stop:
            return stop.code or 0
        finally:
            self.said, sys.stderr, sys.argv = sys.stderr.getvalue(), before, argv

    def reset(self):
        self.disk.told()
        shutil.rmtree(self.out)
        shutil.copytree(self.folder / "earlier", self.out)
        self.disk.told()

    def places(self, *flags):
        """The calls of a run that nothing disturbs."""
        self.reset()
        assert self.start(*flags) == 0, self.said
        return list(self.disk.calls)

    def fail(self, flags, at, error, forever):
        """One combination. Returns what became of the run, or raises AssertionError."""
        self.reset()
        self.disk.told(at, error, forever)
        code, said = self.start(*flags), self.said
        hit = len(self.disk.calls) > at
        self.disk.told()
        assert code in (0, 2), f"status {code}"
        lines = [line for line in said.splitlines() if not line.startswith("error: the last")]
        assert len(lines) == (1 if code else 0), said
        assert code == 0 or lines[0].startswith("error: "), said
        if code == 0 and hit:
            assert values(self.out) == self.expected, "went on, and to other losses"
        assert self.start("--resume") == 0, f"no resume: {self.said}, after {said}"
        assert values(self.out) == self.expected, f"other losses, after {said}"
        there = Counter(path.read_text() for path in self.out.rglob("*")
                        if path.name in {Path(name).name for name in FOREIGN})
        assert there == Counter(FOREIGN.values()), f"{there}, after {said}"
        return ("one line, status 2" if code else "goes on") if hit else "not reached"


@pytest.fixture
def harness(tmp_path, capsys):
    with pytest.MonkeyPatch.context() as patch:
        yield Harness(tmp_path, patch)


def combinations(places):
    """(place, error, forever): every error at the first of places that differ only in their step,
    and one of them forever; one error, in turn, at the others."""
    seen = set()
    for at, (kind, name) in enumerate(places):
        errors = [error for error in ERRORS if error not in ONLY_LOCKS or kind == "lock"]
        alike = kind, re.sub("[0-9]{6}", "N", name)
        if alike in seen:
            yield at, errors[at % len(errors)], False
        else:
            seen.add(alike)
            yield from ((at, error, False) for error in errors)
            yield at, errors[at % len(errors)], True


@pytest.mark.parametrize("flags", [["--resume"], []], ids=["resumed", "anew"])
def test_every_call_fails_in_turn(flags, harness, request, capsys):
    places = harness.places(*flags)
    kinds = Counter(kind for kind, _ in places)
    assert kinds.keys() >= {"open", "open to write", "write", "rename", "fsync", "mkdir", "unlink",
                            "rmdir", "lock", "list"}
    every = list(combinations(places))
    if not request.config.getoption("--runslow"):
        every = every[:: len(every) // 12 or 1]
    table, wrong = {}, []
    for at, error, forever in every:
        try:
            became = harness.fail(flags, at, error, forever)
        except AssertionError as failed:
            became = "WRONG"
            wrong.append(f"{at} {places[at]} {error} {'forever' if forever else 'once'}: {failed}")
        table.setdefault((places[at][0], error), Counter())[became] += 1
    with capsys.disabled():
        if len(every) > 100:
            print(f"\n{len(places)} places, {len(every)} combinations:",
                  dict(sum(table.values(), Counter())))
            for kind in sorted(kinds):
                print(f"  {kind:14s}", *(f"{error} {dict(table[kind, error])}" for error in ERRORS
                                         if (kind, error) in table), sep="\n      ")
    assert not wrong, f"{len(wrong)} of {len(every)}:\n" + "\n".join(wrong[:40])
