"""A CPU's products of fp32 matrices by oneDNN: the same numbers, by the library that was meant."""

import pytest
import torch
from helpers import lively_gpt
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import common
import train_gpt2
from common import keeps_fp32, onednn

MATMUL = torch.backends.mkldnn.matmul


class Products(TorchDispatchMode):
    """Which precision each operation was computed under, of those whose name is asked for."""

    def __init__(self, *names):
        super().__init__()
        self.names, self.seen = names, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in self.names:
            self.seen.append(MATMUL.fp32_precision)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def exact(monkeypatch):
    """As on a CPU where oneDNN keeps fp32, whatever this one is."""
    monkeypatch.setattr(common, "keeps_fp32", lambda: True)


def test_what_torch_was_told_before_holds_again(exact):
    before = MATMUL.fp32_precision
    with onednn():
        assert MATMUL.fp32_precision == "bf16"
    assert MATMUL.fp32_precision == before
    with pytest.raises(ZeroDivisionError), onednn():
        raise ZeroDivisionError
    assert MATMUL.fp32_precision == before


def test_where_onednn_would_round_it_is_not_asked(monkeypatch):
    """A CPU with AMX. What it does there is asked of it by a product, as here."""
    before = MATMUL.fp32_precision
    monkeypatch.setattr(common, "keeps_fp32", lambda: False)
    with onednn():
        assert MATMUL.fp32_precision == before


def test_rounding_would_be_noticed(monkeypatch):
    def rounded(a, b, product=torch.Tensor.__matmul__):
        return product(a.bfloat16().float(), b.bfloat16().float())

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    assert not keeps_fp32.__wrapped__()


def test_it_may_be_asked_under_autocast_first():
    """What stays in the cache is about fp32."""
    with torch.autocast("cpu", torch.bfloat16), onednn():
        assert keeps_fp32.__wrapped__() == keeps_fp32()
    with onednn():
        assert keeps_fp32.__wrapped__() == keeps_fp32()


@pytest.mark.parametrize("rows", [1, 8, 300])
def test_products_are_as_exact_as_fp32_is(rows):
    """Sums of 768 products of about 1 against float64: fp32 errs by 1e-4, bfloat16 by 0.2."""
    x, weight = torch.randn(2, rows, 768), torch.randn(500, 768)
    bias = torch.randn(500)
    with torch.no_grad():
        y = train_gpt2.linear(x, weight, bias)
    assert (y - F.linear(x.double(), weight.double(), bias.double())).abs().max() < 5e-4


def test_every_product_of_the_network_is_one_of_them(exact):
    """Four a block and the vocabulary's; attention is left to itself."""
    model, idx = lively_gpt(), torch.randint(257, (2, 16))
    before, attention = MATMUL.fp32_precision, "_scaled_dot_product_flash_attention_for_cpu"
    with torch.no_grad(), Products("addmm", "mm") as products, Products(attention) as others:
        model(idx)
        model.generate(idx, 3, temperature=0.0)
    n_layer, passes = model.config.n_layer, 4
    assert products.seen == ["bf16"] * passes * (4 * n_layer + 1)
    assert others.seen == [before] * passes * n_layer


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="of torch 2.13")
def test_the_loss_in_parts_too(exact, monkeypatch):
    model, idx, seen = lively_gpt(), torch.randint(257, (2, 16)), []

    def loss(*args, original=F.linear_cross_entropy, **kwargs):
        seen.append(MATMUL.fp32_precision)
        return original(*args, **kwargs)

    monkeypatch.setattr(F, "linear_cross_entropy", loss)
    model.loss_rows = 8
    model(idx, idx)
    assert seen == ["bf16"]


def test_other_types_are_as_they_were():
    model, idx = lively_gpt(), torch.randint(257, (2, 16))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model(idx)[0].dtype == torch.bfloat16
    assert model.double()(idx)[0].dtype == torch.float64
