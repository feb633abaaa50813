"""A linear layer's two gradients are products too, and by the same library."""

import pytest
import torch
from helpers import lively_gpt, small_gpt
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import common
import train_gpt2

MATMUL = torch.backends.mkldnn.matmul


class Products(TorchDispatchMode):
    """Which precision each product was computed under."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("mm", "addmm"):
            self.seen.append(MATMUL.fp32_precision)
        return func(*args, **(kwargs or {}))


def gradients(linear, *tensors):
    """Of a sum whose every term has its own weight."""
    tensors = [t.clone().requires_grad_() for t in tensors]
    y = linear(*tensors)
    (y * torch.arange(y.numel()).view_as(y).cos()).sum().backward()
    return [t.grad for t in tensors]


@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 7), (1, 1, 7)])
@pytest.mark.parametrize("biased", [True, False])
def test_they_are_those_of_autograd(shape, biased):
    """In float64, to the last digits."""
    tensors = [torch.randn(*shape), torch.randn(6, 7), *([torch.randn(6)] if biased else [])]
    tensors = [t.double() for t in tensors]
    found = gradients(train_gpt2.linear, *tensors)
    for a, b in zip(found, gradients(F.linear, *tensors), strict=True):
        assert a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=1e-13)


def test_fp32_is_as_exact_as_fp32_is():
    """Sums of up to 512 products of about 1 against float64: fp32 errs by 1e-4, bfloat16 by 0.2."""
    tensors = torch.randn(2, 256, 384), torch.randn(512, 384), torch.randn(512)
    found = gradients(train_gpt2.linear, *tensors)
    for a, b in zip(found, gradients(F.linear, *(t.double() for t in tensors)), strict=True):
        assert (a - b).abs().max() < 5e-4


def test_every_product_of_the_backward_pass_is_one_of_them(monkeypatch):
    """Forward, and twice as many backward, without those of attention."""
    monkeypatch.setattr(common, "keeps_fp32", lambda: True)
    model, idx = lively_gpt(), torch.randint(257, (2, 16))
    with Products() as products:
        model(idx, idx)[1].backward()
    assert products.seen == ["bf16"] * 3 * (4 * model.config.n_layer + 1)


def test_a_network_with_and_without(monkeypatch):
    """Logits, loss and gradients by oneDNN and by F.linear alone: 1e-5 of the largest."""
    model, idx = small_gpt(n_layer=3, n_embd=128), torch.randint(257, (4, 16))
    found = []
    for linear in train_gpt2.linear, F.linear:
        monkeypatch.setattr(train_gpt2, "linear", linear)
        model.zero_grad()
        logits, loss = model(idx, idx)
        loss.backward()
        found.append([logits.detach(), loss.detach(), *(p.grad for p in model.parameters())])
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def test_a_weight_that_stands_still():
    """What is frozen has no gradient, and the others have theirs."""
    model, idx = lively_gpt(), torch.randint(257, (2, 16))
    model.transformer.h[0].mlp.c_fc.requires_grad_(False)
    model(idx, idx)[1].backward()
    assert model.transformer.h[0].mlp.c_fc.weight.grad is None
    assert model.transformer.h[0].mlp.c_proj.weight.grad.abs().sum() > 0
    assert model.transformer.h[0].attn.c_attn.weight.grad.abs().sum() > 0


def test_autocast_has_its_own():
    model, idx = lively_gpt(), torch.randint(257, (2, 16))
    with torch.autocast("cpu", torch.bfloat16):
        model(idx, idx)[1].backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())
