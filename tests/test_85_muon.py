"""Muon moves the blocks' matrices evenly in all directions, AdamW the rest; both are resumed."""

import copy
import json

import pytest
import torch
from helpers import TINY, lively_gpt, main_here, refusal, write_shards

import nanogpt.muon
import train_gpt2
from nanogpt.checkpoints import changed_settings
from nanogpt.muon import Muon, orthogonalize

RUN = [*TINY, "--max-steps", 6, "--eval-every", 6, "--val-tokens", 512, "--sample-tokens", 0,
       "--checkpoint-every", 3, "--optimizer", "muon"]


def rounds(s):
    """What the five rounds make of a singular value."""
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return s


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 8, 40), (2, 40, 8), (1, 7, 9), (2, 1, 5)])
def test_singular_values_alone_are_changed(shape):
    """G = U S V^T becomes U rounds(S / |G|) V^T: against an SVD in float64. In float32, half of
    the digits may be lost."""
    G = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    U, S, Vt = torch.linalg.svd(G, full_matrices=False)
    expected = U @ torch.diag_embed(rounds(S / S.norm(dim=1, keepdim=True))) @ Vt
    assert orthogonalize(G).shape == G.shape
    assert (orthogonalize(G) - expected).abs().max() < 1e-12
    assert (orthogonalize(G.float()) - expected).abs().max() < 1e-5


def test_matrices_without_rank():
    """A matrix of rank 1, at several sizes, and zero."""
    one = torch.ones(1, 8, 1) @ torch.randn(1, 1, 40)
    assert orthogonalize(torch.zeros(2, 8, 40)).count_nonzero() == 0
    for G in one, one.mT, 1e-6 * one, 1e15 * one:
        assert 0.5 < torch.linalg.matrix_norm(orthogonalize(G), 2).item() < 1.3


def test_a_step_is_that_of_torchs_muon():
    """That one computes in bfloat16. Three steps with decay agree to its 8 bits of mantissa."""
    shapes = [(24, 8), (8, 8), (8, 32), (24, 8), (8, 24)]
    found = []
    for make in (lambda p: Muon(p, 0.1, 0.5, dtype=torch.bfloat16),
                 lambda p: torch.optim.Muon(p, lr=0.1, weight_decay=0.5,
                                            adjust_lr_fn="match_rms_adamw")):
        generator = torch.Generator().manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
        optimizer = make(params)
        for _ in range(3):
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()
        found.append([p.detach() for p in params])
        found.append([optimizer.state[p]["momentum_buffer"] for p in params])
    weights, momentum, their_weights, their_momentum = found
    for a, b in zip(weights, their_weights, strict=True):
        assert (a - b).abs().max() < 0.01 * 3 * 0.1  # a hundredth of what three steps may move
    for a, b in zip(momentum, their_momentum, strict=True):
        assert torch.equal(a, b)


def test_a_stack_may_be_cut(monkeypatch):
    """To save memory: the same update, one matrix at a time."""
    found = []
    for most in 2**26, 1:
        monkeypatch.setattr(nanogpt.muon, "MOST", most)
        model = lively_gpt()
        found.append(one_update(model, Muon([p for name, p in model.named_parameters()
                                             if is_a_blocks_matrix(name, p)], 1e-3)))
    for name, change in found[0].items():
        assert torch.allclose(change, found[1][name], atol=1e-8), name


def one_update(model, optimizer):
    """{name: change} from one update with random gradients."""
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
    """The gradient U S V^T becomes U V^T (singular values after five rounds: 0.5 to 1.3), with a
    root mean square of 0.2 lr."""
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
    assert changed_settings(config, facts, []) == {}


def test_resumed_from_before_the_first_update():
    """Such a checkpoint has no averages: restore leaves an empty state for every parameter."""
    p = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = Muon([p], 0.1)
    optimizer.state[p], p.grad = {}, torch.eye(4)
    optimizer.step()
    assert optimizer.state[p]["momentum_buffer"].count_nonzero() == 4
