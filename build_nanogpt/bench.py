"""Speed of the program: its choices beside what they replaced, itself beside its relatives."""

import getpass
import importlib
import json
import os
import platform
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro
from tqdm import tqdm

from common import UserError, find_device, whole
from nanogpt.cpu import keeps_fp32, using
from nanogpt.trial import least_seconds, machine, quickest

# WHAT -> module of build_nanogpt that has a function of this name: (config, device) -> rows
WHATS = {"choices": "bench_choices", "train": "bench_train", "sampling": "bench_serve",
         "hellaswag": "bench_serve", "ladder": "bench_ladder", "growth": "bench_growth",
         "data": "bench_data"}
# What the flags below are where they are not given, and where a WHAT takes less.
SIZES = {"n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 50257, "B": 1, "T": 1024,
         "repeats": 5}
SMALLER = {"n_layer": 4, "n_head": 4, "n_embd": 256}
LESS = {"growth": SMALLER | {"vocab_size": 8192, "T": 512, "repeats": 3}, "ladder": SMALLER}
PEAK = "FLOP of a product of matrices"
FAR_BEHIND = 10  # a variant whose small piece takes this many times the fastest's is left out
# These take instructions away from a CPU that has them.
INSTRUCTIONS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")


@dataclass(frozen=True)
class Config:
    what: Annotated[str, tyro.conf.Positional] = "choices"
    """choices, train, sampling, hellaswag, ladder, growth or data"""
    n_layer: int | None = None
    """blocks; 12, and 4 in ladder and growth"""
    n_head: int | None = None
    """attention heads a block; 12, and 4 in ladder and growth"""
    n_embd: int | None = None
    """channels; 768, and 256 in ladder and growth"""
    vocab_size: int | None = None
    """ids; 50257, and 8192 in growth"""
    B: int | None = None
    """sequences a step; 1"""
    T: int | None = None
    """tokens a sequence; 1024, and 512 in growth"""
    repeats: int | None = None
    """measurements of each variant, taken in turns, the median counts; 5, and 3 in growth"""
    steps: int = 1
    """training steps in one measurement; take 10 or more on a GPU"""
    minutes: float = 9.0
    """stop measuring after this time: fewer repeats, or fewer points"""
    device: str = "auto"
    """cuda, mps, cpu, or auto for the first of them that is there"""
    json: str = ""
    """write the figures to this file too"""
    png: str = ""
    """ladder, growth: draw them into this file"""
    saving: bool = False
    """measure what a checkpoint costs, and nothing else; with --steps steps from one to the next"""
    folder: str = "."
    """ladder, --saving: files are written to this folder's disk, and removed"""
    relatives: str = ""
    """train, sampling, hellaswag: a folder with your clones of nanoGPT and build-nanogpt"""
    only: tuple[str, ...] = ()
    """train, sampling, hellaswag: these variants alone, by their names in the table"""
    grad_accum: int = 1
    """train: micro-steps of B sequences a step"""
    compile: Annotated[bool | None, tyro.conf.arg(metavar="| --no-compile")] = None
    """train: what is compiled, too, unless --no-compile; ladder: as each step has it by default"""
    new_tokens: int = 128
    """sampling: how many"""
    data: str = "Rowan/hellaswag"
    """hellaswag: the hub's dataset, or a .jsonl file; data: a folder of parquet files"""
    times: int = 1
    """data: every document so many times"""
    limit: int = 32
    """hellaswag: the first so many examples"""
    steps_of: tuple[int, ...] = ()
    """ladder: steps of the lecture besides those it always measures"""
    try_T: tuple[int, ...] = (256, 512, 1024, 2048, 4096)
    """growth: values of --T"""
    try_vocab_size: tuple[int, ...] = (257, 8192, 50257)
    """growth: values of --vocab-size"""
    try_n_layer: tuple[int, ...] = (2, 4, 8, 12)
    """growth: values of --n-layer"""
    try_B: tuple[int, ...] = (1, 2, 4, 8)
    """growth: values of --B"""


# -----------------------------------------------------------------------------
# measuring


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


def save_figure(figure, file):
    with whole(Path(file)) as path:
        figure.savefig(path, format="png", dpi=120)


# -----------------------------------------------------------------------------
# the command


def check(config):
    """The configuration with all its sizes. Raises UserError for what cannot be measured."""
    if config.what not in WHATS:
        raise UserError(f"nothing to measure is called {config.what!r}: choose {', '.join(WHATS)}")
    given = {name: value for name, value in asdict(config).items() if value is not None}
    config = replace(config, **{**SIZES, **LESS.get(config.what, {}), **given})
    for name, value in asdict(config).items():
        values = value if isinstance(value, tuple) else [value]
        if name != "steps_of" and any(type(n) is int and n < 1 for n in values):
            raise UserError(f"--{name.replace('_', '-')} {min(values)}: give 1 or more")
    if not config.minutes > 0:
        raise UserError(f"--minutes {config.minutes}: give more than 0")
    for name in "json", "png":  # before the work, not after it
        file = getattr(config, name)
        if file and not Path(file).resolve().parent.is_dir():
            raise UserError(f"--{name} {file}: there is no such folder, make it first")
    return config


def compiled_code():
    """The folder for what torch.compile makes, one for each set of instructions. torch 2.13 finds
    compiled code again by its source alone: code made for AVX-512 and read where INSTRUCTIONS take
    that away, or the other way round, writes over memory that is not its own."""
    name = f"torchinductor_{getpass.getuser()}_{torch.backends.cpu.get_cpu_capability()}"
    return str(Path(tempfile.gettempdir(), name))


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


def main(config):
    """Measure the program. choices: attention, optimizer, and on a GPU the ladder of TF32, bf16,
    compile, flash attention and a padded vocabulary, against what they replaced; with --saving
    what a checkpoint costs. train, sampling, hellaswag: beside transformers, nanoGPT and
    build-nanogpt. ladder: steps of the lecture. growth: longer, wider, deeper, more. data: shards.

    A variant is tried on a small piece first, and left out if it is ten times slower than the
    fastest. The last line is JSON: the figures and the machine.
    """
    config = check(config)
    device, clock = find_device(config.device), Clock(config.minutes)
    facts = facts_of(device)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", compiled_code())
    print(f"{facts['machine']}, torch {torch.__version__}, {facts['system']}, {facts['date']}; "
          f"medians of {config.repeats}")
    module = importlib.import_module(f"build_nanogpt.{WHATS[config.what]}")
    rows = getattr(module, config.what)(config, device, clock)
    facts |= {"what": config.what, "config": asdict(config), "left_out": clock.left_out,
              "rows": rows}
    if config.json:
        with whole(Path(config.json)) as path:
            path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(facts))
