"""What a run says: its log, its curves, the table at the start, its lines."""

import json
import math
import os
import platform
import re
import time
from dataclasses import asdict
from pathlib import Path

import torch

from nanogpt.common import UserError
from nanogpt.disk import sync, whole
from nanogpt.health import draw_health, read_health
from nanogpt.ramp import Ramp
from nanogpt.sharding import describe_sharding
from nanogpt.shards import validation_rows
from nanogpt.tokenizer import TOKENIZERS
from nanogpt.track import Tracker
from nanogpt.trial import times_slower


def report_evaluation(step, found, log):
    """Log the Evaluation made after `step` updates; the master process also prints it."""
    log.value(step, "val", found.val_loss)
    hella = ""
    if found.hella:
        hella = f" | hella {found.hella[0]:.4f} +- {found.hella[1]:.4f}"
        log.value(step, "hella", found.hella[0])
        log.note(step=step, hella_standard_error=found.hella[1], hella_examples=found.hella[2])
    if not log.master_process:
        return
    print(f"step {step:5d} | val {found.val_loss:.4f}{hella} | "
          f"evaluated in {found.seconds:.1f} s")
    for number, continuation in enumerate(found.samples):
        print(f"  sample {number}: {continuation!r}")


class Log:
    """log.txt: one `{step} {train|val|hella} {value}` per line; notes are lines of `# ` and JSON.

    Only the master process writes, and it only appends. A run's first line is its header.
    """

    def __init__(self, path, master_process, track="none"):
        self.path, self.master_process = Path(path), master_process
        self.tracker = Tracker(track if master_process else "none")
        self.error = None  # the first OSError; the loop checks it between two steps

    def line(self, text):
        if self.master_process and not self.error:
            try:
                with open(self.path, "a", encoding="utf-8") as file:
                    file.write(text + "\n")
            except OSError as error:
                self.error = error

    def value(self, step, kind, value):
        self.line(f"{step} {kind} {value!r}")
        self.tracker.attempt(self.tracker.add, kind, value, step)

    def note(self, **facts):
        self.line(f"# {json.dumps(facts)}")

    def begin(self, config, t, saved):
        """Write a run's header; or a note if the run resumes and its log is still here."""
        try:
            resumed = bool(saved) and self.cut(saved["log_size"])
            if not resumed:
                self.cut(self.whole_lines())
        except OSError as error:
            resumed, self.error = False, error
        header = {"config": asdict(config)}
        if resumed:
            header = {"resumed": t.step, "changed": saved["changed"]}
        text = self.path.read_text(encoding="utf-8") if resumed else ""
        header |= self.tracker.begin(config, t, text)
        self.note(**header,
                  ranks=t.ranks.ddp_world_size, device=str(t.ranks.device),
                  parameters=t.net.num_params(), max_steps=t.max_steps, torch=torch.__version__,
                  python=platform.python_version(), system=platform.platform())

    def size(self):
        """The file's size in bytes, 0 if there is no file. It has been fsynced up to that size."""
        if not self.path.exists():
            return 0
        sync(self.path)
        return self.path.stat().st_size

    def cut(self, size):
        """Cut off what a killed run wrote after the first `size` bytes. Returns whether the file
        now has exactly that size."""
        if self.master_process and self.size() > size:
            os.truncate(self.path, size)
        return self.size() == size

    def whole_lines(self):
        """Size up to the end of the last complete line: a killed run may leave half a line."""
        return self.path.read_bytes().rfind(b"\n") + 1 if self.path.exists() else 0


def read_log(path, size=None):
    """{"train": (steps, values), "val": ..., "hella": ..., "run": header} of a log's last run.

    size: read only this many bytes.
    """
    found = {"train": ([], []), "val": ([], []), "hella": ([], []), "run": {}}
    lines = Path(path).read_bytes()[:size].decode(errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            if line.startswith("# "):
                facts = json.loads(line[2:])
                if "config" in facts:  # a new run in the same folder
                    found = {kind: ([], []) for kind in ("train", "val", "hella")} | {"run": facts}
            elif not line.startswith("#"):
                step, kind, value = line.split()
                steps, values = found[kind]
                values.append(float(value))
                steps.append(int(step))
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}, line {number} is not a log line: {line[:40]!r}") from None
    return found


# Scores to cross, for runs with GPT-2's tokenizer. GPT-2 124M: OpenAI's weights, evaluated as here
# (loss: first 10,485,760 tokens of FineWeb-Edu's shard 0). GPT-3 124M: GPT-3 paper, appendix H.
REFERENCES = {"val": {"GPT-2 124M, FineWeb-Edu": 3.2924},
              "hella": {"GPT-2 124M": 0.2955, "GPT-3 124M": 0.337}}


def config_of(log, path):
    """The configuration in a log's header. Raises UserError if there is none."""
    config = log["run"].get("config")
    if not isinstance(config, dict) or not {"vocab_size", "hellaswag"} <= config.keys():
        raise UserError(f"{path} has no line with the run's configuration: name a whole log, or "
                        "remove it")
    return config


