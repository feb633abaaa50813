"""Token shards as one endless stream."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanogpt.common import UserError


@dataclass(frozen=True)
class Shard:
    """uint16 tokens in a file or in memory. `open` makes a new memory map for every read: one that
    stays open would count every page it ever touched as this process's memory."""

    name: str
    n_tokens: int
    open: Callable[[], np.ndarray]


def open_shard(path):
    """A Shard from an .npy file. Raises UserError if it is not a complete one."""
    path = Path(path)
    try:
        tokens = np.lib.format.open_memmap(path, mode="r")  # .npy only, and never a pickle
        offset, shape, dtype = tokens.offset, tokens.shape, tokens.dtype
        if dtype != np.uint16 or len(shape) != 1:
            raise ValueError(f"{dtype} of shape {shape}, not uint16 in one dimension")
    except Exception as error:  # a damaged header fails in numpy in a dozen ways
        reason = str(error).partition("\n")[0]
        if isinstance(error, PermissionError):
            raise UserError(f"cannot read {path}: ask its owner, or choose other shards") from None
        raise UserError(f"{path} is not a complete shard ({reason}): make it again") from None
    return Shard(str(path), shape[0],
                 functools.partial(np.memmap, path, np.uint16, "r", offset, shape))


class TokenStream:
    """Shards end to end, epoch after epoch: one endless sequence of tokens, read at any position.
    """

    def __init__(self, shards):
        self.shards = shards
        self.n_tokens = sum(shard.n_tokens for shard in shards)  # of one epoch

    def read(self, position, n):
        """The n tokens from `position` on: int64 (n,)."""
        out, filled = np.empty(n, dtype=np.int64), 0
        while filled < n:
            filled += self._read_shard(*self.place(position + filled), out[filled:])
        return out

    def place(self, position):
        """A position as (index of its shard, offset in the shard)."""
        offset = position % self.n_tokens  # in its epoch
        for i in range(len(self.shards)):
            if offset < self.shards[i].n_tokens:
                return i, offset
            offset -= self.shards[i].n_tokens

    def _read_shard(self, i, offset, out):
        """Fill `out` from shard i. Returns how many tokens it had: the shard may end first."""
        part = self.shards[i].open()[offset : offset + len(out)]
        out[: len(part)] = part  # to int64: torch has few operations for uint16
        return len(part)
