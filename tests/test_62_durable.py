"""A name appears only after its contents are on the disk: power may fail at any moment."""

import contextlib
import errno
import os
import stat

import pytest
from helpers import lively_gpt, training

from nanogpt import disk
import train_gpt2
from nanogpt.common import UserError
from nanogpt.disk import check_writable, whole
from nanogpt.checkpoints import save_checkpoint
from nanogpt.report import Log


@pytest.fixture
def calls(monkeypatch):
    """The system calls in their order: ("sync", name) and ("replace", name)."""
    calls, names = [], {}

    def record(name, number_or_path):
        calls.append((name, os.path.basename(names.get(number_or_path, number_or_path))))

    original_open, original_fsync, original_replace = os.open, os.fsync, os.replace

    def opened(path, *args, **more):
        number = original_open(path, *args, **more)
        names[number] = os.fspath(path)
        return number

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "fsync", lambda n: (record("sync", n), original_fsync(n)))
    monkeypatch.setattr(os, "replace", lambda a, b: (record("replace", str(b)),
                                                     original_replace(a, b)))
    return calls


def test_a_file_is_on_the_disk_before_its_name(calls, tmp_path):
    with whole(tmp_path / "file") as path:
        path.write_text("new")
    assert calls == [("sync", ".file.tmp"), ("replace", "file"), ("sync", tmp_path.name)]


def test_a_checkpoint_is_on_the_disk_before_its_name(calls, tmp_path):
    """Its files, then the folder that lists them, then the rename, then the folder around it."""
    model = lively_gpt()
    t = training(model, train_gpt2.DataLoader(None, 1, 16), step=3)
    save_checkpoint(tmp_path / "c", t, train_gpt2.TrainConfig())
    end = calls.index(("replace", "c"))
    synced = [name for kind, name in calls[:end] if kind == "sync"]
    files = {path.name for path in (tmp_path / "c").iterdir()}
    assert {"config.json", "model.safetensors", "state.json", "state.safetensors"} <= files
    assert files <= set(synced) and synced[-1] == ".c.tmp"
    assert calls[end + 1] == ("sync", tmp_path.name)


def test_the_log_that_a_checkpoint_counts_on_is_on_the_disk(calls, tmp_path):
    log = Log(tmp_path / "log.txt", master_process=True)
    assert log.size() == 0 and calls == []
    log.value(0, "train", 1.5)
    assert log.size() == len("0 train 1.5\n")
    assert calls == [("sync", "log.txt")]


def test_what_cannot_be_synced_is_an_error(tmp_path, monkeypatch):
    """The disk reports an error at the last moment: the old file stays."""
    def fails(number):
        raise OSError(5, "Input/output error")

    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(disk.os, "fsync", fails)
    with pytest.raises(OSError, match="Input/output"), whole(tmp_path / "file") as path:
        path.write_text("new")
    assert (tmp_path / "file").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("number, goes_on", [
    (errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False), (errno.ENOSPC, False)])
def test_some_disks_cannot_sync_folders(number, goes_on, tmp_path, monkeypatch):
    """gocryptfs and CIFS say so, and their files are as safe as elsewhere. For a file, the same
    number is an error."""
    real, refused = os.fsync, [stat.S_ISDIR]

    def fails(opened):
        if refused[0](os.fstat(opened).st_mode):
            raise OSError(number, os.strerror(number))
        real(opened)

    monkeypatch.setattr(disk.os, "fsync", fails)
    with contextlib.nullcontext() if goes_on else pytest.raises(OSError) as error:
        with whole(tmp_path / "file") as path:
            path.write_text("new")
    assert (tmp_path / "file").read_text() == "new" and len(list(tmp_path.iterdir())) == 1
    assert goes_on or error.value.errno == number
    refused[0] = stat.S_ISREG
    with pytest.raises(OSError), whole(tmp_path / "file") as path:
        path.write_text("newer")
    assert (tmp_path / "file").read_text() == "new" and len(list(tmp_path.iterdir())) == 1


def test_whether_files_can_be_synced_is_tried_before_a_run(tmp_path, monkeypatch):
    def fails(number):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(disk.os, "fsync", fails)
    with pytest.raises(UserError, match="cannot write to .*Input/output error.: choose another"):
        check_writable(tmp_path)
    assert not list(tmp_path.iterdir())
