"""A linear layer's two gradients are products too, computed by the library chosen for them."""

import pytest
import torch
from helpers import lively_gpt, small_gpt
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from nanogpt.cpu import Product, quicken

MATMUL = torch.backends.mkldnn.matmul
ONEDNN = {"forward": "onednn", "backward": "onednn"}


class Products(TorchDispatchMode):
    """Under which precision setting each product was computed."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("mm", "addmm"):
            self.seen.append(MATMUL.fp32_precision)
        return func(*args, **(kwargs or {}))


def by_onednn(x, weight, bias=None):
    return Product.apply(x, weight, bias, ONEDNN)


def gradients(linear, *tensors):
    """The gradients of a sum in which every term has a different weight."""
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
    found = gradients(by_onednn, *tensors)
    for a, b in zip(found, gradients(F.linear, *tensors), strict=True):
        assert a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=1e-13)


def test_fp32_is_as_exact_as_fp32_is():
    """Sums of up to 512 products of about 1 against float64: fp32 errs by 1e-4, bfloat16 by 0.2."""
    tensors = torch.randn(2, 256, 384), torch.randn(512, 384), torch.randn(512)
    found = gradients(by_onednn, *tensors)
    for a, b in zip(found, gradients(F.linear, *(t.double() for t in tensors)), strict=True):
        assert (a - b).abs().max() < 5e-4


@pytest.mark.parametrize("forward", ["plain", "onednn"])
@pytest.mark.parametrize("backward", ["plain", "onednn"])
def test_every_product_of_a_training_step_is_by_the_one_chosen(forward, backward):
    """One forward and two backward products for each of nine matrices; attention's do not count."""
    model, idx = lively_gpt(), torch.randint(257, (2, 16))
    quicken(model, {"forward": forward, "backward": backward})
    precision = {"plain": MATMUL.fp32_precision, "onednn": "bf16"}
    with Products() as products:
        loss = model(idx, idx)[1]
    assert products.seen == [precision[forward]] * 9
    with products:
        loss.backward()
    assert products.seen[9:] == [precision[backward]] * 18


def test_a_network_with_and_without():
    """Logits, loss and gradients by oneDNN and by PyTorch's own choice: 1e-5 of the largest."""
    model, idx = small_gpt(n_layer=3, n_embd=128), torch.randint(257, (4, 16))
    found = []
    for _ in range(2):
        model.zero_grad()
        logits, loss = model(idx, idx)
        loss.backward()
        found.append([logits.detach(), loss.detach(), *(p.grad for p in model.parameters())])
        quicken(model, ONEDNN)
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def test_a_weight_that_is_frozen():
    """It gets no gradient, and the others get theirs."""
    model, idx = lively_gpt(), torch.randint(257, (2, 16))
    quicken(model, ONEDNN)
    model.transformer.h[0].mlp.c_fc.requires_grad_(False)
    model(idx, idx)[1].backward()
    assert model.transformer.h[0].mlp.c_fc.weight.grad is None
    assert model.transformer.h[0].mlp.c_proj.weight.grad.abs().sum() > 0
    assert model.transformer.h[0].attn.c_attn.weight.grad.abs().sum() > 0


def test_autocast_keeps_its_own():
    model, idx = lively_gpt(), torch.randint(257, (2, 16))
    quicken(model, ONEDNN)
    with torch.autocast("cpu", torch.bfloat16), Products() as products:
        model(idx, idx)[1].backward()
    assert "bf16" not in products.seen
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())
