"""Speed of the program's choices, each measured beside what it replaced, in one run."""

import contextlib
import json
import platform
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

import train_gpt2
from common import UserError, find_device, whole


@dataclass(frozen=True)
class Config:
    n_layer: int = 12
    """blocks"""
    n_head: int = 12
    """attention heads a block"""
    n_embd: int = 768
    """channels"""
    vocab_size: int = 50257
    """ids"""
    B: int = 1
    """sequences a step"""
    T: int = 1024
    """tokens a sequence"""
    repeats: int = 5
    """measurements of each variant, taken in turns; the median counts"""
    steps: int = 1
    """training steps in one measurement; take 10 or more on a GPU"""
    device: str = "auto"
    """cuda, mps, cpu, or auto for the first of them that is there"""
    json: str = ""
    """write the figures to this file too"""
    saving: bool = False
    """measure what a checkpoint costs, and nothing else; with --steps steps from one to the next"""
    folder: str = "."
    """with --saving: checkpoints are written to this folder's disk, and removed"""


def written_out_attention(self, x):
    """The attention of the video's first half: the (T, T) matrix is made, masked and kept."""
    B, T, C = x.size()
    q, k, v = (t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
               for t in self.c_attn(x).split(C, dim=2))
    scores = q @ k.transpose(-2, -1) * k.size(-1) ** -0.5
    past = torch.ones(T, T, dtype=torch.bool, device=x.device).tril()
    y = F.softmax(scores.masked_fill(~past, float("-inf")), dim=-1) @ v
    return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


@contextlib.contextmanager
def variant(flash=True, padded=True, tf32=True):
    """The program with some of its choices taken back."""
    attention = train_gpt2.CausalSelfAttention
    forward, multiple = attention.forward, train_gpt2.GPT.vocab_multiple
    precision = torch.get_float32_matmul_precision()
    try:
        if not flash:
            attention.forward = written_out_attention
        if not padded:
            train_gpt2.GPT.vocab_multiple = 1
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        yield
    finally:
        attention.forward, train_gpt2.GPT.vocab_multiple = forward, multiple
        torch.set_float32_matmul_precision(precision)


def synchronize(device):
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


class Step:
    """A network and its optimizer, and a training step on one batch of random tokens."""

    def __init__(self, config, device, dtype=torch.float32, compiled=False, **choices):
        self.choices, self.device, self.dtype = choices, device, dtype
        torch.manual_seed(0)
        sizes = train_gpt2.GPTConfig(config.T, config.vocab_size, config.n_layer, config.n_head,
                                     config.n_embd)
        self.raw_model = train_gpt2.GPT(sizes).to(device)
        self.model = torch.compile(self.raw_model) if compiled else self.raw_model
        self.optimizer = train_gpt2.configure_optimizer(self.raw_model, 0.1, 1e-6)
        tokens = torch.randint(config.vocab_size, (config.B, config.T + 1), device=device)
        self.x, self.y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def __call__(self):
        with variant(**self.choices):
            with train_gpt2.autocast(self.device, self.dtype):
                _, loss = self.model(self.x, self.y)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.raw_model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss.item()


def measure(actions, repeats, steps, device):
    """Median milliseconds of one call of each action; all take turns, so that a machine that slows
    down slows all of them. The first call of each is not counted: it compiles and allocates."""
    for action in actions.values():
        action()
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


def report(title, medians, tokens=None, flops=None, peak=None):
    """Print a table; the first variant is the baseline. Returns rows for the record."""
    rows, baseline = [], next(iter(medians.values()))
    print(f"\n{title}")
    for name, ms in medians.items():
        row = {"table": title, "variant": name, "ms": ms, "ratio": baseline / ms}
        text = f"  {name:34s} {ms:10.1f} ms  {row['ratio']:6.2f} x"
        if tokens:
            row["tokens_per_second"] = 1000 * tokens / ms
            text += f"  {row['tokens_per_second']:12,.0f} tok/s"
        if peak:
            row["mfu"] = row["tokens_per_second"] * flops / peak
            text += f"  {row['mfu']:.1%} MFU"
        print(text)
        rows.append(row)
    return rows


def attention_and_optimizer(config, device):
    """Flash against written-out attention in a whole step; AdamW's update in its three forms."""
    shape = f"{config.n_layer} layers, {config.n_embd} channels, B={config.B}, T={config.T}"
    flash, manual = Step(config, device), Step(config, device, flash=False)
    ours, theirs = flash(), manual()
    if abs(ours - theirs) > 1e-4:
        raise RuntimeError(f"the two attentions disagree: loss {ours} and {theirs}")
    rows = report(f"training step, fp32, {shape}",
                  measure({"written-out attention": manual, "flash attention": flash},
                          config.repeats, config.steps, device), tokens=config.B * config.T)
    del manual
    params = list(flash.raw_model.parameters())
    for p in params:
        p.grad = torch.randn_like(p)
    optimizers = {}
    for name, kind in {"a loop over the parameters": {"foreach": False, "fused": False},
                       "foreach": {"foreach": True}, "fused": {"fused": True}}.items():
        optimizer = torch.optim.AdamW(params, lr=1e-6, betas=(0.9, 0.95), weight_decay=0.1, **kind)
        optimizers[name] = optimizer.step
    return rows + report(f"AdamW's update of {flash.raw_model.num_params():,} parameters",
                         measure(optimizers, config.repeats, config.steps, device))


