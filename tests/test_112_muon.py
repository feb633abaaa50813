"""Muon moves the blocks' matrices evenly in all directions, AdamW the rest; both are resumed."""

import copy
import json
import shutil

import pytest
import torch
from helpers import TINY, lively_gpt, main_here, refusal, write_shards

import train_gpt2

RUN = [*TINY, "--max-steps", 6, "--eval-every", 6, "--val-tokens", 512, "--sample-tokens", 0,
       "--checkpoint-every", 3, "--optimizer", "muon"]


def one_update(model, optimizer):
    """{name: change} by one update with a gradient of random numbers."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name)))
    optimizer.step()
    return {name: p.detach() - before[name] for name, p in model.named_parameters()}


def is_a_blocks_matrix(name, p):
    return p.dim() == 2 and ".h." in name


def test_which_parameters_have_which():
    model, lr = lively_gpt(), 1e-3
    other = copy.deepcopy(model)
    muon = one_update(model, train_gpt2.configure_optimizer(model, 0.0, lr, "muon"))
    adamw = one_update(other, train_gpt2.configure_optimizer(other, 0.0, lr))
    assert sum(is_a_blocks_matrix(*named) for named in model.named_parameters()) == 8
    for name, p in model.named_parameters():
        assert torch.equal(muon[name], adamw[name]) == (not is_a_blocks_matrix(name, p)), name


def test_a_matrix_moves_as_far_in_every_direction():
    """The gradient U S V^T becomes U V^T (singular values in bf16 and five rounds: 0.5 to 1.3), of
    AdamW's root mean square, 0.2 lr."""
    model, lr = lively_gpt(), 1e-3
    moved = one_update(model, train_gpt2.configure_optimizer(model, 0.0, lr, "muon"))
    for name, p in model.named_parameters():
        if is_a_blocks_matrix(name, p):
            U, _, Vt = torch.linalg.svd(p.grad, full_matrices=False)
            along = U.T @ moved[name] @ Vt.T / (-lr * 0.2 * max(p.shape) ** 0.5)
            assert 0.4 < along.diagonal().min() < along.diagonal().max() < 1.4, name
            assert (along - along.diagonal().diag()).abs().max() < 0.05, name


def test_decay_is_of_matrices_and_embeddings():
    model, lr, decay = lively_gpt(), 1e-3, 0.5
    before, other = copy.deepcopy(model), copy.deepcopy(model)
    decayed = one_update(model, train_gpt2.configure_optimizer(model, decay, lr, "muon"))
    plain = one_update(other, train_gpt2.configure_optimizer(other, 0.0, lr, "muon"))
    for name, p in before.named_parameters():
        pull = lr * decay * p if p.dim() == 2 else torch.zeros_like(p)
        assert torch.allclose(plain[name] - decayed[name], pull, atol=1e-6), name


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
    """As if the run had been killed after its checkpoint of step 3."""
    shutil.copytree(run / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint_000006")
    main_here(monkeypatch, *RUN, "--data", run / "shards", "--out-dir", tmp_path / "run",
              "--resume")
    for file in "model.safetensors", "state.safetensors":
        assert ((tmp_path / "run" / "checkpoint_000006" / file).read_bytes()
                == (run / "run" / "checkpoint_000006" / file).read_bytes())


@pytest.mark.slow
def test_another_optimizer_is_refused(run, monkeypatch, capsys):
    said = refusal(train_gpt2.main, *RUN[:-1], "adamw", "--data", run / "shards", "--out-dir",
                   run / "run", "--resume", monkeypatch=monkeypatch, capsys=capsys)
    assert "was begun with --optimizer muon, not adamw" in said


def test_a_rate_that_no_float32_holds_is_refused(tmp_path, monkeypatch, capsys):
    said = refusal(train_gpt2.main, *RUN, "--data", write_shards(tmp_path / "shards"), "--out-dir",
                   tmp_path / "run", "--max-lr", "1e300", monkeypatch=monkeypatch, capsys=capsys)
    assert "--max-lr 1e+300" in said and "max <= 1e30" in said


def test_a_checkpoint_of_before_has_adamw():
    config = train_gpt2.TrainConfig()
    facts = {"config": json.loads(json.dumps(train_gpt2.asdict(config))), "shards": [], "step": 1}
    del facts["config"]["optimizer"]
    assert train_gpt2.changed_settings(config, facts, []) == {}
