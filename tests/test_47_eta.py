"""The printed steps and the time left, by a clock that the test moves."""

import io
import re
import sys
import time

import pytest
from helpers import TINY, main_here, write_shards

import train_gpt2
from nanogpt.common import UserError
from nanogpt.report import read_log


def printed(tmp_path, monkeypatch, capsys, *flags, step_s=100.0, validation_s=0.0):
    """[(step, dt in ms, ETA)] of a run whose clock moves only in steps and validations."""
    clock = [1e6]

    def advancing(function, seconds):
        def call(*args, **kwargs):
            clock[0] += seconds if isinstance(seconds, float) else next(seconds)
            return function(*args, **kwargs)
        return call

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(train_gpt2, "train_step", advancing(train_gpt2.train_step, step_s))
    monkeypatch.setattr(train_gpt2, "validate", advancing(train_gpt2.validate, validation_s))
    monkeypatch.setattr(train_gpt2, "save_curves", lambda *args: None)
    main_here(monkeypatch, *TINY, "--data", write_shards(tmp_path / "shards"), "--out-dir",
              tmp_path / "run", "--val-tokens", 512, "--sample-tokens", 0, *flags)
    lines = re.findall(r"^step +(\d+) \| loss .*\| dt (\d+) ms \|.*\| ETA (\d+:\d\d:\d\d|unknown)$",
                       capsys.readouterr().out, re.MULTILINE)
    return [(int(step), int(dt), eta) for step, dt, eta in lines]


def test_eta_is_the_mean_step_times_the_steps_to_go(tmp_path, monkeypatch, capsys):
    assert printed(tmp_path, monkeypatch, capsys, "--max-steps", 4, step_s=3725.0) == [
        (0, 3725000, "unknown"), (1, 3725000, "2:04:10"), (2, 3725000, "1:02:05"),
        (3, 3725000, "0:00:00")]


def test_eta_counts_evaluation_in_and_dt_does_not(tmp_path, monkeypatch, capsys):
    """50 s before the first step and before the third. After the first step, which does not
    count, 10, 70 and 80 s for 1, 2 and 3 steps."""
    assert printed(tmp_path, monkeypatch, capsys, "--max-steps", 4, "--eval-every", 2, step_s=10.0,
                   validation_s=50.0) == [
        (0, 10000, "unknown"), (1, 10000, "0:00:20"), (2, 10000, "0:00:35"), (3, 10000, "0:00:00")]


def test_a_slow_first_step_does_not_count(tmp_path, monkeypatch, capsys):
    """It compiles, and warms up: 1,000 s. The others take 10."""
    seconds = iter([1000.0] + 5 * [10.0])
    assert [eta for _, _, eta in printed(tmp_path, monkeypatch, capsys, "--max-steps", 6,
                                         "--print-every", 2, step_s=seconds)] == [
        "unknown", "0:00:30", "0:00:10", "0:00:00"]


@pytest.mark.parametrize("every, steps", [(1, [0, 1, 2, 3, 4, 5]), (4, [0, 4, 5]), (100, [0, 5])])
def test_some_steps_are_printed_and_all_are_logged(every, steps, tmp_path, monkeypatch, capsys):
    """Every n-th step and the last are printed; the log has all."""
    lines = printed(tmp_path, monkeypatch, capsys, "--max-steps", 6, "--print-every", every)
    assert [step for step, _, _ in lines] == steps
    log = read_log(tmp_path / "run" / "log.txt")
    assert log["train"][0] == [0, 1, 2, 3, 4, 5]


def test_a_printed_step_is_in_a_file_at_once(tmp_path, monkeypatch):
    """Someone may follow it, and a process may end at any moment."""
    out, step, seen = io.TextIOWrapper(io.BytesIO()), train_gpt2.train_step, []

    def looking(*args):
        seen.append(out.buffer.getvalue().decode())
        return step(*args)

    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(train_gpt2, "train_step", looking)
    main_here(monkeypatch, *TINY, "--data", write_shards(tmp_path / "shards"), "--out-dir",
              tmp_path / "run", "--val-tokens", 512, "--sample-tokens", 0, "--max-steps", 3)
    assert "step     0 | loss" in seen[1] and "step     1 | loss" in seen[2]


def test_none_printed_is_refused():
    with pytest.raises(UserError, match="--print-every 0: give 1 or more"):
        train_gpt2.check_config(train_gpt2.parse_args(["--print-every", "0"]), 1)
