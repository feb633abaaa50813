"""Compares what must be the same on all ranks, to find one that has drifted."""

import functools
import zlib
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch
from torch.nn import functional as F

from nanogpt.common import UserError
from nanogpt.fsdp import trained
from nanogpt.ranks import sum_over_ranks
from nanogpt.sharding import KINDS

CHUNK = 2**18  # words at a time: they stay in a CPU's cache
# settings that may differ between machines: where things are, and how they are computed
OWN = ("data", "out_dir", "init_from", "hellaswag", "device", "products", "compile")


@functools.cache
def factors(device):
    """CHUNK odd int64 numbers in no order, the same on every machine."""
    golden = 0x9E3779B97F4A7C15 - 2**64  # 2^64 divided by the golden ratio (Knuth, volume 3, 6.4)
    i = torch.arange(1, CHUNK + 1, device=device) * golden
    return (i ^ i >> 29) * golden | 1


def checksum(x):
    """A tensor's bits as one int64 on its device: the sum of factor times word, modulo 2^64.

    An odd factor loses no bit of its word, and words that change places show, for factors differ.
    Upper halves are mixed into lower ones: of last bits alone, a sum shows only the parity.
    """
    data = x.detach().contiguous().view(-1).view(torch.uint8)
    if len(data) % 8 or data.storage_offset() % 8:
        data = F.pad(data, (0, -len(data) % 8))
    parts = [((words ^ (words >> 32 & 0xFFFFFFFF)) * factors(x.device)[: len(words)]).sum()
             for words in data.view(torch.int64).split(CHUNK)]
    return parts[0] if len(parts) == 1 else checksum(torch.stack(parts))


def compare(found, ranks):
    """Text that names the ranks that differ from the majority, and in what: the same text on every
    rank, "" if none differs. Where no value has a majority, all ranks are named.

    found: {name: int64, as a number or a tensor}, the same names on all ranks. All ranks must call
    it together.
    """
    mine = torch.stack([torch.as_tensor(value, dtype=torch.int64, device=ranks.device)
                        for value in found.values()])
    world, differing = ranks.ddp_world_size, defaultdict(list)
    every = mine.new_zeros(world, len(mine))
    every[ranks.ddp_rank] = mine  # the other ranks fill the other rows
    for name, column in zip(found, sum_over_ranks(every, ranks).T.tolist(), strict=True):
        usual, n = Counter(column).most_common(1)[0]
        if n < world:
            differing[tuple(rank for rank, value in enumerate(column)
                            if value != usual or 2 * n <= world)].append(name)
    return "; ".join(
        f"rank{'s' * (len(odd) > 1)} {', '.join(map(str, odd))} of {world} "
        f"differ{'s' * (len(odd) == 1)} in {names[0]}"
        + f" and {len(names) - 1} more" * (len(names) > 1) for odd, names in differing.items())


def check_settings(config, stream, ranks):
    """Raises UserError on all ranks if they were started with different settings or data."""
    found = {f"--{name.replace('_', '-')}": value for name, value in asdict(config).items()
             if name not in OWN}
    found["the training shards"] = [(Path(shard.name).name, shard.n_tokens, shard.sha256)
                                    for shard in stream.shards]
    sums = {name: zlib.crc32(repr(value).encode()) for name, value in found.items()}
    if said := compare(sums, ranks):
        raise UserError(f"{said}: start all machines with the same settings and data")


def find_drift(t, **numbers):
    """Text that names the ranks with other weights, averages, gradients or `numbers`, or "".

    Only what several ranks have can be compared: no divided tensors, no averages with an owner.
    """
    found, owned = dict(numbers), hasattr(t.optimizer, "owners")
    nothing = torch.zeros((), dtype=torch.int64, device=t.ranks.device)
    for name, p in trained(t).named_parameters():
        state = {} if owned else t.optimizer.state.get(p, {})
        tensors = {name: p, f"the gradient of {name}": p.grad}
        tensors |= {f"{kind} of {name}": state.get(kind) for kind in KINDS}
        found |= {what: nothing if x is None or hasattr(x, "full_tensor") else checksum(x)
                  for what, x in tensors.items()}
    return compare(found, t.ranks)


class Watch:
    """Compares the ranks every `every` updates (0: never) and before each checkpoint: the weights,
    the optimizer's averages, and all tokens since the last time as each rank's disk has them."""

    def __init__(self, every, ranks):
        self.every = every if ranks.ddp_world_size > 1 else 0
        self.begin = self.step = None  # the place in the data at the last comparison, and its step
        self.reader, self.ahead = ThreadPoolExecutor(1), {}  # {(begin, end): Future of a sum}

    def look(self, t, saving):
        """Raises UserError, on all ranks, if they differ. saving: a checkpoint is next."""
        if not self.every or self.step == t.step or not saving and t.step % self.every:
            return
        end = t.loader.position
        begin = end if self.begin is None else self.begin  # the first time
        tokens = self.ahead.pop((begin, end), None) or self.reader.submit(read, t, begin, end)
        if said := find_drift(t, **{"the place in the data": end,
                                    f"the tokens since step {self.step}": tokens.result()}):
            raise UserError(f"after {t.step} steps {said}: nothing more is saved. Suspect its "
                            "machine's memory, card or disk, and continue with --resume without it "
                            "(if machines of several kinds only round differently: --check-ranks 0)"
                            )
        self.begin, self.step = end, t.step
        if t.step < t.max_steps:  # a thread reads the next tokens while the network trains
            n = min(self.every - t.step % self.every, t.max_steps - t.step)
            n *= t.loader.B * t.loader.T * t.ranks.ddp_world_size * t.grad_accum_steps
            self.ahead = {(end, end + n): self.reader.submit(read, t, end, end + n)}


def read(t, begin, end):
    """The checksum of all ranks' tokens from `begin` to `end`, as this rank reads them."""
    B, T = t.loader.B * t.ranks.ddp_world_size, t.loader.T
    parts = [checksum(torch.from_numpy(t.loader.stream.rows(position, B, T)[0]))
             for position in range(begin, end, B * T)]
    return checksum(torch.stack(parts)) if parts else 0
