"""What only a CPU needs: matrix products by the faster library, and memory that is kept."""

import contextlib
import ctypes
import functools
import threading

import torch
from torch import nn
from torch.nn import functional as F

from nanogpt.common import UserError

LOCK = threading.RLock()
FEW = 16  # up to this many rows, a product waits for its weights to arrive from memory


def keep_memory():
    """Keep the memory of freed tensors on the CPU for the next ones (Linux with glibc).

    By default glibc returns blocks above 32 MB to the system, which must clear every page of 4 kB
    again when it is next touched.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library or system
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no tensor gets its own mapping
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: return nothing


@contextlib.contextmanager
def onednn():
    """Inside this block oneDNN multiplies float32 matrices; outside, torch usually asks MKL.

    The setting is the whole process's, so one thread at a time holds it; the old value comes back.
    """
    matmul = torch.backends.mkldnn.matmul
    with LOCK:
        before = matmul.fp32_precision
        matmul.fp32_precision = "bf16"  # lets oneDNN round to bfloat16, so torch calls it
        try:
            yield
        finally:
            matmul.fp32_precision = before


@functools.cache
def keeps_fp32():
    """Whether oneDNN, called by onednn(), still computes in float32 on this CPU. It may round to
    bfloat16 where there are units for that (AMX): faster still, but other numbers."""
    if not hasattr(torch.backends.mkldnn.matmul, "fp32_precision"):
        return False
    x = torch.full((512, 512), 1 + 2**-12, device="cpu")  # rounds to 1
    with onednn(), torch.autocast("cpu", enabled=False):
        return all(torch.equal(r @ torch.ones_like(x), 512 * r) for r in (x[:1], x[:16], x))


def using(library):
    """A context for products by `library`: "onednn", or "plain" for torch's own choice."""
    return onednn() if library == "onednn" else contextlib.nullcontext()


class Product(torch.autograd.Function):
    """F.linear (forward) and the two products of its gradients (backward), each by its library."""

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
    """nn.Linear whose float32 products use the libraries named in `products`."""

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
    """F.linear by oneDNN's inner product, which reads each weight once, as fast as memory can."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def quicken(net, products):
    """Change every nn.Linear of a network on the CPU, in place, to multiply as `products` says."""
    for module in net.modules():
        if type(module) is nn.Linear and set(products.values()) != {"plain"}:
            module.__class__, module.products = Linear, products


def choose_products(wanted):
    """{"forward", "backward", "few rows": how to multiply}, for "plain" or "onednn". Raises
    UserError if oneDNN is missing or would round."""
    if wanted == "onednn" and not keeps_fp32():
        raise UserError("--products onednn: on this machine it is missing, or rounds float32 to "
                        "bfloat16, so use --products plain")
    has_inner = wanted == "onednn" and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return {"forward": wanted, "backward": wanted, "few rows": "inner" if has_inner else "plain"}
