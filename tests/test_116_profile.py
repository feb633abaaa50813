"""--profile N: a trace of N steps, and what the ten costliest operations are in words."""

import json
import re

import pytest
from helpers import TINY, main_here, refusal, write_shards

import train_gpt2

RUN = [*TINY, "--max-steps", 6, "--eval-every", 6, "--val-tokens", 512, "--sample-tokens", 0]


@pytest.fixture
def flags(tmp_path):
    return [*RUN, "--data", write_shards(tmp_path / "shards"), "--out-dir", tmp_path / "run"]


@pytest.mark.parametrize("n", [1, 3])
def test_n_steps_are_traced(n, flags, tmp_path, monkeypatch, capsys):
    """A block has one GELU; a micro-step runs each block forward once."""
    main_here(monkeypatch, *flags, "--profile", n)
    table = re.findall(r"^ +([\d.]+)% +([\d.]+) ms a step \| (.{48}) \| (.*)$",
                       capsys.readouterr().out, re.MULTILINE)
    shares = [float(share) for share, *_ in table]
    assert len(table) == 10 and shares == sorted(shares, reverse=True) and sum(shares) < 100.1
    # small ones may lack them, and on a busy machine any may stand among the ten
    assert sum(bool(words) for *_, words in table) >= 5, table
    events = json.loads((tmp_path / "run" / "trace.json").read_text())["traceEvents"]
    names = [event["name"] for event in events if event.get("cat") == "cpu_op"]
    config = json.loads((tmp_path / "run" / "log.txt").read_text().splitlines()[0][2:])["config"]
    micro_steps = config["total_batch_size"] // (config["B"] * config["T"])
    assert names.count("aten::gelu") == n * micro_steps * config["n_layer"]


def test_without_it_nothing_is_traced(flags, tmp_path, monkeypatch, capsys):
    main_here(monkeypatch, *flags)
    assert "profile" not in capsys.readouterr().out
    assert not (tmp_path / "run" / "trace.json").exists()


def test_more_steps_than_there_are_is_refused(flags, monkeypatch, capsys):
    said = refusal(train_gpt2.main, *flags, "--profile", 4, monkeypatch=monkeypatch, capsys=capsys)
    assert "--profile 4 of 6 steps" in said and "give 3 or less" in said
