"""Which process of how many, on which device, in which precision; what they tell each other."""

import contextlib
import datetime
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from nanogpt.common import UserError
from nanogpt.heartbeat import Heartbeat
from nanogpt.launch import await_rank_0, find_ranks, name_attempt


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


def compile_model(model, device, wanted, master=True):
    """torch.compile(model) where it is wanted (None: on cuda) and works, else the model itself."""
    if not (device.type == "cuda" if wanted is None else wanted):
        return model
    try:  # Triton is missing on Windows, a C compiler on many CPUs: try something small first
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
    except Exception as error:
        if master:
            print(f"torch.compile does not work here ({type(error).__name__}): running eagerly")
        return model
    return torch.compile(model, dynamic=False)  # every batch has one shape


@dataclass(frozen=True)
class Ranks:
    """Which process of how many this is, and its device. One plain process is rank 0 of 1."""

    device: torch.device
    ddp: bool = False
    ddp_rank: int = 0
    ddp_local_rank: int = 0
    ddp_world_size: int = 1
    dtype: torch.dtype = torch.float32  # of the matrix products

    @property
    def master_process(self):
        """The one that prints, logs and saves."""
        return self.ddp_rank == 0


def init_ranks(device_name, dtype_name="auto"):
    """Join the other processes if torchrun started this one: nccl on GPUs, gloo on CPUs."""
    ddp, ddp_rank, ddp_local_rank, ddp_world_size = find_ranks(os.environ)
    device = find_device(device_name)
    if ddp and device.type == "mps":  # one GPU, and neither nccl nor gloo speak to it
        device = torch.device("cpu")
    if ddp and device.type == "cuda":
        if ddp_local_rank >= torch.cuda.device_count():
            raise UserError(f"rank {ddp_local_rank} has no GPU: torchrun --nproc_per_node="
                            f"{torch.cuda.device_count()} (srun: show every task all GPUs)")
        device = torch.device("cuda", ddp_local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)  # "cuda" alone has no index, and is refused
    if ddp:  # an hour: one rank may download while the others wait
        meet(ddp_rank, ddp_world_size, "nccl" if device.type == "cuda" else "gloo")
    dtype = choose_dtype(dtype_name, device)
    return Ranks(device, ddp, ddp_rank, ddp_local_rank, ddp_world_size, dtype)


def meet(rank, world_size, backend, patience=600):
    """Join the other processes, which all have to come within `patience` seconds."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    wait, hour = datetime.timedelta(seconds=patience), datetime.timedelta(hours=1)
    try:
        await_rank_0(rank, address, port, patience)
        store, _, _ = next(rendezvous("env://", rank, world_size, timeout=wait))
        # after a restart, torchrun's store still has the addresses of the dead ranks
        attempt = name_attempt(store, rank, world_size, patience)
        store.set_timeout(hour)
        dist.init_process_group(backend, timeout=hour, rank=rank, world_size=world_size,
                                store=dist.PrefixStore(attempt, store))
        Heartbeat(address, port, f"{attempt} beat", rank, world_size)
    except (RuntimeError, ValueError, OSError) as error:  # torch's errors are RuntimeErrors
        card = f"{backend.upper()}_SOCKET_IFNAME"
        reason = str(error).partition("\n")[0]
        raise UserError(f"rank {rank} of {world_size} cannot meet the others at {address}:{port} "
                        f"({reason}): check MASTER_ADDR (rank 0's machine), MASTER_PORT (free "
                        f"there), {card} ({os.environ.get(card, 'not set')}), and that all "
                        f"{world_size} processes are started") from None


@contextlib.contextmanager
def one_rank_first(ranks):
    """One process per machine runs the block first and fills the caches; then the others run it. If
    the first one fails, the others end with a UserError instead of waiting."""
    first = ranks.ddp_local_rank == 0
    if not first and on_any_rank(False, ranks):
        raise UserError("another process of this run has ended: its own line says why")
    try:
        yield
    except BaseException:
        if first:
            on_any_rank(True, ranks)
        raise
    if first and on_any_rank(False, ranks):  # the first one of another machine failed
        raise UserError("another process of this run has ended: its own line says why")


def sum_over_ranks(values, ranks):
    """Add a tensor over all ranks. Divide for a mean: not every backend has ReduceOp.AVG."""
    values = values.to(ranks.device)
    if ranks.ddp:
        dist.all_reduce(values, op=dist.ReduceOp.SUM)
    return values


def on_any_rank(flag, ranks):
    """Whether the flag is true on any rank. Every rank gets the same answer."""
    return sum_over_ranks(torch.tensor(float(bool(flag))), ranks).item() > 0


def on_master(ranks, work):
    """Run work() on the master alone: every rank gets its result, or its error as a UserError."""
    said = [None, None]  # the result, the error
    if ranks.master_process:
        try:
            said[0] = work()
        except (UserError, OSError) as error:
            said[1] = str(error)
    if ranks.ddp:
        dist.broadcast_object_list(said, src=0, device=ranks.device)
    if said[1] is not None:
        raise UserError(said[1])
    return said[0]


def share(tensors, ranks):
    """The master's dict of tensors, copied to every rank's device."""
    if not ranks.ddp:
        return {name: t.to(ranks.device, copy=True) for name, t in tensors.items()}
    kinds = on_master(ranks, lambda: {name: [str(t.dtype)[6:], list(t.shape)]
                                      for name, t in tensors.items()})
    shared = {}
    for name, (dtype, shape) in kinds.items():
        shared[name] = torch.zeros(shape, dtype=getattr(torch, dtype), device=ranks.device)
        if ranks.master_process:
            shared[name].copy_(tensors[name])
        dist.broadcast(shared[name], src=0)
    return shared


def sort_buckets(t):
    """Have DDP sort its buckets, as it does after a run's first backward pass. On three ranks or
    more, a gradient's place in them decides in which order the ranks' parts are added."""
    if t.ranks.ddp_world_size > 2 and hasattr(t.model, "reducer"):
        x = torch.zeros(t.loader.B, t.loader.T, dtype=torch.long, device=t.ranks.device)
        with torch.enable_grad(), autocast(t.ranks.device, t.ranks.dtype):
            t.model(x, x)[1].backward()
        t.optimizer.zero_grad(set_to_none=True)
