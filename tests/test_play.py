"""play.ipynb runs from top to bottom, offline, on a run of the laptop preset."""

import base64

import nbformat
from helpers import ROOT, start
from nbclient import NotebookClient

from nanogpt.report import read_log


def test_the_notebook_stores_no_outputs():
    """They would be of a run that nobody can see, and 700 kB in every change."""
    for cell in nbformat.read(ROOT / "play.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None


def test_notebook_executes_on_a_laptop_run(tmp_path, monkeypatch):
    done = start("train_gpt2.py", "laptop", "--max-steps", 20, "--warmup-steps", 5, "--eval-every",
                 20, "--sample-tokens", 0, "--hellaswag-limit", 20, "--out-dir", tmp_path / "run",
                 "--device", "cpu")
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("RUN", str(tmp_path / "run"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "empty"))
    notebook = nbformat.read(ROOT / "play.ipynb", as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": ROOT}}).execute()

    outputs = [output for cell in notebook.cells if cell.cell_type == "code"
               for output in cell.outputs]
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    pictures = [base64.b64decode(output.data["image/png"]) for output in outputs
                if "image/png" in output.get("data", {})]
    assert len(pictures) == 5 and all(len(picture) > 5000 for picture in pictures)
    assert str(tmp_path / "run" / "checkpoint_000020") in text
    assert "undivided / one batch = 4.0000" in text
    assert text.count("-" * 80) == 3  # samples
    steps, values = read_log(tmp_path / "run" / "log.txt")["val"]
    assert f"val    first {values[0]:.4f}   last {values[-1]:.4f}" in text and steps == [0, 20]
