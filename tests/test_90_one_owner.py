"""--out takes one fineweb.py at a time, if its disk has locks."""

import errno
import os
import subprocess
import sys

import pytest
from filelock import FileLock
from helpers import ROOT, contents, fineweb, make_documents, refused, stopped, write_parquet

import fineweb as program
from nanogpt.common import UserError
from nanogpt.lock import locked

fcntl = pytest.importorskip("fcntl", reason="Windows has another call")
ARGS = "--shard-size", 2000


@pytest.fixture
def source(tmp_path):
    return write_parquet(tmp_path / "docs", make_documents(50))


def last_line(done):
    """Under the progress bar, when there is one."""
    return done.stderr.splitlines()[-1]


def test_the_second_is_refused(source, tmp_path):
    """While the first is at work in a half-filled folder, of which not a byte changes."""
    out = tmp_path / "out"
    stopped(2, source, out, *ARGS)
    before = contents(out)
    with FileLock(out / ".lock"):
        done = fineweb(source, out, *ARGS)
        assert done.returncode == 2
        assert last_line(done).startswith(f"error: another fineweb.py is at work in {out}: wait")
    (out / ".lock").unlink(missing_ok=True)
    assert contents(out) == before
    assert fineweb(source, out, *ARGS).returncode == 0


def test_two_at_once(source, tmp_path, monkeypatch):
    """The second starts when the first has written a shard. The first ends as if it were alone."""
    write_shard, said = program.write_shard, []

    def write_and_start_another(config, manifest, *args):
        write_shard(config, manifest, *args)
        if len(manifest["shards"]) == 1:
            said.append(subprocess.run(
                [sys.executable, ROOT / "fineweb.py", "--source", source, "--out", config.out,
                 "--tokenizer", "bytes", *map(str, ARGS)], capture_output=True, text=True))

    assert fineweb(source, tmp_path / "alone", *ARGS).returncode == 0
    monkeypatch.setattr(program, "write_shard", write_and_start_another)
    assert fineweb(source, tmp_path / "out", *ARGS).returncode == 0
    assert said[0].returncode == 2 and "another fineweb.py is at work in" in last_line(said[0])
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def test_it_sees_what_another_has_done_meanwhile(source, tmp_path, monkeypatch):
    """Between the look at the manifest and the lock, another one ended."""
    out, check = tmp_path / "out", program.check_writable

    def another(folder):
        monkeypatch.setattr(program, "check_writable", check)
        assert fineweb(source, out, *ARGS).returncode == 0
        monkeypatch.setattr(program, "write_shards", None)
        check(folder)

    monkeypatch.setattr(program, "check_writable", another)
    done = fineweb(source, out, *ARGS)
    assert done.returncode == 0, done.stderr
    assert "tokens of 50 documents" in done.stdout


def test_nothing_of_it_stays(source, tmp_path):
    """Nor is a lock taken where there is nothing to do: the folder may be read-only."""
    out = tmp_path / "out"
    assert fineweb(source, out, *ARGS).returncode == 0
    assert sorted(contents(out)) == sorted({path.name for path in out.glob("docs_*.npy")}
                                           | {"manifest.json"})
    with FileLock(out / ".lock"):
        assert fineweb(source, out, *ARGS).returncode == 0


def test_what_a_killed_one_left_is_no_lock(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").write_bytes(b"")
    assert fineweb(source, tmp_path / "out", *ARGS).returncode == 0
    assert ".lock" not in contents(tmp_path / "out")


def fails(number):
    def fails(*given):
        raise OSError(number, os.strerror(number))

    return fails


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EIO])
def test_a_disk_without_locks(number, source, tmp_path, monkeypatch):
    """NFS without its lock service."""
    monkeypatch.setattr(fcntl, "flock", fails(number))
    done = fineweb(source, tmp_path / "out", *ARGS)
    assert done.returncode == 0, done.stderr
    assert f"the disk of {tmp_path / 'out'} has no locks: start no second fineweb.py there" in (
        done.stdout)
    assert ".lock" not in contents(tmp_path / "out")


def test_filelock_before_its_version_4(source, tmp_path, monkeypatch):
    def acquire(self, timeout):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    done = fineweb(source, tmp_path / "out", *ARGS)
    assert done.returncode == 0 and "has no locks" in done.stdout


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_a_file_instead_of_a_lock(source, tmp_path, monkeypatch):
    """Without flock, filelock 4 writes a file that names its owner; one of another machine that
    was killed stays, and can only be removed by hand."""
    monkeypatch.setattr(fcntl, "flock", fails(errno.ENOSYS))
    out = tmp_path / "out"
    out.mkdir()
    (out / ".lock").write_text("979\nanother-machine\n57903290734337472399046048297930771350819\n")
    done = fineweb(source, out, *ARGS)
    assert done.returncode == 2 and f"remove {out / '.lock'} if it has ended" in last_line(done)
    (out / ".lock").unlink()
    assert fineweb(source, out, *ARGS).returncode == 0
    assert ".lock" not in contents(out)


def test_an_error_inside_lets_go(tmp_path):
    for _ in range(2):
        with pytest.raises(UserError, match="inside"), locked(tmp_path, "fineweb.py", "--out"):
            assert (tmp_path / ".lock").exists()
            with pytest.raises(UserError, match="another x.py is at work"):
                with locked(tmp_path, "x.py", "--out"):
                    raise AssertionError
            raise UserError("inside")
    assert not list(tmp_path.iterdir())


def test_the_lines_name_flags_that_exist(source, tmp_path):
    refused(fineweb(source, tmp_path / "docs" / "000.parquet", *ARGS), "cannot write to")
