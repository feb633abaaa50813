"""The program's choices, each measured against what it replaced."""

import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

import train_gpt2
from build_nanogpt.bench.measure import measure, report, seconds_of, synchronize
from build_nanogpt.bench.variants import as_in_a_run, random_gpt, sizes, variant
from nanogpt.checkpoints import save_checkpoint
from nanogpt.ranks import Ranks, autocast, choose_dtype
from nanogpt.report import flops_per_token, peak_flops


class Step:
    """A network and its optimizer, and a training step on one batch of random tokens."""

    def __init__(self, config, device, dtype=torch.float32, compiled=False, padded=True,
                 **choices):
        self.choices, self.device, self.dtype = choices, device, dtype
        self.raw_model = random_gpt(config, device)
        as_in_a_run(self.raw_model, device, config.B * config.T)
        if not padded:
            self.raw_model.vocab_multiple = 1
        self.model = torch.compile(self.raw_model) if compiled else self.raw_model
        self.optimizer = train_gpt2.configure_optimizer(self.raw_model, 0.1, 1e-6)
        tokens = torch.randint(config.vocab_size, (config.B, config.T + 1), device=device)
        self.x, self.y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def __call__(self):
        with variant(**self.choices):
            with autocast(self.device, self.dtype):
                _, loss = self.model(self.x, self.y)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.raw_model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss.item()


def choices(config, device, clock):
    """Attention and optimizer, on a GPU the video's ladder; with --saving checkpoints alone."""
    if config.saving:
        return saving(config, device)
    rows = attention_and_optimizer(config, device, clock)
    return rows + (rungs(config, device, clock) if device.type == "cuda" else [])


def small(config):
    """A piece of a training step: one layer, few tokens."""
    return replace(config, n_layer=1, B=1, T=min(config.T, 64))


def attention_and_optimizer(config, device, clock):
    """Flash against written-out attention in a whole step; AdamW's update in its three forms."""
    names = {"written-out attention": False, "flash attention": True}
    pieces = {name: Step(small(config), device, flash=flash) for name, flash in names.items()}
    kept = clock.far_behind({name: lambda step=step: seconds_of(step, device)
                             for name, step in pieces.items()})
    steps = {name: Step(config, device, flash=names[name]) for name in kept}
    losses = [step() for step in steps.values()]
    if max(losses) - min(losses) > 1e-4:
        raise RuntimeError(f"the two attentions disagree: losses {losses}")
    rows = report(f"training step, fp32, {sizes(config)}",
                  measure(steps, config, device, clock), tokens=config.B * config.T)
    model = next(iter(steps.values())).raw_model
    del steps
    params = list(model.parameters())
    for p in params:
        p.grad = torch.randn_like(p)
    optimizers = {}
    for name, kind in {"a loop over the parameters": {"foreach": False, "fused": False},
                       "foreach": {"foreach": True}, "fused": {"fused": True}}.items():
        optimizer = torch.optim.AdamW(params, lr=1e-6, betas=(0.9, 0.95), weight_decay=0.1, **kind)
        optimizers[name] = optimizer.step
    kept = clock.far_behind({name: lambda step=step: seconds_of(step, device)
                             for name, step in optimizers.items()})
    optimizers = {name: optimizers[name] for name in kept}
    return rows + report(f"AdamW's update of {model.num_params():,} parameters",
                         measure(optimizers, config, device, clock))


def rungs(config, device, clock):
    """The video's ladder on a GPU: each rung adds one choice to those above it."""
    bf16 = choose_dtype("auto", device)
    variants = {
        "fp32": {"tf32": False, "flash": False, "padded": False},
        "+ TF32": {"flash": False, "padded": False},
        f"+ {str(bf16)[6:]}": {"dtype": bf16, "flash": False, "padded": False},
        "+ torch.compile": {"dtype": bf16, "compiled": True, "flash": False, "padded": False},
        "+ flash attention": {"dtype": bf16, "compiled": True, "padded": False},
        "+ vocabulary of 50,304": {"dtype": bf16, "compiled": True},
    }
    medians, flops = {}, None
    for name, choices in variants.items():  # one after another: together they would not fit
        torch._dynamo.reset()
        step = Step(config, device, **choices)
        flops = flops_per_token(step.raw_model, config.T)
        medians |= measure({name: step}, config, device, clock)
        del step
    return report(f"training step, B={config.B}, T={config.T}", medians,
                  tokens=config.B * config.T, flops=flops,
                  peak=peak_flops(device, bf16))


def saving(config, device):
    """The cost of a checkpoint, written at once or in the background: how long training pauses, and
    how much longer the steps take until it is on the disk."""
    step = Step(config, device)
    step()  # now the optimizer has its averages
    loader = train_gpt2.DataLoader(None, config.B, config.T)  # which is asked for its position
    scaler, settings = torch.amp.GradScaler("cpu", enabled=False), train_gpt2.TrainConfig()
    t = train_gpt2.Training(step.raw_model, step.model, step.optimizer, scaler, loader, 1,
                            Ranks(device))
    variants = {"no checkpoint": [], "written at once": [], "in the background": []}
    with tempfile.TemporaryDirectory(dir=config.folder) as folder, ThreadPoolExecutor(1) as writer:
        path = Path(folder) / "checkpoint"

        def steps(name):
            """(seconds that saving took of this thread, seconds of all steps)."""
            synchronize(device)
            blocked, writing, began = 0.0, None, time.perf_counter()
            for i in range(config.steps):
                step()
                if i == 0 and name != "no checkpoint":
                    t0 = time.perf_counter()
                    writing = save_checkpoint(
                        path, t, settings, writer=writer if name == "in the background" else None)
                    blocked = time.perf_counter() - t0
            synchronize(device)
            took = time.perf_counter() - began
            if writing:
                t0 = time.perf_counter()
                writing.result()
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
