"""One command that runs everything only a GPU can prove, and writes one folder."""

import contextlib
import itertools
import json
import math
import multiprocessing
import os
import re
import shlex
import signal
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro

import hellaswag as scoring
from build_nanogpt.bench.errors import program_errors
from build_nanogpt.bench.measure import Clock, draw_bars, facts_of
from build_nanogpt.cli import UserError, whole
from build_nanogpt.proof import ladder, parts, run
from build_nanogpt.proof.data import named_tokenizer
from nanogpt.disk import check_writable
from nanogpt.cpu import keep_memory
from nanogpt.ranks import find_device
from nanogpt.shards import find_shards

# name -> a function of (config, clock) that yields rows. The ladder comes last: it measures as many
# rungs as there is time for. The order fits all parts into ten minutes of one modern card.
PARTS = {"tests": parts.tests, "run": run.run, "sampling": parts.sampling,
         "hellaswag": parts.hellaswag, "memory": parts.memory, "muon": parts.muon,
         "ladder": ladder.ladder}
LEAST = 15  # seconds: with less time left, a part is skipped
MOST = {"tests": 200}  # seconds: a test that hangs must not use up the other parts' time
METHOD = "spawn"  # how a part's process starts: a CUDA context does not survive a fork


@dataclass(frozen=True)
class Config:
    device: str = "auto"
    """cuda, mps, cpu, or auto for the first of them that is there"""
    out: str = ""
    """folder to write, new or empty; default: a new one, runs/proof-MACHINE"""
    data: str = ""
    """folder of shards to train on; default: shards made from Python's manual and library"""
    hellaswag: str = "heldout"
    """a .jsonl file of HellaSwag examples, or "heldout": endings cut from validation text"""
    minutes: float = 9.5
    """stop after this time; parts that have not started are skipped"""
    small: bool = False
    """rehearse with a tiny network; always on without CUDA"""
    only: tuple[str, ...] = ()
    """run only these parts: tests, run, sampling, hellaswag, memory, muon, ladder"""
    compile: Annotated[bool | None, tyro.conf.arg(metavar="| --no-compile")] = None
    """use torch.compile in the ladder, Muon and the run; default: only on cuda"""


@dataclass
class Result:
    """A part's state (passed, failed or skipped), its summary or reason, and its figures."""

    state: str = "failed"
    text: str = ""
    seconds: float = 0.0
    rows: list = field(default_factory=list)


# -----------------------------------------------------------------------------
# Each part runs in its own process: after a CUDA error no other call to the card would work in it.


def check_finite(row):
    for name, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise RuntimeError(f"{row['what']}: {name} is {value}")
    return row


def work(pipe, name, part, config, seconds):
    """Runs in the part's process: send ("row", figures) for each row, then (state, text)."""
    if hasattr(os, "setsid"):
        os.setsid()  # so that end() reaches the processes it starts
    with open(Path(config.out) / f"{name}.log", "ab", buffering=0) as log:
        for number in 1, 2:
            os.dup2(log.fileno(), number)
    device = torch.device(config.device)
    if device.index is not None:  # compiled code runs on the current card
        torch.cuda.set_device(device)
    keep_memory()
    try:
        rows = part(config, Clock(seconds / 60))
        while True:
            try:
                row = next(rows)
            except StopIteration as last:
                pipe.send(("passed", last.value or ""))
                return
            pipe.send(("row", check_finite(row)))
    except parts.Skipped as reason:
        pipe.send(("skipped", str(reason)))
    except BaseException as error:
        (Path(config.out) / f"{name}.error.txt").write_text(traceback.format_exc(),
                                                            encoding="utf-8")
        pipe.send(("failed", parts.one_line(error)))


def end(process):
    """Kill the process and everything it has started."""
    with contextlib.suppress(ProcessLookupError, AttributeError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def receive(pipe, result, clock):
    """Fill in the result with what the part sends. Returns False if it runs out of time."""
    while pipe.poll(max(0.0, clock.left())):
        kind, value = pipe.recv()
        if kind != "row":
            result.state, result.text = kind, value
            return True
        result.rows.append(value)
    return False


def try_part(name, config, clock):
    """Run a part in its own process. Returns its Result, even if it crashes or hangs."""
    result, began = Result(), time.perf_counter()
    if clock.left() < LEAST:
        result.state, result.text = "skipped", f"--minutes {config.minutes:g} are over"
        return result
    seconds = min(clock.left(), MOST.get(name, math.inf))
    limit, context = Clock(seconds / 60), multiprocessing.get_context(METHOD)
    pipe, there = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(there, name, PARTS[name], config, seconds))
    process.start()
    there.close()
    try:
        if receive(pipe, result, limit):
            process.join(10)
        else:
            result.text = f"cut off after {seconds:.0f} s"
    except (EOFError, OSError):
        process.join()
        result.text = f"its process ended with status {process.exitcode}"
    finally:
        end(process)
    result.seconds = time.perf_counter() - began
    if result.state == "failed":
        explain(Path(config.out), name, result.text)
    return result


def explain(out, name, text):
    """Write NAME.error.txt, with the end of the log, for a part that could not write it itself."""
    file, log = out / f"{name}.error.txt", out / f"{name}.log"
    if not file.exists():
        said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        file.write_text("\n".join([text, *said.splitlines()[-40:], ""]), encoding="utf-8")


# -----------------------------------------------------------------------------
# the report

FORMATS = {"ms": ",.1f", "s": ",.1f", "tokens/s": ",.0f", "examples/s": ",.1f", "MFU": ".1%",
           "ratio": ".2f", "MiB": ",.1f", "saved": ".1%", "share of it": ".1%",
           "memory, GB/s": ",.1f", "difference": ".3g"}


