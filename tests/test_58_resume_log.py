"""The log of a killed and resumed run equals an unbroken run's, line for line."""

import shutil

import pytest
from helpers import TINY, main_here, write_shards

from nanogpt.report import Log, read_log

pytestmark = pytest.mark.slow

RUN = [*TINY, "--max-steps", 6, "--eval-every", 2, "--val-tokens", 512, "--checkpoint-every", 2]


def run(monkeypatch, data, out_dir, *flags):
    main_here(monkeypatch, *RUN, "--data", data, "--out-dir", out_dir, *flags)


def values(folder):
    return [line for line in (folder / "log.txt").read_text().splitlines() if line[0] != "#"]


@pytest.mark.parametrize("half", ["", "4 tra", "4 train 2.", "# {\"conf"])
def test_it_equals_an_unbroken_runs(half, tmp_path, monkeypatch):
    """Killed after step 3, perhaps within a line: what follows the checkpoint is cut off."""
    data = write_shards(tmp_path / "shards")
    run(monkeypatch, data, tmp_path / "run")
    expected, log = values(tmp_path / "run"), read_log(tmp_path / "run" / "log.txt")
    for step in 4, 6:
        shutil.rmtree(tmp_path / "run" / f"checkpoint_{step:06d}")
    lines = (tmp_path / "run" / "log.txt").read_text().splitlines(keepends=True)
    end = next(i for i, line in enumerate(lines) if line.startswith("4 "))
    (tmp_path / "run" / "log.txt").write_text("".join(lines[:end]) + half)
    run(monkeypatch, data, tmp_path / "run", "--resume")
    assert values(tmp_path / "run") == expected
    assert read_log(tmp_path / "run" / "log.txt") == log, "the header is the first start's"
    assert '# {"resumed": 2, ' in (tmp_path / "run" / "log.txt").read_text()


def test_killed_before_its_first_checkpoint_half_a_line_is_cut(tmp_path, monkeypatch):
    """The new start is a run of its own below the old one, and the log can be read."""
    data = write_shards(tmp_path / "shards")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.txt").write_text("0 val 5.5\n0 train 5.5\n1 tra")
    run(monkeypatch, data, tmp_path / "run", "--resume")
    lines = values(tmp_path / "run")
    assert lines[:2] == ["0 val 5.5", "0 train 5.5"]
    assert lines[2].startswith("0 val") and len(lines) == 2 + 6 + 4
    assert read_log(tmp_path / "run" / "log.txt")["train"][0] == list(range(6))


def test_a_lost_log_begins_with_a_header_again(tmp_path, monkeypatch):
    """Somebody removed it: the rest of the run must still be drawn at the end."""
    data = write_shards(tmp_path / "shards")
    run(monkeypatch, data, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint_000006")
    (tmp_path / "run" / "log.txt").unlink()
    run(monkeypatch, data, tmp_path / "run", "--resume")
    log = read_log(tmp_path / "run" / "log.txt")
    assert log["train"][0] == [4, 5] and log["run"]["config"]["max_steps"] == 6


def test_only_the_master_cuts(tmp_path):
    for master_process, expected in (False, "abcdef"), (True, "abc"):
        log = Log(tmp_path / "log.txt", master_process)
        log.path.write_text("abcdef")
        log.cut(3)
        assert log.path.read_text() == expected
    assert not log.cut(5) and log.cut(3) and log.size() == 3
