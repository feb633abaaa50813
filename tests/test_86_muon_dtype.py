"""Muon computes in the dtype that is faster here, and needs fewer products for wide matrices."""

import json
import os
import platform
import shutil
import subprocess
import sys

import pytest
import torch
from helpers import ROOT, TINY, main_here, write_shards

import nanogpt.muon
from nanogpt.muon import orthogonalize, polynomial

RUN = [*TINY, "--max-steps", 6, "--eval-every", 6, "--val-tokens", 512, "--sample-tokens", 0,
       "--checkpoint-every", 3, "--optimizer", "muon"]


def test_the_polynomial_is_that_of_the_five_rounds():
    """In float64, against an SVD: Q X has the singular values that five rounds make."""
    X = torch.randn(2, 6, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    X /= X.norm(dim=(1, 2), keepdim=True)
    U, S, Vt = torch.linalg.svd(X, full_matrices=False)
    expected = S
    for _ in range(5):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    assert torch.allclose(polynomial(X @ X.mT) @ X, U @ torch.diag_embed(expected) @ Vt,
                          atol=1e-12, rtol=0)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="of x86 CPUs")
def test_a_cpu_without_bfloat16_computes_in_float32():
    """The two variables hide the instructions on any CPU; without them bfloat16 is far slower."""
    code = "import torch, nanogpt.trial as m; print(m.quicker_dtype(torch.device('cpu')))"
    env = os.environ | {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True,
                          text=True)
    assert done.stdout.strip() == "torch.float32", done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 6 steps, and its shards."""
    folder = tmp_path_factory.mktemp("muon")
    with pytest.MonkeyPatch.context() as monkeypatch:
        main_here(monkeypatch, *RUN, "--data", write_shards(folder / "shards"), "--out-dir",
                  folder / "run")
    return folder


@pytest.mark.slow
def test_it_goes_on_to_the_bit(run, tmp_path, monkeypatch):
    """As if the run had been killed after its checkpoint of step 3, and the trial would now find
    the other dtype."""
    chosen = json.loads((run / "run" / "checkpoint_000006" / "state.json").read_text())["chosen"]
    other = {"bfloat16": torch.float32, "float32": torch.bfloat16}[chosen["muon"]]
    monkeypatch.setattr("nanogpt.trial.quicker_dtype", lambda device: other)
    shutil.copytree(run / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint_000006")
    main_here(monkeypatch, *RUN, "--data", run / "shards", "--out-dir", tmp_path / "run",
              "--resume")
    for file in "model.safetensors", "state.safetensors":
        assert ((tmp_path / "run" / "checkpoint_000006" / file).read_bytes()
                == (run / "run" / "checkpoint_000006" / file).read_bytes())


def test_the_run_has_what_was_chosen_and_says_so(run, monkeypatch, capsys):
    dtypes = set()
    monkeypatch.setattr("nanogpt.trial.quicker_dtype", lambda device: torch.bfloat16)
    monkeypatch.setattr(nanogpt.muon, "orthogonalize",
                        lambda G: dtypes.add(G.dtype) or orthogonalize(G))
    main_here(monkeypatch, *RUN, "--max-steps", 1, "--data", run / "shards", "--out-dir",
              run / "other")
    assert "Muon       | bfloat16 products\n" in capsys.readouterr().out
    assert dtypes == {torch.bfloat16}
