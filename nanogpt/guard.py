"""What interrupts a run: signals, spikes, numbers that are not finite."""

import math
import signal

import numpy as np
import torch
from torch import nn

from nanogpt.drift import find_drift
from nanogpt.fsdp import whole_net
from nanogpt.ranks import autocast, sum_over_ranks


class Stop:
    """A request to stop: SIGTERM or SIGUSR1 (Slurm, rented machines), SIGHUP (the connection to
    your terminal drops), or Ctrl-C.

    The handler only remembers the signal; the training loop checks `asked` between steps. A second
    Ctrl-C kills the process. Signals that are ignored at the start stay ignored (nohup).
    """

    def __init__(self):
        self.asked = ""  # the signal's name
        wanted = ("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT")
        names = [name for name in wanted if hasattr(signal, name)  # Windows lacks two
                 and signal.getsignal(getattr(signal, name)) != signal.SIG_IGN]
        self.before = {name: signal.signal(getattr(signal, name), self.remember) for name in names}

    def remember(self, number, frame):
        self.asked = signal.Signals(number).name
        if "SIGINT" in self.before:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        """Restore the previous signal handlers."""
        for name, handler in self.before.items():
            signal.signal(getattr(signal, name), handler)


class Spikes:
    """z-scores of losses and gradient norms against the last WINDOW of each (128, as in llm.c)."""

    WINDOW = 128
    MARK = 6.0  # the log marks z-scores above this

    def __init__(self, seen=None, skip_above=None):
        self.seen = {"loss": [], "norm": []} | (seen or {})
        self.skip_above = math.inf if skip_above is None else skip_above

    def look(self, **values):
        """Add a step's values. Sets `high`, {kind: z-score} of the spikes, and `skipped`."""
        self.high = {}
        for kind, value in values.items():
            window = self.seen[kind]
            if not math.isfinite(value):  # float16 overflows now and then
                continue
            if len(window) == self.WINDOW and (spread := np.std(window)) > 0:
                z = min(float((value - np.mean(window)) / spread), 1e6)  # JSON has no infinity
                self.high |= {kind: z} if z > min(self.MARK, self.skip_above) else {}
            self.seen[kind] = [*window, value][-self.WINDOW :]
        self.skipped = any(z > self.skip_above for z in self.high.values())


def agree(norm, ranks):
    """The gradient norm, NaN if it is not finite on any of several ranks: all must decide alike."""
    bad = sum_over_ranks(norm.isfinite().logical_not().float(), ranks)
    return torch.where(bad > 0, math.nan, norm) if ranks.ddp else norm


def find_fault(t, began_at):
    """Recompute the batch at `began_at`, one micro-batch at a time. Returns, on every rank, words
    for the error message: which of them has a loss or gradient that is not finite."""
    if said := find_drift(t):
        return f"where {said}"
    ranks, loader = t.ranks, t.loader
    loader.position, first_bad = began_at, torch.zeros(ranks.ddp_world_size)
    with whole_net(t):
        for micro_step in range(t.grad_accum_steps):
            t.net.zero_grad()
            x, y = (tokens.to(ranks.device) for tokens in loader.next_batch())
            with autocast(ranks.device, ranks.dtype):
                _, loss = t.net(x, y)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(t.net.parameters(), math.inf)
            if not (loss.isfinite() and norm.isfinite()):
                first_bad[ranks.ddp_rank] = micro_step + 1
                break
    for rank, number in enumerate(sum_over_ranks(first_bad, ranks).int().tolist()):
        if number:
            n = loader.B * loader.T
            position = began_at + ((number - 1) * ranks.ddp_world_size + rank) * n
            _, shard, offset = loader.stream.place(loader.stream.start(position, loader.T))
            return (f"from the {n:,} tokens of rank {rank} at {position:,} (token {offset:,} of "
                    f"{loader.stream.shards[shard].name} in its order)")
    return "but recomputing the batch gave finite values (suspect the hardware)"
