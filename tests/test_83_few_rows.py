"""Products of few rows use the faster of two kernels, and hellaswag.py asks the machine, too."""

import json
import sys

import pytest
import torch
from helpers import lively_gpt
from torch.nn import functional as F

import hellaswag
from nanogpt import trial
from nanogpt.cpu import inner
from nanogpt.trial import try_few_rows, try_products

MATMUL = torch.backends.mkldnn.matmul
needs_inner = pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"),
                                 reason="this torch has no inner product of oneDNN's")


def weights(n=4):
    return [torch.ones(1024, 512) for _ in range(n)]


@needs_inner
@pytest.mark.parametrize("seconds, chosen", [
    ({"plain": 1.0, "inner": 0.5}, "inner"), ({"plain": 1.0, "inner": 0.97}, "plain"),
    ({"plain": 1.0, "inner": 2.0}, "plain")])
def test_the_quicker_is_chosen(seconds, chosen, monkeypatch):
    monkeypatch.setattr(trial, "least_seconds", lambda actions: seconds)
    assert try_few_rows(weights()) == chosen
    assert try_products(lively_gpt(n_layer=1, n_embd=512), 64)["few rows"] == chosen


@needs_inner
def test_what_is_tried(monkeypatch):
    """Both kernels, on every matrix in turn, with one row and with eight; at most twelve matrices,
    each cut to 16 MB."""
    seen = []

    def watch(name, product):
        def multiply(x, weight, bias=None):
            seen.append((name, tuple(x.shape), weight.data_ptr()))
            assert weight.numel() <= 2**22
            return product(x, weight, bias)
        return multiply

    monkeypatch.setattr(F, "linear", watch("plain", F.linear))
    monkeypatch.setattr(trial, "inner", watch("inner", inner))
    monkeypatch.setattr(trial, "least_seconds", lambda actions: {
        name: action() or 1.0 for name, action in actions.items()})
    many = [*weights(14), torch.ones(8192, 1024)]
    assert try_few_rows(many) == "plain"
    assert seen == [(name, (rows, 512), weight.data_ptr()) for name in ("plain", "inner")
                    for weight in many[:12] for rows in (1, 8)]
    assert try_few_rows(many[-1:]) == "plain"


def test_small_networks_are_not_asked(monkeypatch):
    monkeypatch.setattr(trial, "least_seconds", lambda actions: pytest.fail("it was tried"))
    assert try_few_rows(weights(1)) == "plain"


@pytest.mark.parametrize("library", ["plain", "onednn"])
def test_hellaswag_is_scored_by_the_one_chosen(library, tmp_path, monkeypatch, capsys):
    model = lively_gpt(block_size=64)
    model.save_pretrained(tmp_path / "model")
    rows = [{"ctx": "a b", "endings": ["c", "d", "e", "f"], "label": 1, "split": "val", "ind": 1,
             "activity_label": "x"}]
    (tmp_path / "hella.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen, count = [], hellaswag.count_correct

    def watched(*args, **kwargs):
        seen.append(MATMUL.fp32_precision)
        return count(*args, **kwargs)

    before = MATMUL.fp32_precision
    monkeypatch.setattr(hellaswag, "count_correct", watched)
    monkeypatch.setattr(hellaswag, "try_products", lambda model, rows: {"forward": library})
    monkeypatch.setattr(sys, "argv", ["hellaswag.py", "--model", str(tmp_path / "model"), "--data",
                                      str(tmp_path / "hella.jsonl"), "--device", "cpu"])
    hellaswag.main()
    assert seen == [{"plain": before, "onednn": "bf16"}[library]]
    assert MATMUL.fp32_precision == before
    assert "of 1)" in capsys.readouterr().out