def draw_curves(log_path, axes, size=None):
    """Loss on the first of two matplotlib axes, HellaSwag on the second, with reference lines. In a
    run without HellaSwag, the first takes the place of both."""
    log = read_log(log_path, size)
    config, (steps, losses) = config_of(log, log_path), log["val"]
    axes[0].plot(*log["train"], "-" if len(log["train"][0]) > 1 else ".", label="train", alpha=0.4,
                 linewidth=0.8)
    axes[0].plot(steps, losses, "o-", label="validation", markersize=3)
    axes[0].set(xlabel="step", ylabel="loss (nats per token)", title="Loss")
    axes[1].plot(*log["hella"], "o-", label="this run", markersize=3)
    axes[1].axhline(0.25, color="gray", linestyle=":", label="guessing")
    axes[1].set(xlabel="step", ylabel="accuracy", title="Four-way endings (acc_norm)")
    later = [loss for loss in losses[1:] if math.isfinite(loss)]
    if later:  # the loss before training, or a spike, would flatten the rest of the curve
        lowest = min(loss for loss in later + log["train"][1] if math.isfinite(loss))
        median = sorted(later)[len(later) // 2]
        axes[0].set_ylim(0.95 * lowest, 1.1 * min(max(later), 2 * median))
    same_task = {"val": True, "hella": config["hellaswag"] != "heldout"}
    for ax, kind in zip(axes, ("val", "hella"), strict=True):
        if config["vocab_size"] == TOKENIZERS["gpt2"] and same_task[kind]:
            for number, (name, value) in enumerate(REFERENCES[kind].items()):
                ax.axhline(value, color=f"C{number + 2}", linestyle="--", label=name)
        ax.legend(handles=[x for x in ax.lines if any(map(ax.viewLim.containsy, x.get_ydata()))])
    if not log["hella"][0]:
        first, second = (ax.get_subplotspec() for ax in axes)
        axes[0].set_subplotspec(first.get_gridspec()[first.num1 : second.num2 + 1])
        axes[1].remove()


def save_curves(log_path, png, size=None):
    """Draw the curves into a PNG of 1200 x 480 pixels; needs no screen. 600 more for --health."""
    from matplotlib.figure import Figure

    notes = read_health(log_path, size)
    figure = Figure(figsize=(10, 9 if notes else 4), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(4, 5)) if notes else (figure, None)
    draw_curves(log_path, above.subplots(1, 2), size)
    if notes:
        draw_health(notes, below.subplots(2, 3))
    with whole(png) as path:
        figure.savefig(path, format="png", dpi=120)


# Peak TFLOPS of dense bf16 (V100, T4: fp16) products with float32 sums: NVIDIA's data sheets; for
# RTX cards its GA102, Ada and Blackwell white papers. The first name in the device's name counts.
PEAK_TFLOPS = {
    "B200": 2250, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312,
    "A10G": 70, "A10": 125, "L40S": 362, "L40": 181, "L4": 121, "RTX 5090": 209.5,
    "RTX 4090": 165.2, "RTX 3090": 71, "V100": 125, "T4": 65,
}


def peak_flops(device, dtype):
    """The card's peak FLOPS in 16 bits; None for an unknown card, a CPU, or fp32."""
    if device.type != "cuda" or dtype == torch.float32:
        return None
    name = torch.cuda.get_device_name(device)
    return next((1e12 * peak for card, peak in PEAK_TFLOPS.items()
                 if re.search(rf"\b{card}\b(?! (Ti|D|NVL|Laptop))", name)), None)


def flops_per_token(model, T):
    """Training FLOPs per token: 6 per weight (2 forward, 4 backward), 12 n_layer C T for attention.

    PaLM paper, appendix B. Position embeddings do not count: they are looked up, not multiplied.
    """
    c = model.config
    weights = model.num_params() - model.transformer.wpe.weight.numel()
    return 6 * weights + 12 * c.n_layer * c.n_embd * T


def slower(dtype, device):
    """A note for the table if products in `dtype` are slower than in float32 on this CPU, or ""."""
    times = 1 if dtype == torch.float32 or device.type != "cpu" else times_slower(dtype, device)
    return f", {times:.1f} times as long as in float32 on this machine" if times > 1.1 else ""


def describe(config, t, exam, saved=None):
    """What the run found and will do, as (name, text) rows."""
    c, ranks, train = t.net.config, t.ranks, t.loader.stream
    device, dtype = ranks.device, ranks.dtype
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if device.type == "cpu":
        card += f", {torch.get_num_threads()} threads"
    total, missing = config.total_batch_size, -c.vocab_size % t.net.vocab_multiple
    n_val = validation_rows(exam.val, config.val_tokens, config.T) * config.T
    n_examples, ramp = len(exam.encoded), Ramp(config, train)
    n = ramp.n if config.batch_ramp else t.max_steps
    other = train.enc and config.tokenizer and train.enc.name[-4:] != config.tokenizer[-4:]
    rows = [
        ("device", f"{card}, {ranks.ddp_world_size} process{'es' * (ranks.ddp_world_size > 1)}"),
        ("precision", f"{str(dtype)[6:]} products" + ", loss scaled" * (dtype == torch.float16)
                      + (", not compiled" if t.compiled is None else ", compiled")
                      + slower(dtype, device)),
        ("network", f"{c.n_layer} layers, {c.n_head} heads, {c.n_embd} channels: "
                    f"{t.net.num_params():,} parameters"
                    + f", from {config.init_from}" * bool(config.init_from)),
        ("vocabulary", f"{train.tokenizer.partition(':')[0]}, {c.vocab_size:,} ids"
                       + (f", computed as {c.vocab_size + missing:,}" if missing else "")
                       + f"; --tokenizer {config.tokenizer} is for texts" * bool(other)),
        ("training", f"{train.n_tokens:,} tokens in {len(train.shards)} shards of {config.data}, "
                     + ("rows from random places" if config.shuffle_rows
                        else "shuffled" if config.shuffle else "in the order on disk")),
        ("validation", f"{n_val:,} tokens every {config.eval_every} steps"),
        ("HellaSwag", f"{n_examples:,} examples of {config.hellaswag}" if n_examples else "none"),
        ("steps", f"{t.max_steps:,}" + f" on the tokens of {n:,}" * (n < t.max_steps)
                  + f" = {n * total / train.n_tokens:.2f} epochs, {config.warmup_steps} of warm-up"
                  + " (the run ends in it)" * (config.warmup_steps >= n)),
        ("batch", f"{total:,} tokens = {config.B} x {config.T} x {ranks.ddp_world_size} ranks "
                  f"x {t.grad_accum_steps} micro-steps"),
        ("folder", config.out_dir),
    ]
    if "muon" in t.chosen:
        rows.append(("Muon", f"{t.chosen['muon']} products"))
    if "products" in t.chosen:
        rows.append(("products", ", ".join(f"{what} {library}"
                                           for what, library in t.chosen["products"].items())))
    rows += ramp.describe() + describe_sharding(config, t)
    if saved:
        changes = "".join(f", {name} {a} -> {b}" for name, (a, b) in saved["changed"].items())
        rows.append(("resumed", f"at step {t.step:,} of {saved['folder']}{changes}"))
        before = saved.get("chosen", {}).get("machine", t.chosen["machine"])
        if before != t.chosen["machine"]:
            rows.append(("machine", f"{t.chosen['machine']} now, {before} before: the last bits of "
                                    "results may differ"))
    return rows


def print_table(rows):
    for name, text in rows:
        print(f"{name:10s} | {text}")


class Progress:
    """Prints the line of a step: loss, speed, share of the card's peak (MFU), time left."""

    def __init__(self, config, t, ramp=None):
        self.total_batch_size, self.max_steps = config.total_batch_size, t.max_steps
        self.t, self.ramp = t, ramp if config.batch_ramp else None
        self.flops = flops_per_token(t.net, config.T) / t.ranks.ddp_world_size
        self.peak = peak_flops(t.ranks.device, t.ranks.dtype)
        self.first = None  # (steps, seconds) at the first line: they include warming up

    def print_step(self, step, loss, lr, norm, dt):
        """dt: seconds of the training step alone. The time left (ETA) includes evaluations."""
        tokens, done, n = self.total_batch_size, step + 1, self.max_steps
        if self.ramp:  # done of n whole batches
            tokens, n = self.ramp.tokens, self.ramp.n
            done = self.ramp.done(step, self.t.loader.position)
        mfu = f"{self.flops * tokens / dt / self.peak:.1%}" if self.peak else "unknown"
        now, eta = time.perf_counter(), "unknown"
        self.first = self.first or (done, now)
        if done > self.first[0]:
            left = int((now - self.first[1]) / (done - self.first[0]) * (n - done))
            eta = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        print(f"step {step:5d} | loss {loss:.4f} | lr {lr:.2e} | norm {norm:.2f} | "
              f"dt {1000 * dt:.0f} ms | {tokens / dt:,.0f} tok/sec | MFU {mfu} | "
              f"ETA {eta}", flush=True)


def print_ending(config, checkpoint, stop=None):
    """Where everything is, and what to do next. stop: the Stop that ended the run, if one did."""
    if stop:
        print(f"stopped by {stop.asked or 'a signal to another rank'} at step "
              f"{int(checkpoint.name.rpartition('_')[2])}: the same command with --resume "
              f"continues from {checkpoint}")
        return
    score = "" if config.vocab_size != TOKENIZERS["gpt2"] else f"""
score it         python hellaswag.py --model {checkpoint}"""
    print(f"""
log              {Path(config.out_dir) / "log.txt"}
curves           {Path(config.out_dir) / "curves.png"}
weights          {checkpoint}
let it write     python sample.py {config.out_dir}
look closer      open play.ipynb
fine-tune it     add --init-from {checkpoint} and another --out-dir{score}
in transformers  GPT2LMHeadModel.from_pretrained("{checkpoint}")""")
