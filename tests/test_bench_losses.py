"""bench losses finds a commit that computes something else, and none that does not."""

import json
import re
import shutil

import pytest
from helpers import ROOT
from lecture_helpers import commit, git

import train_gpt2
from build_nanogpt.bench import losses
from build_nanogpt.bench.command import Config, main
from build_nanogpt.cli import UserError
from nanogpt import common

# A program with the flags that the command gives, and a log; trains nothing, imports nothing.
PROGRAM = """
import os, pathlib, sys
flags = dict(zip(sys.argv[1:], sys.argv[2:]))
folder = pathlib.Path(flags["--out-dir"])
assert flags["--products"] == "plain" and "PYTHONPATH" not in os.environ
if os.environ.get("RANK", "0") == "0":
    folder.mkdir()
    size = sum(path.stat().st_size for path in pathlib.Path("shards").iterdir())
    steps = range(int(flags["--max-steps"]))
    lines = ["# {}", "0 val 5.5", *(f"{i} train {9 - size / 2**40 - RATE * i!r}" for i in steps)]
    (folder / "log.txt").write_text("\\n".join([*lines, ""]))
"""
BOX = """
import sys
sys.exit(\"\"\"
╭─ Parsing error ─────────────────────────╮
│ Unrecognized options: --products plain  │
│ ─────────────────────────────────────── │
│ For full helptext, run with --help      │
╰─────────────────────────────────────────╯\"\"\")
"""


def program(rate):
    return PROGRAM.replace("RATE", str(rate))


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository of one commit, in place of this one. `.` is its work tree."""
    monkeypatch.setenv("PYTHONPATH", "nowhere")
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    (root / "train_gpt2.py").write_text(program(0.25))
    commit(root, "a program")
    monkeypatch.setattr(losses, "ROOT", root)
    return root


def compare(*commits, only=("laptop, AdamW",), steps=3, status=0, folder):
    """The rows of a comparison, which ends with `status`."""
    record = folder / "losses.json"
    config = Config("losses", commits, only=only, steps=steps, json=str(record))
    if status:
        with pytest.raises(SystemExit) as stop:
            main(config)
        assert stop.value.code == status
    else:
        main(config)
    return json.loads(record.read_text())["rows"]


def test_another_rate_is_found(repository, tmp_path, capsys):
    """Between commits and in the work tree, on one rank and on two; and what is equal is."""
    names = "laptop, AdamW", "laptop, Muon, 2 ranks"
    rows = compare("main", ".", only=names, folder=tmp_path)
    assert [(row["variant"], row["equal"], row["steps"]) for row in rows] == [
        (name, True, 3) for name in names]
    (repository / "train_gpt2.py").write_text(program(0.5))
    [row] = compare("HEAD", ".", folder=tmp_path, status=1)
    commit(repository, "another rate")
    assert compare("HEAD~1", "HEAD", folder=tmp_path, status=1)[0] | {"table": ""} == row | {
        "table": ""}
    assert (row["equal"], row["step"], row["kind"], row["largest"]) == (False, 1, "train", 0.5)
    a, b = row["values"]
    assert a - b == 0.25
    said = [line for line in capsys.readouterr().out.splitlines() if "laptop" in line[:9]]
    assert said[0].split("  ")[-1] == "equal to the bit"
    assert f"train differs from step 1 on: {a} and {b}; largest difference 0.5" in said[-1]


def test_a_commit_that_does_not_know_a_flag(repository, tmp_path, capsys):
    (repository / "train_gpt2.py").write_text(BOX)
    [row] = compare("main", ".", folder=tmp_path, status=1)
    assert row["failed"] == {".": "Unrecognized options: --products plain"}
    assert ". ended: Unrecognized options: --products plain\n" in capsys.readouterr().out


@pytest.mark.parametrize("a, b, expected", [
    ({(0, "val"): 1.0, (0, "train"): 2.0}, {(0, "val"): 1.0, (0, "train"): 2.0}, {}),
    ({(0, "val"): 1.0, (0, "train"): 2.0}, {(0, "val"): 1.5, (0, "train"): 4.0},
     {"step": 0, "kind": "val", "values": [1.0, 1.5], "largest": 2.0}),
    ({(0, "train"): 1.0, (1, "train"): 2.0}, {(0, "train"): 1.0},
     {"step": 1, "kind": "train", "values": [2.0, None], "largest": None}),
    ({(0, "train"): 1.0}, {(0, "train"): 1.0, (1, "train"): 2.0},
     {"step": 1, "kind": "train", "values": [None, 2.0], "largest": None}),
])
def test_difference(a, b, expected):
    assert losses.difference(a, b) == expected


@pytest.mark.parametrize("commits, words", [
    ((), "compares two commits, not 0"), (("HEAD",), "not 1"),
    (("HEAD", "nowhere"), "there is no commit nowhere"), (("--all", "HEAD"), "no commit --all")])
def test_commits_that_cannot_be_compared(commits, words, repository, tmp_path):
    with pytest.raises(UserError, match=re.escape(words)):
        compare(*commits, folder=tmp_path)


def test_without_gpt2s_vocabulary_its_configuration_is_left_out(repository, tmp_path, monkeypatch,
                                                                capsys):
    def offline(name):
        raise common.UserError("no network")

    monkeypatch.setattr(losses, "get_tokenizer", offline)
    with pytest.raises(UserError, match="nothing was compared"):
        compare(".", ".", only=("124M in small",), folder=tmp_path)
    assert "left out: 124M in small: no network" in capsys.readouterr().out


@pytest.mark.parametrize("name", losses.CONFIGURATIONS)
def test_the_program_knows_the_flags(name):
    ranks, flags = losses.CONFIGURATIONS[name]
    assert train_gpt2.check_config(train_gpt2.parse_args(flags), ranks) >= 1


def test_the_program_itself(repository, tmp_path):
    """It repeats itself to the bit, and another learning rate is found."""
    for path in [*ROOT.glob("*.py"), *ROOT.glob("nanogpt/*.py")]:
        (repository / path.relative_to(ROOT)).parent.mkdir(exist_ok=True)
        shutil.copy(path, repository / path.relative_to(ROOT))
    commit(repository, "the program")
    [row] = compare("HEAD", ".", only=("laptop, Muon",), folder=tmp_path)
    assert row["equal"], row
    source = (repository / "train_gpt2.py").read_text()
    (repository / "train_gpt2.py").write_text(source.replace("max_lr=1e-2", "max_lr=1.0001e-2"))
    [row] = compare("HEAD", ".", folder=tmp_path, status=1)
    assert (row["step"], row["kind"]) == (1, "val") and 0 < row["largest"] < 1e-3