def ladder(config, device):
    """The video's ladder on a GPU: each rung adds one choice to those above it."""
    bf16 = train_gpt2.choose_dtype("auto", device)
    rungs = {
        "fp32": {"tf32": False, "flash": False, "padded": False},
        "+ TF32": {"flash": False, "padded": False},
        f"+ {str(bf16)[6:]}": {"dtype": bf16, "flash": False, "padded": False},
        "+ torch.compile": {"dtype": bf16, "compiled": True, "flash": False, "padded": False},
        "+ flash attention": {"dtype": bf16, "compiled": True, "padded": False},
        "+ vocabulary of 50,304": {"dtype": bf16, "compiled": True},
    }
    medians, flops = {}, None
    for name, choices in rungs.items():  # one after another: together they would not fit
        torch._dynamo.reset()
        step = Step(config, device, **choices)
        flops = train_gpt2.flops_per_token(step.raw_model, config.T)
        medians |= measure({name: step}, config.repeats, config.steps, device)
        del step
    return report(f"training step, B={config.B}, T={config.T}", medians, config.B * config.T, flops,
                  train_gpt2.peak_flops(device, bf16))


def saving(config, device):
    """A checkpoint written at once and in the background, against none: how long training stands
    still for it, and how much longer the steps take until it is on the disk."""
    step, scaler = Step(config, device), torch.amp.GradScaler("cpu", enabled=False)
    step()  # now the optimizer has its averages
    settings = train_gpt2.TrainConfig()
    variants = {"no checkpoint": [], "written at once": [], "in the background": []}
    with tempfile.TemporaryDirectory(dir=config.folder) as folder, ThreadPoolExecutor(1) as writer:
        path = Path(folder) / "checkpoint"

        def steps(name):
            """(seconds that saving took of this thread, seconds of all steps)."""
            synchronize(device)
            blocked, saved, began = 0.0, None, time.perf_counter()
            for i in range(config.steps):
                step()
                if i == 0 and name != "no checkpoint":
                    t0 = time.perf_counter()
                    saved = train_gpt2.save_checkpoint(
                        path, step.raw_model, step.optimizer, scaler, 1, 0, settings,
                        writer=writer if name == "in the background" else None)
                    blocked = time.perf_counter() - t0
            synchronize(device)
            took = time.perf_counter() - began
            if saved:
                t0 = time.perf_counter()
                saved.result()
                took += time.perf_counter() - t0  # the next checkpoint would have waited for it
            return blocked, took

        for _ in tqdm(range(config.repeats), leave=False, disable=None):
            for name, times in variants.items():
                times.append(steps(name))
        size = sum(file.stat().st_size for file in path.iterdir())
    return report_saving(config, variants, size)


def report_saving(config, variants, size):
    rows, table = [], f"one checkpoint of {size / 1e6:,.1f} MB in {config.steps} steps"
    print(f"\n{table}")
    alone = statistics.median(took for _, took in variants["no checkpoint"])
    for name, times in variants.items():
        row = {"table": table, "variant": name,
               "stall_ms": 1000 * statistics.median(blocked for blocked, _ in times),
               "ms": 1000 * statistics.median(took for _, took in times)}
        row["extra_ms"] = row["ms"] - 1000 * alone
        row["extra_share"] = row["extra_ms"] / row["ms"]
        print(f"  {name:20s} stall {row['stall_ms']:9.1f} ms, steps {row['ms']:10.1f} ms, "
              f"{row['extra_ms']:9.1f} ms more: {row['extra_share']:.2%} of training")
        rows.append(row)
    return rows


def main(config):
    """Measure the program's choices against what they replaced: attention, optimizer, and on a GPU
    the ladder of TF32, bf16, compile, flash attention and a padded vocabulary. With --saving: what
    a checkpoint costs."""
    for name in "n_layer", "n_head", "n_embd", "vocab_size", "B", "T", "repeats", "steps":
        if getattr(config, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(config, name)}: give 1 or more")
    device = find_device(config.device)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else (
        f"{device.type}, {torch.get_num_threads()} threads")
    print(f"{card}, torch {torch.__version__}, {platform.platform()}, "
          f"{time.strftime('%Y-%m-%d')}; medians of {config.repeats}")
    rows = saving(config, device) if config.saving else attention_and_optimizer(config, device)
    if device.type == "cuda" and not config.saving:
        rows += ladder(config, device)
    if config.json:
        facts = {"device": card, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"),
                 "config": asdict(config), "rows": rows}
        with whole(Path(config.json)) as path:
            path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
