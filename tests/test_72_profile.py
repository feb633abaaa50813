"""--profile N: a trace of N steps, and which ten operations cost most."""

import json
import re
from collections import defaultdict

import pytest
from helpers import TINY, main_here, refusal, write_shards

import train_gpt2

RUN = [*TINY, "--max-steps", 6, "--eval-every", 6, "--val-tokens", 512, "--sample-tokens", 0]


@pytest.fixture
def flags(tmp_path):
    return [*RUN, "--data", write_shards(tmp_path / "shards"), "--out-dir", tmp_path / "run"]


def own_times(events):
    """Microseconds by name, from the trace: an operation's time without those that it called."""
    own, open_ones = defaultdict(float), []
    for event in sorted(events, key=lambda e: (e["tid"], e["ts"], -e["dur"])):
        while open_ones and (event["tid"] != open_ones[-1]["tid"]
                             or event["ts"] >= open_ones[-1]["ts"] + open_ones[-1]["dur"]):
            open_ones.pop()
        if open_ones:
            own[open_ones[-1]["name"]] -= event["dur"]
        own[event["name"]] += event["dur"]
        open_ones.append(event)
    return own


@pytest.mark.parametrize("n", [1, 3])
def test_n_steps_are_traced(n, flags, tmp_path, monkeypatch, capsys):
    """A block has one GELU; a micro-step runs each block forward once. The table has the ten
    operations to which the trace gives most of the time."""
    main_here(monkeypatch, *flags, "--profile", n)
    table = re.findall(r"^ +([\d.]+)% +([\d.]+) ms a step \| (.*)$", capsys.readouterr().out,
                       re.MULTILINE)
    shares = [float(share) for share, *_ in table]
    assert len(table) == 10 and shares == sorted(shares, reverse=True) and sum(shares) < 100.1
    events = json.loads((tmp_path / "run" / "trace.json").read_text())["traceEvents"]
    operations = [event for event in events if event.get("cat") == "cpu_op"]
    own = own_times([*operations, *(e for e in events if e.get("cat") == "user_annotation")])
    own = {name[:60]: us / 1000 / n for name, us in own.items()
           if name in {event["name"] for event in operations}}
    for share, ms, name in table:
        assert float(ms) == pytest.approx(own[name], abs=0.06)
        assert float(share) == pytest.approx(100 * own[name] / sum(own.values()), abs=0.2)
    assert own[table[-1][2]] == pytest.approx(sorted(own.values())[-10], rel=1e-3)
    names = [event["name"] for event in operations]
    config = json.loads((tmp_path / "run" / "log.txt").read_text().splitlines()[0][2:])["config"]
    micro_steps = config["total_batch_size"] // (config["B"] * config["T"])
    assert names.count("aten::gelu") == n * micro_steps * config["n_layer"]


def test_without_it_nothing_is_traced(flags, tmp_path, monkeypatch, capsys):
    main_here(monkeypatch, *flags)
    assert "profile" not in capsys.readouterr().out
    assert not (tmp_path / "run" / "trace.json").exists()


def test_more_steps_than_there_are_is_refused(flags, monkeypatch, capsys):
    said = refusal(train_gpt2.main, *flags, "--profile", 4, monkeypatch=monkeypatch, capsys=capsys)
    assert "--profile 4 of 6 steps" in said and "give --max-steps 7 or more" in said
