"""One token at a time, a product is a matrix times a vector, and has its own kernel."""

import pytest
import torch
from helpers import lively_gpt
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from nanogpt.cpu import FEW, choose_products, inner, quicken

pytestmark = pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"),
                                reason="this torch has no inner product of oneDNN's")
FEW_ROWS = {"forward": "plain", "backward": "plain", "few rows": "inner"}


class Operations(TorchDispatchMode):
    """The names of all operations, in order."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", [(768,), (1, 768), (1, 1, 768), (4, 3, 768)])
def test_it_is_as_exact_as_float32_is(shape, biased):
    """Against float64; rounded to bfloat16 it would err by 0.2."""
    x, weight = torch.randn(shape), torch.randn(2304, 768)
    bias = torch.randn(2304) if biased else None
    y = inner(x, weight, bias)
    exact = F.linear(x.double(), weight.double(), bias.double() if biased else None)
    assert y.shape == exact.shape and y.layout == torch.strided and (y - exact).abs().max() < 5e-4


def test_rows_with_others_between_them():
    """The last positions of a batch, as sampling cuts them out."""
    x, weight = torch.randn(4, 6, 64), torch.randn(96, 64)
    assert torch.allclose(inner(x[:, -1], weight), x[:, -1] @ weight.t(), atol=1e-4)


@pytest.mark.parametrize("shape, few", [((1, FEW), True), ((FEW, 1), True), ((FEW, 2), False)])
def test_which_products_have_it(shape, few):
    """Those in float32 with at most FEW rows and without gradients."""
    model, idx = lively_gpt(), torch.zeros(*shape, dtype=torch.long)
    quicken(model, FEW_ROWS)
    with torch.no_grad(), Operations() as operations:
        model(idx)
    assert operations.names.count("_linear_pointwise") == 9 * few
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), Operations() as operations:
        model(idx)
    assert "_linear_pointwise" not in operations.names
    with Operations() as operations:
        model(idx, idx)[1].backward()
    assert "_linear_pointwise" not in operations.names
    assert all(p.grad is not None for p in model.parameters())


def test_the_text_is_the_same():
    model, idx = lively_gpt(n_layer=2, n_embd=384), torch.zeros(2, 4).long()
    texts = [model.generate(idx, 12, temperature=0.0)]
    quicken(model, FEW_ROWS)
    with Operations() as operations:
        texts.append(model.generate(idx, 12, temperature=0.0))
    assert torch.equal(*texts)
    assert operations.names.count("_linear_pointwise") == 12 * 9


def test_what_a_run_may_choose(monkeypatch):
    monkeypatch.setattr("nanogpt.cpu.keeps_fp32", lambda: True)
    assert choose_products("plain")["few rows"] == "plain"
    assert choose_products("onednn")["few rows"] == "inner"
