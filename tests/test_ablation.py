"""runs/ablation/ablate.py: each change is the change that it is called, and so is the table."""

import importlib.util
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import ROOT, write_shards

from nanogpt.muon import Muon
from train_gpt2 import GPT, GPTConfig, get_lr

SIZES = dict(n_layer=2, n_head=2, n_embd=16, T=16, total_batch_size=32 * 16, max_steps=20,
             warmup_steps=4, val_tokens=2000)


@pytest.fixture
def ablate(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", sys.path[:])
    spec = importlib.util.spec_from_file_location("ablate", ROOT / "runs/ablation/ablate.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "ablate", module)  # for its dataclass
    spec.loader.exec_module(module)
    module.BASE = replace(module.BASE, **SIZES)
    module.ROWS = tmp_path / "rows.jsonl"
    return module


@pytest.fixture
def data(tmp_path):
    return str(write_shards(tmp_path / "data"))


def network(ablate, *names):
    torch.manual_seed(1)
    net = GPT(GPTConfig(16, 257, 2, 2, 16))
    for name in names:
        ablate.CHANGES[name].net(net)
    return net


def moves(ablate, monkeypatch, data, name, updates=1):
    """[the parameters by name before update 0, 1, ...] of a run with these changes."""
    seen, step = [], ablate.train_step

    def look(t, lr):
        seen.append({key: p.detach().double() for key, p in t.net.named_parameters()})
        if len(seen) > updates:
            raise StopIteration
        return step(t, lr)

    monkeypatch.setattr(ablate, "train_step", look)
    with pytest.raises(StopIteration):
        ablate.train(name, 1, data)
    monkeypatch.setattr(ablate, "train_step", step)
    return seen


def test_every_change_trains_on_the_same_tokens(ablate, data):
    names = [name if name not in ("momentum", "apart") else f"muon+{name}"
             for name in ablate.CHANGES if not name.startswith(("ema", "rate"))]
    rows = {name: ablate.train(name, 1, data) for name in [*names, "apart"]}
    assert {row["tokens"] for row in rows.values()} == {20 * 32 * 16}
    ablate.BASE = replace(ablate.BASE, max_steps=30)  # whose ramp leaves a part of a batch
    assert ablate.train("ramp", 1, data)["tokens"] in range(29 * 512 + 1, 30 * 512 + 1)
    assert {name for name, row in rows.items() if row["updates"] != 20} == {"ramp"}
    assert rows["ramp"]["updates"] == 4 + 4 + 17  # quarters, halves, whole batches
    losses = {name: row["val"] for name, row in rows.items()}
    assert losses.pop("apart") == pytest.approx(losses["base"], abs=1e-6)  # AdamW does not care
    assert len({round(loss, 5) for loss in losses.values()}) == len(losses)


def test_projections_that_start_at_zero(ablate):
    """No block adds anything yet, and all other weights are what they were."""
    net, was = network(ablate, "zero"), network(ablate)
    idx = torch.arange(32).view(2, 16)
    embedded = net.transformer.wte(idx) + net.transformer.wpe.weight
    torch.testing.assert_close(net.hidden(idx), net.transformer.ln_f(embedded))
    changed = {name for name, p in net.named_parameters()
               if not p.equal(was.get_parameter(name))}
    assert changed == {name for name, _ in net.named_parameters() if name.endswith("c_proj.weight")}


def test_untied(ablate):
    net, was = network(ablate, "untied"), network(ablate)
    assert net.lm_head.weight.equal(was.lm_head.weight)
    wte = net.transformer.wte.weight
    assert wte is not net.lm_head.weight and wte.std().item() == pytest.approx(0.02, rel=0.05)
    net(torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.long))[1].backward()
    assert wte.grad[1:].eq(0).all() and net.lm_head.weight.grad[1:].ne(0).any()


def test_three_matrices_compute_what_one_did(ablate):
    idx = torch.arange(32).view(2, 16)
    torch.testing.assert_close(network(ablate, "apart")(idx)[0], network(ablate)(idx)[0])


@pytest.mark.parametrize("factor", ["3", "0.3"])
@pytest.mark.parametrize("kind", ["", "muon+"])
def test_embeddings_rate(factor, kind, ablate, monkeypatch, data):
    """Their first update is that many times as large, and no other's is."""
    name = kind + f"embed-{factor}"
    (at, new), (_, base) = (moves(ablate, monkeypatch, data, each)[:2]
                            for each in (name, kind.strip("+") or "base"))
    for key in at:
        times = float(factor) if key in ("lm_head.weight", "transformer.wte.weight",
                                         "transformer.wpe.weight") else 1
        torch.testing.assert_close(new[key] - at[key], times * (base[key] - at[key]),
                                   atol=1e-7, rtol=1e-4)


def test_warm_down(ablate):
    config = replace(ablate.BASE, max_steps=100, warmup_steps=10, max_lr=1.0)
    found = [ablate.warm_down(done, config) for done in (0, 9, 10, 60, 80, 99)]
    assert found == pytest.approx([0.1, 1, 1, 1, 0.5, 0.025])
    assert ablate.cosine(55, config) == get_lr(55, 1.0, 0.1, 10, 100)


def test_momentum_warms_up(ablate):
    class Optimizer:
        parts = Muon([torch.nn.Parameter(torch.eye(2))], 1.0), None

    class Training:
        optimizer = Optimizer

    found = []
    for done in 0, 150, 300, 3000:
        ablate.warm_up_momentum(Training, done)
        found.append(Optimizer.parts[0].param_groups[0]["momentum"])
    assert found == pytest.approx([0.85, 0.9, 0.95, 0.95])


def test_averages_of_the_weights(ablate, monkeypatch, data):
    """Against the same average of the weights after each update, in float64."""
    ablate.BASE = replace(ablate.BASE, max_steps=6)
    after, scored, step = [], [], ablate.train_step

    def look(t, lr):
        if not after:
            after.append(t.net.lm_head.weight.detach().double())
        step(t, lr)
        after.append(t.net.lm_head.weight.detach().double())

    monkeypatch.setattr(ablate, "train_step", look)
    monkeypatch.setattr(ablate, "validate", lambda net, *_: scored.append(
        net.lm_head.weight.detach().double().clone()))
    ablate.train("base", 1, data)
    average = after[0]
    for i, weight in enumerate(after[1:], 1):
        average = average + (weight - average) * 10 / (i + 10)
    torch.testing.assert_close(scored[0], after[-1])
    torch.testing.assert_close(scored[1], average, atol=1e-6, rtol=0)  # decays are smaller here


def test_finished_runs_are_not_run_again(ablate, monkeypatch, data, capsys):
    monkeypatch.setattr(sys, "argv", ["ablate.py", "train", data, "base", "zero", "--seeds", "3"])
    ablate.main()
    rows = ablate.ROWS.read_text()
    assert [json.loads(row)["name"] for row in rows.splitlines()] == ["base", "zero"]
    monkeypatch.setattr(ablate, "train", None)
    ablate.main()
    assert ablate.ROWS.read_text() == rows
    assert {"base", "zero", "ema-0.99", "zero+ema-0.99"} < ablate.read_rows().keys()


def test_the_table(ablate, monkeypatch, capsys):
    """Each change against what it changes, by the paired t-test of these two alone."""
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    base, one, two = (rng.normal(mean, 0.1, 5) for mean in (3, 2.9, 2.85))
    rows = {"base": dict(enumerate(base)), "muon": dict(enumerate(one)),
            "muon+zero": dict(enumerate(two[:3])), "ramp": {0: 1.0}}
    (first, ds, p), (second, others, q) = sorted(ablate.compare(rows))
    assert (first, second) == ("muon", "muon+zero")  # one seed is no comparison
    assert ds == pytest.approx(one - base) and others == pytest.approx(two[:3] - one[:3])
    assert p == pytest.approx(stats.ttest_rel(one, base).pvalue)
    assert q == pytest.approx(stats.ttest_rel(two[:3], one[:3]).pvalue)
    monkeypatch.setattr(ablate, "read_rows", lambda: rows)
    ablate.print_table()
    row = f"| muon | base | {one.mean():.3f} | {np.mean(one - base):+.3f} |"
    assert row in capsys.readouterr().out


def test_a_change_that_is_unknown(ablate, monkeypatch, data):
    monkeypatch.setattr(sys, "argv", ["ablate.py", "train", data, "muon+moun"])
    with pytest.raises(ablate.UserError, match="no change moun: choose among base, muon"):
        ablate.main()
