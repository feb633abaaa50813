"""Asking the machine: which of several ways is quickest here?"""

import functools
import time
from collections import Counter

import torch
from torch.nn import functional as F

from nanogpt.cpu import inner, keeps_fp32, using

SMALL = 2**24  # multiplications in a product; any library does fewer in a moment


def least_seconds(actions, repeats=5):
    """{name: the least seconds of its action}. Each is called once to warm up; then all take
    turns, so that a busy moment of the machine hits all alike."""
    times = {name: [] for name in actions}
    for _ in range(1 + repeats):
        for name, action in actions.items():
            begin = time.perf_counter()
            action()
            times[name].append(time.perf_counter() - begin)
    return {name: min(found[1:]) for name, found in times.items()}


def quickest(took, ahead=1.05):
    """The name that took least; the first, which is the plain way, unless it took `ahead` times as
    long. Without that, two ways as quick as each other would be chosen by chance."""
    plain, best = next(iter(took)), min(took, key=took.get)
    return best if took[plain] > ahead * took[best] else plain


def machine(device):
    """What the last bits of a result depend on: the card, or the CPU, its instructions, threads."""
    if device.type != "cpu":
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    name = getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name", "CPU")  # since torch 2.12
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def times_slower(dtype, device):
    """How many times as long as in float32 a matrix product takes in `dtype`."""
    tensors = {name: torch.ones(256, 256, device=device, dtype=name)
               for name in (torch.float32, dtype)}
    took = least_seconds({name: lambda x=x: (x @ x)[0, 0].item() for name, x in tensors.items()})
    return took[dtype] / took[torch.float32]


def try_products(net, rows):
    """Which library multiplies: {"forward", "backward", "few rows": name}, by a trial of some
    milliseconds of the network's own shapes. rows: of a training step's products, B T."""
    weights = [p.detach() for p in net.parameters() if p.dim() == 2]
    return {"forward": try_shapes(weights, rows, forward),
            "backward": try_shapes(weights, rows, backward),
            "few rows": try_few_rows(weights)}


def forward(library, x, weight, y):
    with using(library):
        return x @ weight.t()


def backward(library, x, weight, y):
    with using(library):
        return y @ weight, y.t() @ x


@torch.no_grad()
def try_shapes(weights, rows, action):
    """The library that is quickest in `action` over all weights; "plain" unless another is ahead.
    """
    took, shapes = Counter(plain=0.0), Counter(weight.shape for weight in weights)
    for (out, into), count in shapes.items():
        n, part = min(rows, 128), min(out, 2048)  # which tell as much, in milliseconds
        if rows * out * into > SMALL and keeps_fp32():
            tensors = torch.ones(n, into), torch.ones(part, into), torch.ones(n, part)
            seconds = least_seconds({library: functools.partial(action, library, *tensors)
                                     for library in ("plain", "onednn")})
            for library in seconds:
                took[library] += count * out / part * seconds[library]
    return quickest(took)


@torch.no_grad()
def try_few_rows(weights):
    """"inner" if that is quicker for one row and for eight, else "plain"."""
    there = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    if not there or sum(weight.numel() for weight in weights) < 2**20:
        return "plain"

    def read(multiply):
        for weight in weights[:12]:  # in turns: one alone would stay in the cache
            part = weight[: 2**22 // weight.size(1)]
            for rows in 1, 8:
                multiply(torch.ones(rows, part.size(1)), part)

    return quickest(least_seconds({"plain": lambda: read(F.linear), "inner": lambda: read(inner)}))
