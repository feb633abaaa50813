"""Short trials: which of several ways is fastest on this machine?"""

import functools
import time
from collections import Counter

import torch
from torch.nn import functional as F

from nanogpt.cpu import choose_products, inner, keeps_fp32, using

SMALL = 2**24  # products with fewer multiplications are fast in any library, so they are not tried


def least_seconds(actions, repeats=5):
    """{name: the least seconds its action took}. Each is called once to warm up; then all take
    turns, so that a busy moment of the machine affects all alike."""
    times = {name: [] for name in actions}
    for _ in range(1 + repeats):
        for name, action in actions.items():
            begin = time.perf_counter()
            action()
            times[name].append(time.perf_counter() - begin)
    return {name: min(found[1:]) for name, found in times.items()}


def quickest(took, ahead=1.05):
    """The fastest name; but the first one, the plain way, unless it took more than `ahead` times as
    long. Otherwise chance would choose between two equally fast ways."""
    plain, best = next(iter(took)), min(took, key=took.get)
    return best if took[plain] > ahead * took[best] else plain


def machine(device):
    """What the last bits of a result depend on: the card, or the CPU, its instructions, threads."""
    if device.type != "cpu":
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    name = getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name", "CPU")  # since torch 2.12
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def times_slower(dtype, device):
    """The time of a matrix product in `dtype`, divided by its time in float32."""
    tensors = {name: torch.ones(256, 256, device=device, dtype=name)
               for name in (torch.float32, dtype)}
    took = least_seconds({name: lambda x=x: (x @ x)[0, 0].item() for name, x in tensors.items()})
    return took[dtype] / took[torch.float32]


def quicker_dtype(device):
    """bfloat16 if products in it are more than 1.5 times as fast as in float32, else float32.

    A CPU without bfloat16 instructions is many times slower in it; a GPU's tensor cores are faster.
    """
    n = 256 if device.type == "cpu" else 2048
    stacks = {dtype: torch.ones(4, n, n, device=device, dtype=dtype)
              for dtype in (torch.float32, torch.bfloat16)}
    return quickest(least_seconds({dtype: lambda X=X: (X @ X)[0, 0, 0].item()  # waits for a GPU
                                   for dtype, X in stacks.items()}), ahead=1.5)


def try_products(net, rows):
    """{"forward", "backward", "few rows": how to multiply}, found by a trial with the network's own
    matrices. rows: B T, the rows of a training step's products."""
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
    """The library whose `action` is fastest over all weights; "plain" unless another is faster."""
    took, shapes = Counter(plain=0.0), Counter(weight.shape for weight in weights)
    for (out, into), count in shapes.items():
        n, part = min(rows, 128), min(out, 2048)  # a part tells as much, in milliseconds
        if rows * out * into > SMALL and keeps_fp32():
            tensors = torch.ones(n, into), torch.ones(part, into), torch.ones(n, part)
            seconds = least_seconds({library: functools.partial(action, library, *tensors)
                                     for library in ("plain", "onednn")})
            for library in seconds:
                took[library] += count * out / part * seconds[library]
    return quickest(took)


@torch.no_grad()
def try_few_rows(weights):
    """"inner" if that is faster for products of one row and of eight, else "plain"."""
    there = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    if not there or sum(weight.numel() for weight in weights) < 2**20:
        return "plain"

    def read(multiply):
        for weight in weights[:12]:  # in turn, since a single one would stay in the cache
            part = weight[: 2**22 // weight.size(1)]
            for rows in 1, 8:
                multiply(torch.ones(rows, part.size(1)), part)

    return quickest(least_seconds({"plain": lambda: read(F.linear), "inner": lambda: read(inner)}))


def usable(chosen, device):
    """Whether a checkpoint's choices have the form that try_out gives them: somebody may have
    edited them, or an earlier version made fewer."""
    products = chosen.get("products") if device.type == "cpu" else choose_products("plain")
    if chosen.get("muon", "float32") not in ("float32", "bfloat16"):
        return False
    return (type(products) is dict and products.keys() == choose_products("plain").keys()
            and all(type(library) is str for library in products.values()))


def try_out(config, model, device, saved):
    """{what: choice} found by trials on this machine. A run that is resumed on the same machine
    keeps its choices, so that its results stay the same to the last bit."""
    chosen, before = saved.get("chosen", {}), saved.get("config", {}).get("products")
    same = (chosen.get("machine"), before) == (machine(device), config.products)
    if same and usable(chosen, device):
        return chosen
    chosen = {"machine": machine(device)}
    if config.optimizer != "adamw":
        chosen["muon"] = str(quicker_dtype(device))[6:]
    if device.type == "cpu":
        chosen["products"] = (try_products(model, config.B * config.T)
                              if config.products == "auto" else choose_products(config.products))
    return chosen
