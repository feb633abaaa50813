"""Disks without locks: the run says so and begins. Whatever else fails is refused."""

import errno
import os
import sys

import pytest
from filelock import FileLock
from helpers import TINY, main_here, refusal, write_shards

import train_gpt2

fcntl = pytest.importorskip("fcntl", reason="Windows has another call")
pytestmark = pytest.mark.slow


@pytest.fixture
def args(tmp_path):
    return [*TINY, "--data", write_shards(tmp_path / "shards"), "--out-dir", tmp_path / "run",
            "--max-steps", 1, "--val-tokens", 512, "--sample-tokens", 0]


def without(number, monkeypatch):
    """flock fails, as on a disk that does not have it."""
    def fails(*given):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fails)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_disk_without_locks(number, args, tmp_path, monkeypatch, capsys):
    """NFS without its lock service."""
    without(number, monkeypatch)
    main_here(monkeypatch, *args)
    said = capsys.readouterr()
    assert f"the disk of {tmp_path / 'run'} has no locks: start no second run there" in said.out
    assert said.err == "" and (tmp_path / "run" / "checkpoint_000001").is_dir()


def test_filelock_before_its_version_4(args, tmp_path, monkeypatch, capsys):
    def acquire(self, timeout):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    main_here(monkeypatch, *args)
    assert "has no locks: start no second run there" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_a_file_instead_of_a_lock(args, tmp_path, monkeypatch, capsys):
    """Without flock, filelock 4 writes a file that names its owner. It says nothing of that; a
    run of another machine that was killed leaves the file, which can only be removed by hand."""
    without(errno.ENOSYS, monkeypatch)
    main_here(monkeypatch, *args)
    assert capsys.readouterr().err == ""
    lock = tmp_path / "run" / ".lock"
    lock.write_text("979\nanother-machine\n5790329073433739247909604829793077135081979644185684\n")
    said = refusal(train_gpt2.main, *args, monkeypatch=monkeypatch, capsys=capsys)
    assert f"another run is at work in {tmp_path / 'run'}: wait" in said
    assert f"or remove {lock} if it has ended" in said
    lock.unlink()
    main_here(monkeypatch, *args)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_lock_that_fails_otherwise_is_refused(number, args, tmp_path, monkeypatch, capsys):
    without(number, monkeypatch)
    said = refusal(train_gpt2.main, *args, monkeypatch=monkeypatch, capsys=capsys)
    assert f"cannot lock {tmp_path / 'run' / '.lock'} ({os.strerror(number)}): choose" in said
    assert not (tmp_path / "run" / "log.txt").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask")
def test_the_lock_has_the_mode_of_the_umask(args, tmp_path, monkeypatch):
    """Otherwise nobody else of the group could resume the run."""
    before = os.umask(0o002)
    try:
        main_here(monkeypatch, *args)
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o664} and len(files) >= 8