def cell(name, value):
    if value is None:
        return ""
    form = FORMATS.get(name, ".4f" if isinstance(value, float) else ",")
    text = value if isinstance(value, str) else format(value, form)
    return " ".join(text.replace("|", "\\|").split())


def table(rows):
    """A Markdown table, as lines, with a column for every name in the rows."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    rules = ["---" if any(isinstance(row.get(name), str) for row in rows) else "---:"
             for name in names]
    lines = [names, rules,
             *([cell(name, row.get(name)) for name in names] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def command_of(config):
    """The command that measures the same again, into another folder."""
    words = []
    for name, default in ((f.name, f.default) for f in fields(config)):
        value = getattr(config, name)
        if name not in ("out", "only") and value != default:
            words.append(f"--{name}={value}" if name != "small" else "--small")
    words += ["--only", *config.only] if config.only else []
    return shlex.join(["python", "-m", "build_nanogpt", "proof", *words])


def write_report(out, facts, results):
    """Write README.md, proof.json and the picture. Called after every part, in case of a crash."""
    rungs = [row for row in results.get("ladder", Result()).rows if "MFU" in row]
    if rungs:
        bars = {row["what"]: (row["tokens/s"], f"{row['ms']:,.1f} ms, {row['ratio']:.2f} x, "
                                               f"MFU {row['MFU']:.1%}") for row in rungs}
        draw_bars(bars, "tokens per second",
                  f"a training step of {facts['network']}, {facts['machine']}", out / "ladder.png")
    summary = [{"part": name, "result": result.state, "s": result.seconds, "": result.text}
               for name, result in results.items()]
    lines = [f"# Proof on {facts['machine']}", "",
             f"`{facts['command']}`, {facts['date']}; torch {facts['torch']}, {facts['system']}, "
             f"{facts['cores']} cores. Network: {facts['network']}.", "", *table(summary)]
    for name, result in results.items():
        if result.rows:
            lines += ["", f"## {name}", "", *table(result.rows)]
            lines += ["", "![ladder](ladder.png)"] if name == "ladder" and rungs else []
    record = facts | {"parts": {name: asdict(result) for name, result in results.items()}}
    for file, text in {"README.md": "\n".join(lines),
                       "proof.json": json.dumps(record, indent=1, allow_nan=False)}.items():
        with whole(out / file) as path:
            path.write_text(text + "\n", encoding="utf-8")


# -----------------------------------------------------------------------------
# the command


def is_free(path):
    return not path.exists() or path.is_dir() and not any(path.iterdir())


def new_folder(config, machine):
    """--out, or a name that no earlier proof has. Raises UserError if --out is not empty."""
    if config.out:
        if not is_free(Path(config.out)):
            raise UserError(f"--out {config.out} is not empty: name a new folder")
        return Path(config.out).resolve()
    name = re.sub(r"\W+", "-", machine).strip("-").lower()
    paths = (Path(f"runs/proof-{name}{f'-{n}' * (n > 1)}") for n in itertools.count(1))
    return next(filter(is_free, paths)).resolve()


def check(config):
    """Resolve device, paths and sizes. Raises UserError before anything is written."""
    for name in config.only:
        if name not in PARTS:
            raise UserError(f"--only {name}: choose from {', '.join(PARTS)}")
    if not 0 < config.minutes < math.inf:
        raise UserError(f"--minutes {config.minutes}: give more than 0")
    device = find_device(config.device)
    if config.data:
        find_shards(config.data, named_tokenizer(config.data))
        config = replace(config, data=str(Path(config.data).resolve()))
    if config.hellaswag not in ("heldout", scoring.HUB):
        scoring.load_examples(config.hellaswag)
        config = replace(config, hellaswag=str(Path(config.hellaswag).resolve()))
    out = new_folder(config, facts_of(device)["machine"])
    check_writable(out)
    return replace(config, device=str(device), out=str(out),
                   small=config.small or device.type != "cuda")


@program_errors()
def main(config):
    """Run everything that needs a GPU, in ten minutes: the GPU tests; the ladder of training speed
    from fp32 to fused AdamW; Muon; a training run, resumed from its middle to the same bits;
    HellaSwag; sampling; memory. A part that fails does not stop the others.

    Without CUDA all parts run with a tiny network, in about a minute. The folder --out holds
    README.md, proof.json, ladder.png, a log of each part, and NAME.error.txt if part NAME failed.
    """
    clock, command = Clock(config.minutes), command_of(config)
    config = check(config)
    out, device = Path(config.out), torch.device(config.device)
    sizes = parts.sizes_of(config)
    facts = facts_of(device) | {
        "command": command, "config": asdict(config),
        "network": f"{sizes.n_layer} layers, {sizes.n_embd} channels, T = {sizes.T}"}
    print(f"{facts['machine']}, torch {facts['torch']}, {facts['date']}; into {out}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and kill the running part
    results = {}
    for name in PARTS:
        if config.only and name not in config.only:
            continue
        result = results[name] = try_part(name, config, clock)
        print(f"{name:10s} {result.state:8s} {result.seconds:6.1f} s  {result.text}", flush=True)
        write_report(out, facts, results)
    print(f"\n{out / 'README.md'}")
    states = {name: result.state for name, result in results.items()}
    for state in "passed", "skipped", "failed":
        if names := [name for name in states if states[name] == state]:
            print(f"{state}: {', '.join(names)}")
    if "failed" in states.values():
        sys.exit(1)
