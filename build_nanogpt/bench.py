"""Speed of the program: its choices beside what they replaced, itself beside its relatives."""

import importlib
import json
import platform
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro
from tqdm import tqdm

from build_nanogpt.bench_variants import variant
from common import UserError, find_device, onednn, whole

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
    """train: these variants alone, by their names in the table; each is a process of its own"""
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


def measure(actions, repeats, steps, device, warm=False):
    """Median milliseconds of one call of each action; all take turns, so that a machine that slows
    down slows all of them. The first call of each is not counted, unless all are `warm`."""
    if not warm:
        first_calls(actions, device)
    times = {name: [] for name in actions}
    for _ in tqdm(range(repeats), leave=False, disable=None):
        for name, action in actions.items():
            synchronize(device)
            t0 = time.perf_counter()
            for _ in range(steps):
                action()
            synchronize(device)
            times[name].append(1000 * (time.perf_counter() - t0) / steps)
    return {name: statistics.median(t) for name, t in times.items()}


def product(device, dtype=torch.float32):
    """(action, FLOPs) of a product of two square matrices: about the most the device computes."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))

    def multiply():
        with variant(), onednn():  # as in the program
            torch.mm(a, b)

    return multiply, 2 * n**3


def reading(device):
    """(action, bytes) of reading a tensor of 512 MB."""
    x = torch.ones(2**27, device=device)  # zeros may be one page of memory, mapped many times
    return x.sum, 4 * x.numel()


def measure_beside(yardsticks, actions, config, device, warm=False):
    """measure(), with actions of known size, {name: (action, size)}, among the others. Returns
    (medians of the others, {name: size a second})."""
    known = {name: action for name, (action, _) in yardsticks.items()}
    first_calls(known | ({} if warm else actions), device)
    medians = measure(actions | known, config.repeats, config.steps, device, warm=True)
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
    for name in "json", "png":  # before the work, not after it
        file = getattr(config, name)
        if file and not Path(file).resolve().parent.is_dir():
            raise UserError(f"--{name} {file}: there is no such folder, make it first")
    return config


def main(config):
    """Measure the program. choices: attention, optimizer, and on a GPU the ladder of TF32, bf16,
    compile, flash attention and a padded vocabulary, against what they replaced; with --saving
    what a checkpoint costs. train, sampling, hellaswag: beside transformers, nanoGPT and
    build-nanogpt. ladder: steps of the lecture. growth: longer, wider, deeper, more. data: shards.
    """
    config = check(config)
    device = find_device(config.device)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else (
        f"{device.type}, {torch.get_num_threads()} threads")
    print(f"{card}, torch {torch.__version__}, {platform.platform()}, "
          f"{time.strftime('%Y-%m-%d')}; medians of {config.repeats}")
    module = importlib.import_module(f"build_nanogpt.{WHATS[config.what]}")
    rows = getattr(module, config.what)(config, device)
    if config.json:
        facts = {"device": card, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"),
                 "config": asdict(config), "rows": rows}
        with whole(Path(config.json)) as path:
            path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
