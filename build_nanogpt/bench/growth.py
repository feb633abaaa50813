"""How cost grows: longer sequences, more ids, more layers, more sequences, one at a time."""

import multiprocessing
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

import train_gpt2
from build_nanogpt.bench.errors import no_room
from build_nanogpt.bench.measure import PEAK, Clock, measure, measure_beside, product, save_figure
from build_nanogpt.bench.train import random_batches, step_of
from build_nanogpt.bench.variants import as_in_a_run, random_gpt, sizes
from build_nanogpt.cli import UserError
from nanogpt.cpu import keep_memory
from nanogpt.report import flops_per_token

AXES = {"T": "tokens a sequence", "vocab_size": "ids", "n_layer": "layers", "B": "sequences a step"}


def peak_memory(device):
    """Bytes that this process has held at most, or None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:  # not getrusage's ru_maxrss: on Linux it begins with that of the parent
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])
    except OSError:
        if sys.platform != "darwin":
            return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def one_point(config, device, minutes):
    """Measure a whole training step: (milliseconds, FLOPs a token, peak bytes)."""
    keep_memory()
    model = random_gpt(config, device)
    as_in_a_run(model, device, config.B * config.T)
    optimizer = train_gpt2.configure_optimizer(model, 0.1, 0.0)
    step = step_of(model, optimizer, random_batches(config, device))
    ms = measure({"step": step}, config, device, Clock(minutes))["step"]
    return ms, flops_per_token(model, config.T), peak_memory(device)


def in_fresh_process(config, device, name, minutes):
    """one_point(). Raises UserError if the system ends the process: memory has run out."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(one_point, config, device, minutes).result()
        except BrokenProcessPool:
            value = getattr(config, name)
        except RuntimeError as error:
            if not no_room(error):
                raise
            value = getattr(config, name)
    flag = name.replace("_", "-")
    raise UserError(f"no room for --{flag} {value}: give --try-{flag} without it, or a smaller "
                    "network")


def points(config):
    """[(flag's name, configuration)]: one value changed at a time."""
    return [(name, replace(config, **{name: value}))
            for name in AXES for value in getattr(config, f"try_{name}")]


def row_of(name, config, result, peak):
    ms, flops, memory = result
    tokens = config.grad_accum * config.B * config.T
    return {"table": "growth", "variant": f"{name}={getattr(config, name)}", "axis": name,
            "value": getattr(config, name), "ms": ms, "tokens_per_second": 1000 * tokens / ms,
            "flops_per_token": flops, "roof_tokens_per_second": peak / flops,
            "peak_share": 1000 * tokens / ms * flops / peak, "peak_bytes": memory}


def print_row(row):
    memory = "unknown" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:,.0f} MiB"
    print(f"  {row['variant']:18s} {row['ms']:10.1f} ms  {row['tokens_per_second']:10,.0f} tok/s  "
          f"roof {row['roof_tokens_per_second']:10,.0f}  {row['peak_share']:.1%}  memory {memory}")


def step_flops(config):
    """Of a whole training step; each layer adds the same."""
    with torch.device("meta"):
        one, two = (flops_per_token(
            random_gpt(replace(config, n_layer=n), torch.device("meta")), config.T) for n in (1, 2))
    tokens = config.grad_accum * config.B * config.T
    return config.steps * tokens * (one + (config.n_layer - 1) * (two - one))


def draw_panel(axes, label, rows):
    values = [row["value"] for row in rows]
    axes.plot(values, [row["tokens_per_second"] for row in rows], "o-", label="measured")
    axes.plot(values, [row["roof_tokens_per_second"] for row in rows], "k--",
              label="roof: matrix product")
    axes.set(xscale="log", xlabel=label, ylabel="tokens per second")
    axes.set_ylim(0, 1.1 * max(row["roof_tokens_per_second"] for row in rows))
    axes.set_xticks(values, [f"{value:,}" for value in values])
    axes.minorticks_off()
    lines = axes.get_lines()
    if all(row["peak_bytes"] for row in rows):
        memory = axes.twinx()
        memory.plot(values, [row["peak_bytes"] / 2**20 for row in rows], "s:", color="tab:orange",
                    label="peak memory")
        memory.set_ylim(0, 1.1 * max(row["peak_bytes"] for row in rows) / 2**20)
        memory.set_ylabel("MiB")
        lines = [*lines, *memory.get_lines()]
    return lines


def draw(rows, title, file):
    """Tokens a second against each axis, below what the device's products would allow."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7), layout="constrained")
    figure.suptitle(title)
    lines = []
    for axes, (name, label) in zip(figure.subplots(2, 2).flat, AXES.items(), strict=True):
        here = sorted((row for row in rows if row["axis"] == name), key=lambda row: row["value"])
        axes.set_visible(bool(here))
        if here:
            lines = draw_panel(axes, label, here)
    figure.legend(handles=lines, loc="outside lower center", ncols=3)
    save_figure(figure, file)


def growth(config, device, clock):
    """Tokens a second and peak memory of whole training steps, each in a fresh process. A point
    whose FLOPs, at the rate of those before it, would not fit into the time is left out."""
    _, rates = measure_beside({PEAK: product(device)}, {}, config, device, clock)
    title = f"whole training step, fp32, around {sizes(config)}, {config.vocab_size} ids"
    print(f"\n{title}")
    rows = []
    for name, point in tqdm(points(config), leave=False, disable=None):
        share = min((row["peak_share"] for row in rows), default=0.1)
        expected = (1 + config.repeats) * step_flops(point) / (share * rates[PEAK])
        if expected > clock.left():
            clock.leave_out(f"{name}={getattr(point, name)}", f"about {expected:.0f} s, and "
                            f"--minutes {config.minutes} leave {max(0, clock.left()):.0f}")
            continue
        result = in_fresh_process(point, device, name, clock.left() / 60)
        rows.append(row_of(name, point, result, rates[PEAK]))
        print_row(rows[-1])
    if config.png:
        draw(rows, title, config.png)
    return rows
