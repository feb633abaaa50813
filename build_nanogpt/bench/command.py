"""Speed of the program: its choices against what they replaced, the whole against its relatives."""

import getpass
import importlib
import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro

from build_nanogpt.bench.errors import program_errors
from build_nanogpt.bench.measure import Clock, facts_of
from build_nanogpt.cli import UserError, whole
from nanogpt.ranks import find_device

# WHAT -> module of this package that has a function of this name: (config, device, clock) -> rows
WHATS = {"choices": "choices", "train": "train", "sampling": "serve", "hellaswag": "serve",
         "ladder": "ladder", "growth": "growth", "data": "data", "losses": "losses"}
# The flags below where they are not given, and where a WHAT has other defaults.
SIZES = {"n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 50257, "B": 1, "T": 1024,
         "repeats": 5, "steps": 1}
SMALLER = {"n_layer": 4, "n_head": 4, "n_embd": 256}
OTHER = {"growth": SMALLER | {"vocab_size": 8192, "T": 512, "repeats": 3}, "ladder": SMALLER,
         "losses": {"steps": 100}}


@dataclass(frozen=True)
class Config:
    what: Annotated[str, tyro.conf.Positional] = "choices"
    """choices, train, sampling, hellaswag, ladder, growth, data or losses"""
    commits: Annotated[tuple[str, ...], tyro.conf.Positional,
                       tyro.conf.arg(metavar="[COMMIT COMMIT]")] = ()
    """losses: the two commits to compare; . is the work tree"""
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
    steps: int | None = None
    """training steps in one measurement, 10 or more on a GPU; default 1, and 100 in losses"""
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
    """ladder, losses, --saving: files are written to this folder's disk, and removed"""
    relatives: str = ""
    """train, sampling, hellaswag: a folder with your clones of nanoGPT and build-nanogpt"""
    only: tuple[str, ...] = ()
    """train, sampling, hellaswag, losses: these variants alone, by their names in the table"""
    grad_accum: int = 1
    """train: micro-steps of B sequences a step"""
    compile: Annotated[bool | None, tyro.conf.arg(metavar="| --no-compile")] = None
    """train: what is compiled, too, unless --no-compile; ladder: as each step has it by default"""
    new_tokens: int = 128
    """sampling: how many"""
    data: str = "Rowan/hellaswag"
    """hellaswag: the hub's dataset, or a .jsonl file; data: a folder of parquet files"""
    times: int = 1
    """data: repeat every document this many times"""
    limit: int = 32
    """hellaswag: score the first N examples"""
    steps_of: tuple[str, ...] = ()
    """ladder: steps to measure besides its own, by number or by name, as in 71 or restarts"""
    try_T: tuple[int, ...] = (256, 512, 1024, 2048, 4096)
    """growth: values of --T"""
    try_vocab_size: tuple[int, ...] = (257, 8192, 50257)
    """growth: values of --vocab-size"""
    try_n_layer: tuple[int, ...] = (2, 4, 8, 12)
    """growth: values of --n-layer"""
    try_B: tuple[int, ...] = (1, 2, 4, 8)
    """growth: values of --B"""


def check(config):
    """The configuration with all its sizes. Raises UserError for what cannot be measured."""
    if config.what not in WHATS:
        raise UserError(f"nothing to measure is called {config.what!r}: choose {', '.join(WHATS)}")
    given = {name: value for name, value in asdict(config).items() if value is not None}
    config = replace(config, **{**SIZES, **OTHER.get(config.what, {}), **given})
    for name, value in asdict(config).items():
        values = value if isinstance(value, tuple) else [value]
        if any(type(n) is int and n < 1 for n in values):
            raise UserError(f"--{name.replace('_', '-')} {min(values)}: give 1 or more")
    if not config.minutes > 0:
        raise UserError(f"--minutes {config.minutes}: give more than 0")
    for name in "json", "png":  # before the work, not after it
        file = getattr(config, name)
        if file and not Path(file).resolve().parent.is_dir():
            raise UserError(f"--{name} {file}: no such folder, make it first")
    return config


def compiled_code():
    """The folder for what torch.compile makes, one for each set of instructions. torch 2.13 finds
    compiled code again by its source alone: code made for AVX-512 and read where INSTRUCTIONS take
    that away, or the other way round, writes over memory that is not its own."""
    name = f"torchinductor_{getpass.getuser()}_{torch.backends.cpu.get_cpu_capability()}"
    return str(Path(tempfile.gettempdir(), name))


@program_errors()
def main(config):
    """Measure the program. choices: attention, optimizer, and on a GPU the ladder of TF32, bf16,
    compile, flash attention and a padded vocabulary, against what they replaced; with --saving
    what a checkpoint costs. train, sampling, hellaswag: against transformers, nanoGPT and
    build-nanogpt. ladder: steps of the lecture. growth: longer, wider, deeper, more. data: shards.
    losses: do two commits compute the same, to the bit?

    A variant is tried on a small piece first, and left out if it is ten times slower than the
    fastest. The last line is JSON: the figures and the machine.
    """
    config = check(config)
    device, clock = find_device(config.device), Clock(config.minutes)
    facts = facts_of(device)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", compiled_code())
    print(f"{facts['machine']}, torch {torch.__version__}, {facts['system']}, {facts['date']}"
          + f"; medians of {config.repeats}" * (config.what != "losses"))
    module = importlib.import_module(f"build_nanogpt.bench.{WHATS[config.what]}")
    rows = getattr(module, config.what)(config, device, clock)
    facts |= {"what": config.what, "config": asdict(config), "left_out": clock.left_out,
              "rows": rows}
    if config.json:
        with whole(Path(config.json)) as path:
            path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(facts))
    if not all(row.get("equal", True) for row in rows):
        sys.exit(1)
