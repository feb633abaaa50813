"""A token at a time, a product is a matrix times a vector, and has a kernel of its own."""

import pytest
import torch
from helpers import lively_gpt
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import train_gpt2

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(),
                                reason="this torch has no oneDNN")


class Operations(TorchDispatchMode):
    """The names of all operations, in order."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def names(x, weight, bias=None):
    with torch.no_grad(), Operations() as operations:
        train_gpt2.linear(x, weight, bias)
    return operations.names


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", [(768,), (1, 768), (1, 1, 768)])
def test_it_is_as_exact_as_fp32_is(shape, biased):
    """Against float64; rounded to bfloat16 it would err by 0.2."""
    x, weight = torch.randn(shape), torch.randn(2304, 768)
    bias = torch.randn(2304) if biased else None
    with torch.no_grad():
        y = train_gpt2.linear(x, weight, bias)
    exact = F.linear(x.double(), weight.double(), bias.double() if biased else None)
    assert y.shape == exact.shape and y.layout == torch.strided and (y - exact).abs().max() < 5e-4


def test_who_has_it():
    large, small = torch.randn(1024, 512), torch.randn(128, 128)
    assert "mkldnn_linear" in names(torch.randn(1, 1, 512), large)
    assert "mkldnn_linear" not in names(torch.randn(2, 512), large)
    assert "mkldnn_linear" not in names(torch.randn(1, 128), small)
    assert "mkldnn_linear" not in names(torch.randn(1, 512).double(), large.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert "mkldnn_linear" not in names(torch.randn(1, 512), large)


def test_a_token_with_the_cache_has_it():
    """From the second token on: each product of the blocks but the small one, and the last."""
    model = lively_gpt(n_layer=2, n_embd=384)
    assert model.lm_head.weight.numel() < 2**18 < 384 * 3 * 384 and 384 * 384 < 2**18
    with Operations() as operations:
        model.generate(torch.zeros(1, 4).long(), 3, temperature=0.0)
    assert operations.names.count("mkldnn_linear") == 2 * 2 * 3


def test_the_text_is_the_same(monkeypatch):
    model = lively_gpt(n_layer=2, n_embd=384)
    texts = [model.generate(torch.zeros(1, 4).long(), 12, temperature=0.0)]
    monkeypatch.setattr(train_gpt2, "one_row", lambda x, weight: False)
    texts.append(model.generate(torch.zeros(1, 4).long(), 12, temperature=0.0))
    assert torch.equal(*texts)
