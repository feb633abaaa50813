"""What only a CPU needs: memory that is kept, and matrix products by the quicker library."""

import contextlib
import ctypes
import functools
import threading

import torch
from torch import nn
from torch.nn import functional as F

from common import UserError

LOCK = threading.RLock()
FEW = 16  # rows; up to here a product waits for its weights to come from memory


def keep_memory():
    """Keep the memory that a tensor on the CPU leaves for the next one (Linux with glibc).

    By default glibc hands everything above 32 MB back to the system, which clears every 4 kB of it
    again at the next first touch.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library or system
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no tensor gets a mapping of its own
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: hand nothing back


@contextlib.contextmanager
def onednn():
    """Float32 products by oneDNN; outside of this block torch asks MKL.

    The setting belongs to the whole process, so one thread at a time has it, and takes it back.
    """
    matmul = torch.backends.mkldnn.matmul
    with LOCK:
        before = matmul.fp32_precision
        matmul.fp32_precision = "bf16"  # which lets oneDNN round, and so makes torch ask it
        try:
            yield
        finally:
            matmul.fp32_precision = before


@functools.cache
def keeps_fp32():
    """Whether oneDNN multiplies float32 exactly here. Where the CPU has units for bfloat16 matrices
    (AMX) it rounds: quicker still, but other numbers."""
    if not hasattr(torch.backends.mkldnn.matmul, "fp32_precision"):
        return False
    x = torch.full((512, 512), 1 + 2**-12, device="cpu")  # rounds to 1
    with onednn(), torch.autocast("cpu", enabled=False):
        return all(torch.equal(r @ torch.ones_like(x), 512 * r) for r in (x[:1], x[:16], x))


def using(library):
    """A context in which products are by "onednn", or "plain": as torch does without being told."""
    return onednn() if library == "onednn" else contextlib.nullcontext()


class Product(torch.autograd.Function):
    """F.linear and its two gradients, which are products too, by the libraries chosen."""

    @staticmethod
    def forward(ctx, x, weight, bias, products):
        ctx.save_for_backward(x, weight)
        ctx.library = products.get("backward")
        with using(products["forward"]):
            return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)  # (B T, out)
        with using(ctx.library):
            return (grad @ weight, rows.t() @ x.flatten(0, -2),
                    rows.sum(dim=0) if ctx.needs_input_grad[2] else None, None)


class Linear(nn.Linear):
    """nn.Linear, whose float32 products are by the libraries that `products` names."""

    def forward(self, x):
        x_is_fp32 = x.is_cpu and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if torch.compiler.is_compiling() or not x_is_fp32:
            return F.linear(x, self.weight, self.bias)
        if torch.is_grad_enabled() and "onednn" in self.products.values():
            return Product.apply(x, self.weight, self.bias, self.products)
        few = not torch.is_grad_enabled() and x.numel() <= FEW * x.size(-1)
        if few and self.products.get("few rows") == "inner":
            return inner(x, self.weight, self.bias)
        with using(self.products["forward"]):
            return F.linear(x, self.weight, self.bias)


def inner(x, weight, bias=None):
    """F.linear by oneDNN's inner product: it reads each weight once, as fast as memory allows."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def quicken(net, products):
    """Have every nn.Linear of a network on the CPU multiply as `products` says, in place."""
    for module in net.modules():
        if type(module) is nn.Linear and set(products.values()) != {"plain"}:
            module.__class__, module.products = Linear, products


def choose_products(wanted):
    """Which library multiplies: {"forward", "backward", "few rows": name}, as wanted, "plain" or
    "onednn". Raises UserError."""
    if wanted == "onednn" and not keeps_fp32():
        raise UserError("--products onednn: on this machine it is missing, or rounds float32 to "
                        "bfloat16, so use --products plain")
    has_inner = wanted == "onednn" and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return {"forward": wanted, "backward": wanted, "few rows": "inner" if has_inner else "plain"}
