"""The first line of a run's log says what is needed to repeat the run."""

import json
import platform

import pytest
import torch
from helpers import TINY, four_endings, main_here, start, write_jsonl, write_shards

from nanogpt.report import Log


def notes(path):
    """The log's lines of JSON, and the others."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return ([json.loads(line.removeprefix("# ")) for line in lines if line.startswith("# ")],
            [line for line in lines if not line.startswith("# ")])


def test_a_note_is_a_line_of_json(tmp_path):
    log = Log(tmp_path / "log.txt", master_process=True)
    facts = {"config": {"vocab_size": 257, "data": "a\nb", "min_lr": None}, "torch": "2"}
    log.note(**facts)
    log.value(0, "val", 5.5)
    first, second = (tmp_path / "log.txt").read_text().splitlines()
    assert first.startswith("# ") and json.loads(first[2:]) == facts and second == "0 val 5.5"


def test_other_ranks_do_not_write(tmp_path):
    log = Log(tmp_path / "log.txt", master_process=False)
    log.note(config={})
    log.value(0, "train", 1.0)
    assert not (tmp_path / "log.txt").exists()


@pytest.mark.slow
def test_a_run_writes_what_is_needed_to_repeat_it(tmp_path):
    """Every setting, and what it ran on; and a standard error for every accuracy."""
    data = write_shards(tmp_path / "shards")
    path = write_jsonl(tmp_path / "h.jsonl", four_endings(5))
    done = start("train_gpt2.py", *TINY, "--data", data, "--out-dir", tmp_path / "run",
                 "--max-steps", 3, "--seed", 7, "--val-tokens", 512, "--sample-tokens", 0,
                 "--hellaswag", path, "--hellaswag-limit", 4, ranks=2)
    assert done.returncode == 0, done.stderr
    (run, *scores), lines = notes(tmp_path / "run" / "log.txt")
    assert (tmp_path / "run" / "log.txt").read_text().startswith("# ")
    assert run["config"]["seed"] == 7 and run["config"]["max_lr"] == 3e-3
    assert run["config"]["data"] == str(data) and run["config"]["total_batch_size"] == 512
    assert run["ranks"] == 2 and run["device"] == "cpu" and run["max_steps"] == 3
    assert run["parameters"] == 257 * 32 + 32 * 32 + 2 * (12 * 32 * 32 + 13 * 32) + 2 * 32
    assert (run["torch"], run["python"]) == (torch.__version__, platform.python_version())
    assert run["system"] == platform.platform()
    # one writer: with two, the header and every line would be there twice
    assert len(lines) == 3 + 2 * 2
    for step, facts in zip((0, 3), scores, strict=True):
        acc = float(next(line.split()[2] for line in lines if line.startswith(f"{step} hella ")))
        error = (acc * (1 - acc) / 4) ** 0.5
        assert facts.pop("hella_standard_error") == error
        assert facts == {"step": step, "hella_examples": 4}


def test_an_epoch_in_the_header_is_a_number(tmp_path, monkeypatch):
    """Without --max-steps: the whole batches in the shards, which also need a last target."""
    data = write_shards(tmp_path / "shards", n_train=513 + 512, n_val=600)
    main_here(monkeypatch, *TINY, "--data", data, "--out-dir", tmp_path / "run",
              "--sample-tokens", 0)
    (run,), _ = notes(tmp_path / "run" / "log.txt")
    assert run["config"]["max_steps"] is None and run["max_steps"] == 2
