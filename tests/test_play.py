"""play.ipynb runs from top to bottom, offline, on a run of the laptop preset and on odd ones."""

import base64
import json
import os

import nbformat
import pytest
from helpers import ROOT, small_gpt, start
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from nanogpt.exports import tokenizer_files
from nanogpt.report import Log, read_log
from nanogpt.tokenizer import get_tokenizer


def execute(folder, monkeypatch, run=None):
    """The notebook's text and pictures, when it is executed in `folder`, offline."""
    monkeypatch.setenv("RUN", str(run)) if run else monkeypatch.delenv("RUN", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder / "empty"))
    notebook = nbformat.read(ROOT / "play.ipynb", as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": folder}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code"
               for output in cell.outputs]
    return ("".join(output.text for output in outputs if output.output_type == "stream"),
            [base64.b64decode(output.data["image/png"]) for output in outputs
             if "image/png" in output.get("data", {})])


def a_log(run, **more):
    """The log of a run that was stopped after two steps, without HellaSwag."""
    run.mkdir(parents=True)
    log = Log(run / "log.txt", master_process=True)
    log.note(config=dict(data="pydoc", T=8, vocab_size=257, n_layer=1, n_head=1, n_embd=2, seed=0,
                         prompt="Hello", hellaswag="none") | more)
    for step, loss in enumerate((5.5, 5.0)):
        log.value(step, "train", loss)
    log.value(0, "val", 5.5)


def test_the_notebook_stores_no_outputs():
    """They would be of a run that nobody can see, and 700 kB in every change."""
    for cell in nbformat.read(ROOT / "play.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None


def test_notebook_executes_on_a_laptop_run(tmp_path, monkeypatch):
    done = start("train_gpt2.py", "laptop", "--max-steps", 20, "--warmup-steps", 5, "--eval-every",
                 20, "--sample-tokens", 0, "--hellaswag-limit", 20, "--out-dir", tmp_path / "run",
                 "--device", "cpu", "--health", 5)
    assert done.returncode == 0, done.stderr
    log = tmp_path / "run" / "log.txt"
    with open(log, "a", encoding="utf-8") as file:  # as versions before step-68 may have written
        file.write("20 train nan\n20 train -inf\n20 hella inf\n")
    text, pictures = execute(tmp_path, monkeypatch, tmp_path / "run")
    assert len(pictures) == 6 and all(len(picture) > 5000 for picture in pictures)
    assert str(tmp_path / "run" / "checkpoint_000020") in text
    assert "undivided / one batch = 4.0000" in text
    assert text.count("-" * 80) == 3  # samples
    steps, values = read_log(log)["val"]
    assert f"val    first {values[0]:.4f}   last {values[-1]:.4f}" in text and steps == [0, 20]
    said = [line for line in text.splitlines() if line.startswith(("train  first", "hella  first"))]
    assert len(said) == 2 and not any("inf" in line or "nan" in line for line in said)


def test_a_run_without_a_checkpoint(tmp_path, monkeypatch):
    """It was stopped too early. Its network, the smallest there can be, gets random weights; its
    log gives curves."""
    a_log(tmp_path / "run")
    text, pictures = execute(tmp_path, monkeypatch, tmp_path / "run")
    assert f"{tmp_path / 'run'} has no checkpoint: you see random weights" in text
    assert len(pictures) == 5 and "val    first 5.5000   last 5.5000" in text
    assert "undivided / one batch = 4.0000" in text and text.count("-" * 80) == 3


@pytest.mark.parametrize("characters", ["\n aeist", "\u4e59\u7532"])
@pytest.mark.parametrize("data, saved", [
    ("my.txt", False), ("my.txt.chars", False), ("gone", True)])
def test_a_run_on_characters(characters, data, saved, tmp_path, monkeypatch):
    """The tokenizer is the checkpoint's; without one, that of the data."""
    enc, n = get_tokenizer(f"chars:{characters}"), len(characters)
    (tmp_path / "my.txt").write_text(characters, encoding="utf-8")
    (tmp_path / "my.txt.chars").mkdir()
    (tmp_path / "my.txt.chars" / "manifest.json").write_text(json.dumps(dict(
        tokenizer="chars", characters=characters, vocab_size=n, end_of_text=None, shards=[])))
    a_log(tmp_path / "run", data=str(tmp_path / data), tokenizer="chars", vocab_size=n,
          prompt=characters[-1])
    if saved:
        checkpoint = tmp_path / "run" / "checkpoint_000002"
        small_gpt(vocab_size=n, n_layer=1, n_head=1).save_pretrained(checkpoint)
        for name, text in tokenizer_files(enc, 16).items():
            (checkpoint / name).write_text(text, encoding="utf-8")
    text, pictures = execute(tmp_path, monkeypatch, tmp_path / "run")
    assert ("random weights" in text) is not saved and len(pictures) == 5
    written = text[text.index("val    first") :].splitlines()
    assert "-" * 80 in written and set("".join(written[1:]).replace("-", "")) <= set(characters)


def test_the_newest_checkpoint_of_many_runs(tmp_path, monkeypatch):
    """Between runs without checkpoints, files, and folders that are no runs."""
    for name, when in ("a", 3000), ("b", 1000), ("c", None):
        a_log(tmp_path / "log" / name)
        if when:
            checkpoint = tmp_path / "log" / name / "checkpoint_000002"
            small_gpt(n_layer=1, n_head=1).save_pretrained(checkpoint)
            os.utime(checkpoint, (when, when))
    (tmp_path / "log" / "c" / "checkpoint_000002").mkdir()  # half of a copy
    (tmp_path / "log" / "d").mkdir()
    (tmp_path / "log" / "notes.txt").write_text("b was better")
    text, pictures = execute(tmp_path, monkeypatch)
    assert text.startswith("log/a/checkpoint_000002\nother runs: log/b log/c\n")
    assert len(pictures) == 5


@pytest.mark.parametrize("run", [None, "nowhere"])
def test_without_a_run_it_says_what_to_do(run, tmp_path, monkeypatch):
    said = f"no run in {run or 'log'}: train one with python train_gpt2.py laptop"
    with pytest.raises(CellExecutionError, match=said):
        execute(tmp_path, monkeypatch, run)
