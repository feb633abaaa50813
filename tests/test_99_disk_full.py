"""A disk that is full, read-only or gone ends the run in one line, with what was saved whole."""

import gc
import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from helpers import ROOT, TINY, main_here, refusal, start, write_shards

import train_gpt2
from train_gpt2 import digest

pytestmark = pytest.mark.slow

RUN = [*TINY, "--B", 4, "--val-tokens", 512, "--sample-tokens", 0, "--max-steps", 40]


def whole_checkpoints(folder):
    """Names of the checkpoints in a folder; each must be what its manifest says."""
    names = []
    for path in sorted(folder.glob("checkpoint_*")):
        listed = json.loads((path / "manifest.json").read_text())
        assert {p.name: digest(p) for p in path.iterdir() if p.name != "manifest.json"} == listed
        names.append(path.name)
    assert not list(folder.glob(".checkpoint_*")), "half a checkpoint was left"
    return names


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own, of 2 MB: five checkpoints of 0.4 MB do not fit with the log."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("ranks", [None, 2])
def test_a_small_disk_fills_up(ranks, small_disk, tmp_path, monkeypatch):
    """The estimate is fooled, as by somebody else who fills the disk meanwhile."""
    data = write_shards(tmp_path / "shards")
    script = tmp_path / "run.py"
    script.write_text(f"""import sys
sys.path.insert(0, {str(ROOT)!r})
import common, train_gpt2
train_gpt2.check_room = lambda *args: None
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
    assert done.returncode == 2 and "are to come" in done.stderr, "still no room"
    for name in saved[:-1]:
        shutil.rmtree(out / name)
    done = start("train_gpt2.py", *flags, "--resume", "--keep", 1, ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert whole_checkpoints(out) == ["checkpoint_000040"]


@pytest.mark.parametrize("moment", ["log", "weights", "state", "curves"])
def test_whatever_is_being_written(moment, tmp_path, monkeypatch, capsys):
    """The log, a file of the third checkpoint, or the picture at the end: one line, and the
    checkpoints that were whole are."""
    save_file, saves = train_gpt2.save_file, []

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

    monkeypatch.setattr(train_gpt2, "save_file", saving)
    monkeypatch.setattr(train_gpt2, "open", opening, raising=False)
    if moment == "curves":
        monkeypatch.setattr(train_gpt2, "draw_curves", lambda *args: full())
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
    gc.collect()  # the run that failed, and its lock: a process of its own would have ended
    main_here(monkeypatch, *RUN, "--data", tmp_path / "shards", "--out-dir", tmp_path / "run",
              "--max-steps", 12, "--resume")
    log = train_gpt2.read_log(tmp_path / "run" / "log.txt")
    assert log["train"][0] == list(range(12))


def test_a_folder_that_is_gone(tmp_path, monkeypatch, capsys):
    """Somebody deletes it, or the network disk goes away."""
    accumulate = train_gpt2.accumulate_gradients

    def at_step_3(model, loader, *args):
        if loader.position == 512 * 3:
            while not (tmp_path / "run" / "checkpoint_000002").exists():
                time.sleep(0.01)
            os.replace(tmp_path / "run", tmp_path / "gone")
        return accumulate(model, loader, *args)

    monkeypatch.setattr(train_gpt2, "accumulate_gradients", at_step_3)
    said = refusal(train_gpt2.main, *RUN, "--data", write_shards(tmp_path / "shards"), "--out-dir",
                   tmp_path / "run", "--checkpoint-every", 2, monkeypatch=monkeypatch,
                   capsys=capsys)
    assert "No such file or directory" in said and "cannot write to" in said
    assert whole_checkpoints(tmp_path / "gone") == ["checkpoint_000002"]


def test_the_others_do_not_end_in_a_traceback():
    """A process that is killed takes the others' connections with it: they say what they know."""
    code = ("import common\ndef main():\n    raise RuntimeError('[pair.cc:553] Connection closed by"
            " peer [127.0.0.1]:5')\ncommon.run(main)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: another process of this run has ended: its own line says why\n"
