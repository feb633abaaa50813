"""A disk that is full, read-only or gone ends the run in one line, with what was saved whole."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from helpers import ROOT, TINY, main_here, refusal, start, write_shards

import train_gpt2
from nanogpt.disk import digest, save_file
from nanogpt.report import read_log

pytestmark = pytest.mark.slow

RUN = [*TINY, "--B", 4, "--val-tokens", 512, "--sample-tokens", 0, "--max-steps", 40]


def whole_checkpoints(folder):
    """Names of the checkpoints in a folder; each must match its manifest."""
    names = []
    for path in sorted(folder.glob("checkpoint_*")):
        listed = json.loads((path / "manifest.json").read_text())
        assert {p.name: digest(p) for p in path.iterdir() if p.name != "manifest.json"} == listed
        names.append(path.name)
    assert not list(folder.glob(".checkpoint_*")), "half a checkpoint was left"
    return names


@pytest.fixture
def small_disk(tmp_path):
    """A separate disk of 2 MB: too small for five checkpoints of 0.4 MB and the log."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("ranks", [None, 2])
def test_a_small_disk_fills_up(ranks, small_disk, tmp_path, monkeypatch):
    """The estimate is switched off, as if somebody else filled the disk during the run."""
    data = write_shards(tmp_path / "shards")
    script = tmp_path / "run.py"
    script.write_text(f"""import sys
sys.path.insert(0, {str(ROOT)!r})
import train_gpt2
from nanogpt import checkpoints, common
checkpoints.check_room = lambda *args: None
if __name__ == "__main__":
    common.run(train_gpt2.main)
""")
    out = small_disk / "run"
    flags = [*RUN, "--data", data, "--out-dir", out, "--checkpoint-every", 2]
    done = start(script, *flags, ranks=ranks)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error: cannot write to") == (ranks or 1)
    assert "No space left on device" in done.stderr and "--resume" in done.stderr
    assert "Traceback" not in done.stderr
    saved = whole_checkpoints(out)
    assert 2 <= len(saved) <= 4 and saved[0] == "checkpoint_000002"
    done = start("train_gpt2.py", *flags, "--resume", "--keep", 1, ranks=ranks)
    assert done.returncode == 2 and "the run will write" in done.stderr, "still no room"
    for name in saved[:-1]:
        shutil.rmtree(out / name)
    done = start("train_gpt2.py", *flags, "--resume", "--keep", 1, ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert whole_checkpoints(out) == ["checkpoint_000040"]


@pytest.mark.parametrize("call", ["open", "sync"])
def test_no_rank_waits_for_the_one_whose_disk_failed(call, tmp_path):
    """Only rank 0 writes the log, and after step 2 it cannot: both ranks end at once, in a run that
    would take hours. A disk may also report the error only on fsync."""
    script = tmp_path / "run.py"
    script.write_text(f"""import builtins, os, sys
sys.path.insert(0, {str(ROOT)!r})
import train_gpt2
from nanogpt import common, disk, report
def fails(path, *args, original={"builtins.open" if call == "open" else "disk.sync"}, **more):
    if os.environ["RANK"] == "0" and path.exists() and "\\n2 train" in path.read_text():
        raise OSError(5, "Input/output error")
    return original(path, *args, **more)
report.{call} = fails
if __name__ == "__main__":
    common.run(train_gpt2.main)
""")
    done = start(script, *RUN, "--data", write_shards(tmp_path / "shards"), "--out-dir",
                 tmp_path / "run", "--max-steps", 10**7, "--checkpoint-every", 5, "--keep",
                 1, ranks=2, timeout=60)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count(f"error: cannot write to {tmp_path / 'run'} ([Errno 5]") == 2
    assert done.stderr.count("\n") == 2, done.stderr
    last = {"open": 2, "sync": 4}[call]  # sync: when a checkpoint is due
    assert read_log(tmp_path / "run" / "log.txt")["train"][0] == list(range(last + 1))
    assert not list((tmp_path / "run").glob("*checkpoint*"))


@pytest.mark.parametrize("moment", ["log", "weights", "state", "curves"])
def test_whatever_is_being_written(moment, tmp_path, monkeypatch, capsys):
    """The log, a file of the third checkpoint, or the picture at the end: one line, and complete
    checkpoints stay complete."""
    saves = []

    def full():
        raise OSError(28, "No space left on device")

    def saving(tensors, path, *args, **more):
        saves.append(path)
        if len(saves) == {"weights": 5, "state": 6}.get(moment):
            full()
        return save_file(tensors, path, *args, **more)

    def opening(path, mode="r", *args, **more):
        if moment == "log" and str(path).endswith("log.txt") and mode == "a" and len(saves) >= 4:
            full()
        return open(path, mode, *args, **more)

    for room in "weights", "checkpoints":
        monkeypatch.setattr(f"nanogpt.{room}.save_file", saving)
    monkeypatch.setattr("nanogpt.report.open", opening, raising=False)
    if moment == "curves":
        monkeypatch.setattr("nanogpt.report.draw_curves", lambda *args: full())
    said = refusal(train_gpt2.main, *RUN, "--data", write_shards(tmp_path / "shards"), "--out-dir",
                   tmp_path / "run", "--checkpoint-every", 2, "--max-steps", 12,
                   monkeypatch=monkeypatch, capsys=capsys)
    assert "No space left on device" in said
    if moment != "curves":
        assert f"cannot write to {tmp_path / 'run'}" in said and "--resume" in said
    saved = whole_checkpoints(tmp_path / "run")
    assert saved[:2] == ["checkpoint_000002", "checkpoint_000004"]
    assert len(saved) == {"weights": 2, "state": 2, "curves": 6}.get(moment, len(saved))
    monkeypatch.undo()
    main_here(monkeypatch, *RUN, "--data", tmp_path / "shards", "--out-dir", tmp_path / "run",
              "--max-steps", 12, "--resume")
    log = read_log(tmp_path / "run" / "log.txt")
    assert log["train"][0] == list(range(12))


def test_a_folder_that_is_gone(tmp_path, monkeypatch, capsys):
    """Somebody deletes it, or the network disk goes away."""
    accumulate = train_gpt2.accumulate_gradients

    def at_step_3(t):
        if t.step == 3:
            while not (tmp_path / "run" / "checkpoint_000002").exists():
                time.sleep(0.01)
            os.replace(tmp_path / "run", tmp_path / "gone")
        return accumulate(t)

    monkeypatch.setattr(train_gpt2, "accumulate_gradients", at_step_3)
    said = refusal(train_gpt2.main, *RUN, "--data", write_shards(tmp_path / "shards"), "--out-dir",
                   tmp_path / "run", "--checkpoint-every", 2, monkeypatch=monkeypatch,
                   capsys=capsys)
    assert "No such file or directory" in said and "cannot write to" in said
    assert whole_checkpoints(tmp_path / "gone") == ["checkpoint_000002"]


def test_the_others_do_not_end_in_a_traceback():
    """A killed process breaks the others' connections: they print one line and no traceback."""
    code = ("from nanogpt import common\ndef main():\n    raise RuntimeError('[pair.cc:553] "
            "Connection closed by peer [127.0.0.1]:5')\ncommon.run(main)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: another process of this run has ended: its own line says why\n"


@pytest.mark.parametrize("number, way_out", [
    (errno.ENOSPC, "make room there"), (errno.EDQUOT, "make room there"),
    (errno.EIO, "fix that"), (errno.EROFS, "fix that"),
    (errno.EFBIG, "fix that")])
def test_room_is_the_way_out_of_a_full_disk_alone(number, way_out, tmp_path, monkeypatch, capsys):
    def fails(path, *args, **more):
        if str(path).endswith("state.safetensors"):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr("nanogpt.checkpoints.save_file", lambda tensors, path: fails(path))
    said = refusal(train_gpt2.main, *RUN, "--data", write_shards(tmp_path / "shards"), "--out-dir",
                   tmp_path / "run", "--max-steps", 1, monkeypatch=monkeypatch, capsys=capsys)
    assert f"{os.strerror(number)}): {way_out}, then go on with --resume" in said
