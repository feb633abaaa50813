"""Measuring: actions take turns, medians count, and a clock says when the time is over."""

import os
import platform
import statistics
import time
from pathlib import Path

import torch
from tqdm import tqdm

from build_nanogpt.cli import UserError, whole
from nanogpt.cpu import keeps_fp32, using
from nanogpt.trial import least_seconds, machine, quickest

PEAK = "FLOP of a product of matrices"
FAR_BEHIND = 10  # a variant whose small piece takes this many times the fastest's is left out
# These take instructions away from a CPU that has them.
INSTRUCTIONS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")



def synchronize(device):
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def first_calls(actions, device):
    """{name: (seconds, result)} of the first call of each action: it compiles and allocates."""
    calls = {}
    for name, action in actions.items():
        t0 = time.perf_counter()
        result = action()
        synchronize(device)
        calls[name] = time.perf_counter() - t0, result
    return calls


class Clock:
    """How much of --minutes is left, and which variants were left out, with the reason."""

    def __init__(self, minutes):
        self.end, self.left_out = time.perf_counter() + 60 * minutes, {}

    def left(self):
        """Seconds."""
        return self.end - time.perf_counter()

    def leave_out(self, name, reason):
        self.left_out[name] = reason
        print(f"left out: {name}: {reason}")

    def far_behind(self, pieces):
        """Leave out those of {name: action that returns the seconds of a small piece} that take
        FAR_BEHIND times as long as the fastest, also when tried again: the machine may have been
        busy. Returns the other names."""
        took = {name: piece() for name, piece in pieces.items()}
        fastest = min(took, key=took.get)
        for name, seconds in took.items():
            if seconds > FAR_BEHIND * took[fastest]:
                seconds = min(seconds, pieces[name]())
            if seconds > FAR_BEHIND * took[fastest] and name != "ours":  # which is never hidden
                self.leave_out(name, f"a small piece took {seconds / took[fastest]:.0f} times as "
                                     f"long as with {fastest!r}")
        return [name for name in took if name not in self.left_out]


def named(variants, only):
    """Those of {name: variant} that --only names, all if it names none. Raises UserError."""
    for name in only:
        if name not in variants:
            raise UserError(f"--only {name!r}: choose from {', '.join(map(repr, variants))}")
    return {name: variant for name, variant in variants.items() if not only or name in only}


def seconds_of(action, device):
    """The least of up to thirty calls, as many as take a second, after one that allocates; of a
    call that takes two seconds, there is one."""
    times, began = [], time.perf_counter()
    while len(times) < 2 or len(times) < 31 and time.perf_counter() - began < 1:
        t0 = time.perf_counter()
        action()
        synchronize(device)
        times.append(time.perf_counter() - t0)
        if times[0] > 2:
            return times[0]
    return min(times[1:])


def measure(actions, config, device, clock, warm=False):
    """Median milliseconds of one call of each action; all take turns, so that a machine that slows
    down slows all of them. The first call of each is not counted, unless all are `warm`. Stops
    early, but not before the first round, where another would not fit into the time."""
    if not warm:
        first_calls(actions, device)
    times, rounds, took = {name: [] for name in actions}, 0, 0.0
    for _ in tqdm(range(config.repeats), leave=False, disable=None):
        if rounds and took > clock.left():
            print(f"{rounds} of {config.repeats} repeats: --minutes {config.minutes} are over")
            break
        began = time.perf_counter()
        for name, action in actions.items():
            synchronize(device)
            t0 = time.perf_counter()
            for _ in range(config.steps):
                action()
            synchronize(device)
            times[name].append(1000 * (time.perf_counter() - t0) / config.steps)
        rounds, took = rounds + 1, time.perf_counter() - began
    return {name: statistics.median(t) for name, t in times.items()}


def product(device, dtype=torch.float32):
    """(action, FLOPs) of a product of two square matrices by the quickest library: about the most
    the device computes."""
    n = {"cuda": 8192, "cpu": 2048 if dtype == torch.float32 else 1024}.get(device.type, 2048)
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))

    def multiply(library):
        with using(library):
            torch.mm(a, b)

    libraries = ["plain", *["onednn"] * (device.type == "cpu" and keeps_fp32())]
    library = quickest(least_seconds({name: lambda name=name: multiply(name)
                                      for name in libraries}, repeats=3))
    return lambda: multiply(library), 2 * n**3


def reading(device):
    """(action, bytes) of reading a tensor of 512 MB."""
    x = torch.ones(2**27, device=device)  # zeros may be one page of memory, mapped many times
    return x.sum, 4 * x.numel()


def measure_beside(yardsticks, actions, config, device, clock, warm=False):
    """measure(), with actions of known size, {name: (action, size)}, among the others. Returns
    (medians of the others, {name: size a second})."""
    known = {name: action for name, (action, _) in yardsticks.items()}
    first_calls(known | ({} if warm else actions), device)
    medians = measure(actions | known, config, device, clock, warm=True)
    rates = {name: 1000 * size / medians.pop(name) for name, (_, size) in yardsticks.items()}
    for name, rate in rates.items():
        print(f"{name}: {rate / 1e9:,.1f} G/s")
    return medians, rates


def report(title, medians, baseline="", tokens=None, unit="tok/s", flops=None, peak=None,
           share="MFU", first=None):
    """Print a table; ratios are to the variant `baseline`, or to the first. Returns rows for the
    record. tokens: what a call does of `unit`, of `flops` each; first: {variant: seconds}."""
    rows, base = [], medians[baseline or next(iter(medians))]
    width = max(34, *map(len, medians))
    print(f"\n{title}")
    for name, ms in medians.items():
        row = {"table": title, "variant": name, "ms": ms, "ratio": base / ms}
        text = f"  {name:{width}s} {ms:10.1f} ms  {row['ratio']:6.2f} x"
        if tokens:
            rate = row[unit.replace("tok/s", "tokens_per_second")] = 1000 * tokens / ms
            text += f"  {rate:12,.{0 if rate >= 100 else 1}f} {unit}"
        if peak:
            row |= {"mfu": rate * flops / peak, "peak_flops": peak}
            text += f"  {row['mfu']:.1%} {share}"
        if first:
            row["first_call_s"] = first[name]
            text += f"  first call {first[name]:.1f} s"
        print(text)
        rows.append(row)
    return rows


def draw_bars(bars, xlabel, title, file):
    """A picture of {name: (value, label)}, from the top down."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1 + 0.4 * len(bars)), layout="constrained")
    axes = figure.subplots()
    drawn = axes.barh(list(bars), [value for value, _ in bars.values()])
    axes.bar_label(drawn, [f" {label}" for _, label in bars.values()])
    axes.invert_yaxis()
    axes.margins(x=0.5)
    axes.set(xlabel=xlabel)
    figure.suptitle(title)
    save_figure(figure, file)


def save_figure(figure, file):
    with whole(Path(file)) as path:
        figure.savefig(path, format="png", dpi=120)


def facts_of(device):
    """What the figures depend on: the CPU with its instructions, the card, the software."""
    known = getattr(torch.cpu, "get_capabilities", dict)()
    return {"machine": machine(device), "cores": os.cpu_count(),
            "features": sorted(name for name, there in known.items()
                               if there is True and name.startswith(("avx", "amx", "fma"))),
            "taken_away_by": {name: os.environ[name] for name in INSTRUCTIONS
                              if name in os.environ},
            "torch": torch.__version__, "system": platform.platform(),
            "date": time.strftime("%Y-%m-%d")}
