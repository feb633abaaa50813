"""Settings that make it another run are refused by name; others may change, and are logged."""

import json
import shutil

import numpy as np
import pytest
from helpers import TINY, main_here, refusal, sign_shards, write_shards

import train_gpt2
from nanogpt.report import read_log

pytestmark = pytest.mark.slow

RUN = [*TINY, "--max-steps", 4, "--val-tokens", 512, "--sample-tokens", 0, "--checkpoint-every", 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of 4 steps, and its shards."""
    folder = tmp_path_factory.mktemp("other")
    with pytest.MonkeyPatch.context() as monkeypatch:
        main_here(monkeypatch, *RUN, "--data", write_shards(folder / "shards"), "--out-dir",
                  folder / "run")
    return folder


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("flag, value, then", [
    ("--n-layer", 1, 2), ("--n-head", 4, 2), ("--n-embd", 64, 32), ("--T", 16, 32),
    ("--seed", 2, 1337), ("--shuffle", None, False)])
def test_another_network_or_order_is_refused(flag, value, then, folder, monkeypatch, capsys):
    before = contents(folder)
    flags = [flag] if value is None else [flag, value]
    said = refusal(train_gpt2.main, *RUN, "--data", folder / "shards", "--out-dir", folder / "run",
                   "--resume", *flags, monkeypatch=monkeypatch, capsys=capsys)
    assert f"was begun with {flag} {then}, not {True if value is None else value}" in said
    assert contents(folder) == before


def test_other_shards_are_refused(folder, tmp_path, monkeypatch, capsys):
    """`position` means another text there. The same shards in another folder are accepted."""
    other = write_shards(tmp_path / "other", shards=3)
    said = refusal(train_gpt2.main, *RUN, "--data", other, "--out-dir", folder / "run", "--resume",
                   monkeypatch=monkeypatch, capsys=capsys)
    assert "does not hold the training shards" in said
    shutil.copytree(folder / "shards", tmp_path / "moved")
    shutil.copytree(folder / "run", tmp_path / "run")
    main_here(monkeypatch, *RUN, "--data", tmp_path / "moved", "--out-dir", tmp_path / "run",
              "--resume")
    assert "resumed    | at step 4" in capsys.readouterr().out


def test_shards_of_other_tokens_are_refused(folder, tmp_path, monkeypatch, capsys):
    """By the checksums in the manifests, though names and sizes are the same. Shards without
    checksums, and a checkpoint that knows none, go by names and sizes."""
    signed = sign_shards(shutil.copytree(folder / "shards", tmp_path / "signed"))
    other = shutil.copytree(signed, tmp_path / "other")
    np.save(other / "text_train_000001.npy", np.load(other / "text_train_000001.npy")[::-1])
    sign_shards(other)
    for name, data in ("run", signed), ("old", folder / "shards"):
        main_here(monkeypatch, *RUN, "--data", data, "--out-dir", tmp_path / name)
    said = refusal(train_gpt2.main, *RUN, "--data", other, "--out-dir", tmp_path / "run",
                   "--resume", monkeypatch=monkeypatch, capsys=capsys)
    assert "does not hold the training shards" in said
    for name, data in ("run", signed), ("run", folder / "shards"), ("old", other):
        main_here(monkeypatch, *RUN, "--data", data, "--out-dir", tmp_path / name, "--resume")
        assert "resumed    | at step 4" in capsys.readouterr().out


def test_other_settings_change_and_are_said(folder, tmp_path, monkeypatch, capsys):
    """A lower rate after a bad night, a smaller micro-batch, more steps."""
    shutil.copytree(folder / "run", tmp_path / "run")
    main_here(monkeypatch, *RUN, "--data", folder / "shards", "--out-dir", tmp_path / "run",
              "--resume", "--max-lr", 1e-3, "--B", 4, "--max-steps", 6)
    said = capsys.readouterr().out
    assert ", B 8 -> 4, max_steps 4 -> 6, max_lr 0.003 -> 0.001" in said
    lines = (tmp_path / "run" / "log.txt").read_text().splitlines()
    [note] = [json.loads(line[2:]) for line in lines if line.startswith('# {"resumed"')]
    assert note["changed"] == {"B": [8, 4], "max_steps": [4, 6], "max_lr": [3e-3, 1e-3]}
    steps, losses = read_log(tmp_path / "run" / "log.txt")["train"]
    assert steps == list(range(6)) and np.isfinite(losses).all()
