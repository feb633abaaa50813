"""Which process of how many, on which device, in which precision; what they tell each other."""

import os
from dataclasses import dataclass

import torch

from nanogpt.common import UserError
from nanogpt.launch import find_ranks


def find_device(name="auto"):
    """torch.device for 'auto' (cuda, else mps, else cpu), 'cuda', 'cuda:1', 'mps' or 'cpu'.

    Raises UserError for a device that is unknown or not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            name = "cuda"
        else:
            name = "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: choose auto, cuda, mps or cpu") from None
    usable = {
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if not usable.get(device.type, False):
        raise UserError(f"--device {name}: this machine or this torch has none, use --device cpu")
    return device


def choose_dtype(name, device):
    """The dtype of matrix products under autocast: a torch.dtype."""
    if name != "auto":
        return getattr(torch, name)
    if device.type != "cuda":
        return torch.float32
    # older cards (V100, T4) would emulate bfloat16, slowly
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bf16 else torch.float16


def autocast(device, dtype):
    """Matrix products in `dtype`, parameters and sensitive operations in fp32."""
    return torch.autocast(device_type=device.type, dtype=dtype, enabled=dtype != torch.float32)


def compile_model(model, device, wanted):
    """torch.compile(model) where it is wanted (None: on cuda) and works, else the model itself."""
    if not (device.type == "cuda" if wanted is None else wanted):
        return model
    try:  # Triton is missing on Windows, a C compiler on many CPUs: try something small first
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
    except Exception as error:
        print(f"torch.compile does not work here ({type(error).__name__}): running eagerly")
        return model
    return torch.compile(model)


@dataclass(frozen=True)
class Ranks:
    """Which process of how many this is, and its device. One plain process is rank 0 of 1."""

    device: torch.device
    ddp: bool = False
    ddp_rank: int = 0
    ddp_local_rank: int = 0
    ddp_world_size: int = 1
    dtype: torch.dtype = torch.float32  # of the matrix products


def init_ranks(device_name, dtype_name="auto"):
    """Which process this is, from the environment variables that torchrun sets."""
    ddp, ddp_rank, ddp_local_rank, ddp_world_size = find_ranks(os.environ)
    device = find_device(device_name)
    if ddp and device.type == "cuda":
        device = torch.device("cuda", ddp_local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)  # "cuda" alone has no index, and is refused
    dtype = choose_dtype(dtype_name, device)
    return Ranks(device, ddp, ddp_rank, ddp_local_rank, ddp_world_size, dtype)
