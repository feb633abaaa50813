"""runs/scaling: the law that its rows fit, and the runs behind them."""

import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from helpers import ROOT, write_shards

from nanogpt.common import UserError
from nanogpt.report import flops_per_token
from train_gpt2 import GPT, GPTConfig


def script(name):
    """runs/scaling/NAME.py as a module."""
    path = sys.path[:]
    where = ROOT / f"runs/scaling/{name}.py"
    spec = importlib.util.spec_from_file_location(f"scaling_{name}", where)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


fit, scale = script("fit"), script("scale")
N, D = (v.ravel() for v in np.meshgrid(np.geomspace(2e4, 1e6, 5), np.geomspace(5e5, 8e6, 5)))


def law(N, D, A=60.0, alpha=0.3, B=400.0, beta=0.4, E=1.8):
    return E + A / N**alpha + B / D**beta


def test_a_known_law_comes_back():
    found = fit.Law(fit.fit_all(N, D, law(N, D)))
    assert (found.A, found.alpha, found.B, found.beta, found.E) == pytest.approx(
        (60, 0.3, 400, 0.4, 1.8), rel=1e-6)
    assert found(1e8, 1e10) == pytest.approx(law(1e8, 1e10), rel=1e-6)


def test_e_can_be_held():
    """At its true value nothing changes. At another the rest makes up for it, but not wholly."""
    found = fit.Law(fit.fit_all(N, D, law(N, D), E=1.8))
    assert (found.A, found.beta, found.E) == pytest.approx((60, 0.4, 1.8), rel=1e-6)
    held = fit.Law(fit.fit_all(N, D, law(N, D), E=0.5))
    assert held.E == pytest.approx(0.5, rel=1e-12) and held.alpha < 0.25
    assert 1e-4 < abs(held(N, D) / law(N, D) - 1).max() < 3e-2


def test_one_bad_run_does_not_move_it():
    """Huber's loss: a run that is 5% too high counts little; least squares would follow it."""
    L = law(N, D)
    L[7] *= 1.05
    found = fit.Law(fit.fit_all(N, D, L))
    assert found(N, D) == pytest.approx(law(N, D), rel=1e-3)


@pytest.mark.parametrize("C", [1e12, 1e15, 1e18])
def test_the_best_size_is_that_of_a_search(C):
    found = fit.Law((np.log(60), 0.3, np.log(400), 0.4, np.log(1.8)))
    sizes = np.geomspace(1e2, 1e12, 200_001)
    n, d = found.best(C)
    assert n == pytest.approx(sizes[law(sizes, C / 6 / sizes).argmin()], rel=1e-3)
    assert 6 * n * d == pytest.approx(C)


def test_no_other_optimizer_finds_a_better_fit():
    """torch's LBFGS in float64 on the loss as Hoffmann et al. write it, from eight starts."""
    rows = fit.read_rows()
    n, d, L = (torch.tensor([row[key] for row in rows], dtype=torch.float64)
               for key in ("N", "D", "loss"))

    def loss(x):
        terms = torch.stack((x[0] - x[1] * n.log(), x[2] - x[3] * d.log(), x[4].expand(len(rows))))
        return torch.nn.functional.huber_loss(terms.logsumexp(0), L.log(), reduction="sum",
                                              delta=fit.DELTA)

    ours = loss(torch.tensor(fit.fit(rows).x, dtype=torch.float64)).item()
    for start in [fit.fit(rows).x, *fit.STARTS[::5]]:
        x = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([x], max_iter=500, line_search_fn="strong_wolfe",
                                      tolerance_change=1e-14, tolerance_grad=1e-10)

        def closure(x=x, optimizer=optimizer):
            optimizer.zero_grad()
            (value := loss(x)).backward()
            return value

        optimizer.step(closure)
        assert loss(x).item() > ours * (1 - 1e-3)


def test_the_rows_are_those_of_the_grid():
    rows = fit.read_rows(seed=None)
    names = "size", "steps", "optimizer", "rate", "seed"
    assert sorted(tuple(row[name] for name in names) for row in rows) == sorted(scale.GRID)
    for row in rows:
        n_layer, n_embd = map(int, row["size"].split("x"))
        net = GPT(GPTConfig(128, 1024, n_layer, n_embd // 16, n_embd))
        skipped = {"transformer.wte.weight", "transformer.wpe.weight"}
        assert row["N"] == sum(p.numel() for name, p in net.named_parameters()
                               if name not in skipped)
        assert row["D"] == 2048 * row["steps"]
        assert row["flops"] == flops_per_token(net, 128) * row["D"]
    assert len(fit.read_rows()) >= 15


def test_a_row_is_trained_once(tmp_path, monkeypatch, capsys):
    """Two tiny runs: rows with the right facts; the second command finds them and does nothing."""
    write_shards(tmp_path / "data")
    monkeypatch.setattr(scale, "GRID", [("1x16", 2, "muon", 1e-2, 1), ("1x16", 2, "adamw", 1e-2, 1),
                                        ("2x16", 1, "muon", 1e-2, 1)])
    monkeypatch.setattr(scale, "SIZES", {"1x16": 2, "2x16": 1})
    rows = tmp_path / "rows.jsonl"
    args = ["scale.py", "--data", str(tmp_path / "data"), "--rows", str(rows)]
    monkeypatch.setattr(sys, "argv", [*args, "--size", "1x16"])
    scale.main()
    one = rows.read_text()
    assert [json.loads(line)["optimizer"] for line in one.splitlines()] == ["muon", "adamw"]
    monkeypatch.setattr(sys, "argv", args)
    scale.main()
    assert rows.read_text().startswith(one) and len(rows.read_text().splitlines()) == 3
    scale.main()
    first, *_, last = map(json.loads, rows.read_text().splitlines())
    assert first["loss"] == pytest.approx(5.55, abs=0.3)  # of 257 ids: ln 257
    assert (first["D"], last["N"]) == (4096, 2 * (12 * 16**2 + 13 * 16) + 2 * 16)
    assert 0.95 < first["bytes_per_token"] < 1  # bytes, and now and then an end-of-text

    monkeypatch.setattr(scale, "GRID", [("1x16", 20, "muon", 1e-2, 1)])
    with pytest.raises(UserError, match="give at least 40,960"):
        scale.main()
