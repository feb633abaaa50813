"""The log of a folder's last run is read back, to the last digit."""

import math

import pytest

from nanogpt.common import UserError
from nanogpt.report import Log, read_log


def test_written_and_read_back(tmp_path):
    log = Log(tmp_path / "log.txt", master_process=True)
    log.note(config={"vocab_size": 257}, torch="2")
    log.value(0, "val", 5.5)
    log.value(0, "train", 1 / 3)
    log.value(1, "train", 0.1)
    log.value(1, "hella", 0.25)
    log.note(step=1, hella_standard_error=0.1)
    log.value(2, "train", float("nan"))
    found = read_log(tmp_path / "log.txt")
    nan = found["train"][1].pop()
    assert math.isnan(nan)
    assert found["train"] == ([0, 1, 2], [1 / 3, 0.1])  # to the last digit
    assert found["val"] == ([0], [5.5]) and found["hella"] == ([1], [0.25])
    assert found["run"] == {"config": {"vocab_size": 257}, "torch": "2"}


def test_the_last_run_is_read(tmp_path):
    """The header of a new run in the same folder starts from nothing; another note does not."""
    for value in 1.0, 2.0:
        log = Log(tmp_path / "log.txt", master_process=True)
        log.note(config={"vocab_size": 257}, number=value)
        log.value(0, "val", value)
        log.note(step=0, hella_examples=5)
        log.value(0, "train", value)
    assert (tmp_path / "log.txt").read_text().count("config") == 2
    found = read_log(tmp_path / "log.txt")
    assert found["train"] == found["val"] == ([0], [2.0])
    assert found["hella"] == ([], []) and found["run"]["number"] == 2.0


@pytest.mark.parametrize("text, expected", [
    ("", {"train": ([], []), "val": ([], []), "hella": ([], []), "run": {}}),
    ("0 train 1.5\n", {"train": ([0], [1.5]), "val": ([], []), "hella": ([], []), "run": {}}),
    ("#note\n#\n3 val 1e-05\n", {"train": ([], []), "val": ([3], [1e-5]), "hella": ([], []),
                                 "run": {}})])
def test_a_log_without_a_header_is_read_too(text, expected, tmp_path):
    (tmp_path / "log.txt").write_text(text)
    assert read_log(tmp_path / "log.txt") == expected


@pytest.mark.parametrize("line", ["3 train", "3 train x", "x val 1.5", "3 loss 1.5", "# {", "hello",
                                  "3 train 1.5 2", "\udc80 val 1"])
def test_a_line_of_something_else_is_named(line, tmp_path):
    text = f"0 train 1.5\n{line}\n"
    (tmp_path / "log.txt").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UserError, match="log.txt, line 2 is not a log line"):
        read_log(tmp_path / "log.txt")
