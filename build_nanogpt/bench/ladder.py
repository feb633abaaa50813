"""The lecture's ladder: each step's own train_gpt2.py, run for some iterations."""

import ast
import functools
import re
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from build_nanogpt.bench.measure import draw_bars, report
from build_nanogpt.bench.variants import sizes
from build_nanogpt.cli import UserError
from build_nanogpt.lecture.git import ROOT
from build_nanogpt.lecture.series import read_series
from build_nanogpt.lecture.trees import load_trees, program_files

FIRST = "timing"  # the first step that prints times
# the steps that make training faster, by their names
LADDER = (FIRST, "autocast", "compile", "flash", "vocabulary", "weight-decay", "next-batch",
          "memory", "trial")
SKIPPED = 3  # a run's first iterations: they compile and allocate
PRINTED = re.compile(r"dt (\d+) ms \| ([\d,]+) tok/sec")


def fields_of(source):
    """{name: the text of its default} of a step's TrainConfig: its flags."""
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    return {node.target.id: ast.unparse(node.value) for found in classes
            if found.name == "TrainConfig" for node in found.body
            if isinstance(node, ast.AnnAssign)}


def flags_of(step, source, config, device):
    """The flags of a run of the sizes in `config`, as far as the step has them; later steps train
    on shards, evaluate and write checkpoints. Raises UserError for a step that does not train."""
    fields, most = fields_of(source), 10**9
    if not {"max_steps", "B", "T"} <= fields.keys():
        raise UserError(f"{step.tag} prints no times: --steps-of can have {FIRST} and later steps")
    values = {name: getattr(config, name) for name in ("n_layer", "n_head", "n_embd", "vocab_size",
                                                       "B", "T")}
    values |= {"total_batch_size": config.B * config.T, "device": device, "out_dir": "log",
               "max_steps": lines_of(config) + 1, "eval_every": most, "val_tokens": config.T,
               "checkpoint_every": most, "hellaswag": "none", "sample_tokens": 0}
    if "edu_fineweb" in fields["data"]:
        values["data"] = "shards"
    if config.compile is not None:
        values["compile"] = config.compile
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items()
            if name in fields]


def lines_of(config):
    return SKIPPED + config.repeats * config.steps


def write_step(folder, tree, config):
    """A step's program, and shards of random tokens for it."""
    for name in program_files(tree):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(tree[name][1])
    (folder / "shards").mkdir()
    rng = np.random.default_rng(0)
    for split in "train", "val":
        tokens = rng.integers(config.vocab_size, size=8 * config.B * config.T, dtype=np.uint16)
        np.save(folder / "shards" / f"random_{split}_000000.npy", tokens)


def milliseconds(line, tokens):
    """Of the step that a line is about, or None: whichever of its two rounded numbers is longer."""
    if match := PRINTED.search(line):
        dt, rate = (int(number.replace(",", "")) for number in match.groups())
        return dt if dt > rate else 1000 * tokens / rate
    return None


def run_step(step, folder, flags, config):
    """The milliseconds that a step's run printed, without the first. The run is ended then: it need
    not write its checkpoint. Raises UserError with its last words if it ends by itself."""
    times, errors = [], folder / "errors.txt"
    with errors.open("wb") as file, subprocess.Popen(
            [sys.executable, "-u", "train_gpt2.py", *flags], cwd=folder, stdout=subprocess.PIPE,
            stderr=file, text=True, encoding="utf-8", errors="replace") as run:
        try:
            for line in run.stdout:
                times += [ms for ms in [milliseconds(line, config.B * config.T)] if ms is not None]
                if len(times) == lines_of(config):
                    break
        finally:
            run.kill()
    if len(times) < lines_of(config):
        said = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        word = said[-1].removeprefix("error: ") if said else "no word"
        raise UserError(f"{step.tag} ended after {len(times)} training steps: {word}")
    return times[SKIPPED:]


def chosen_steps(config):
    """(all steps up to the last that is wanted, the numbers of those that are). Raises UserError
    for a step that the lecture does not have."""
    steps = read_series(ROOT)
    known = {name: step.number for step in steps for name in (step.slug, str(step.number))}
    for name in {*LADDER, *config.steps_of} - known.keys():
        raise UserError(f"--steps-of: the lecture has {steps[0].tag} ... {steps[-1].tag}, and no "
                        f"step {name}")
    numbers = sorted({known[name] for name in (*LADDER, *config.steps_of)})
    return steps[: numbers[-1] + 1], numbers


def ladder(config, device, clock):
    """What each step prints of its iterations, one step after another. Each is tried on one layer
    and few tokens first."""
    steps, numbers = chosen_steps(config)
    trees, error = load_trees(steps)
    if error:
        raise error
    sources = {n: trees[n]["train_gpt2.py"][1].decode() for n in numbers}
    for n in numbers:  # what is wrong is said at once
        flags_of(steps[n], sources[n], config, device)
    names = {n: f"{steps[n].tag} {steps[n].lesson.title}" for n in numbers}

    def measured(n, config):
        flags = flags_of(steps[n], sources[n], config, device)
        with tempfile.TemporaryDirectory(dir=config.folder) as folder:
            write_step(Path(folder), trees[n], config)
            return statistics.median(run_step(steps[n], Path(folder), flags, config))

    small = replace(config, n_layer=1, T=min(config.T, 64), repeats=1, steps=1)
    kept = clock.far_behind({names[n]: functools.partial(measured, n, small) for n in numbers})
    medians = {}
    for n in tqdm(numbers, leave=False, disable=None):
        if names[n] in kept and clock.left() > 0:
            medians[names[n]] = measured(n, config)
        elif names[n] in kept:
            clock.leave_out(names[n], f"--minutes {config.minutes} are over")
    rows = report(f"steps of the lecture, {sizes(config)}, {config.vocab_size} ids, {device}",
                  medians, tokens=config.B * config.T)
    if config.png:
        bars = {row["variant"]: (row["ms"], f"{row['ms']:,.0f} ms, {row['ratio']:.2f} x")
                for row in rows}
        draw_bars(bars, "milliseconds of a training step", rows[0]["table"], config.png)
    return rows
