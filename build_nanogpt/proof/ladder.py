"""The part of the proof that measures the video's ladder: each rung makes one more choice."""

import traceback

import torch

from build_nanogpt.bench.choices import Step
from build_nanogpt.bench.errors import no_room
from build_nanogpt.bench.measure import measure, product, seconds_of
from build_nanogpt.bench.variants import random_gpt
from build_nanogpt.proof.parts import (
    compiled, compiles, device_of, free, give_batch, in_a_run, largest_B, loss_of, one_line,
    sizes_of,
)
from nanogpt.ranks import choose_dtype
from nanogpt.report import flops_per_token, peak_flops

MOST_B = 128  # sequences: more would not speed up training
SECONDS = 15, 60  # time to allow for a rung of 124M, and for a compiled one


def dtype_of(config):
    """The dtype of matrix products in a run on a GPU; on a CPU bfloat16, to try that rung too."""
    device = device_of(config)
    return choose_dtype("auto", device) if device.type == "cuda" else torch.bfloat16


def rungs(config):
    """[(name, choice)] in the video's order. A rung has all choices up to its own."""
    V, dtype = sizes_of(config).vocab_size, dtype_of(config)
    return [("fp32", {}), ("+ TF32", {"tf32": True}), (f"+ {str(dtype)[6:]}", {"dtype": dtype}),
            ("+ torch.compile", {"compile": True}), ("+ flash attention", {"flash": True}),
            (f"+ vocabulary of {V + -V % 64:,}", {"padded": True}),
            ("+ fused AdamW", {"fused": True})]


def unfused(optimizer):
    """AdamW without fused kernels, as in the video before its last rung."""
    groups = [{name: group[name] for name in ("params", "weight_decay")}
              for group in optimizer.param_groups]
    return torch.optim.AdamW(groups, lr=1e-6, betas=(0.9, 0.95), eps=1e-8)


def rung_step(config, choices):
    """A training step with only these choices, not yet compiled."""
    flags = {"tf32": False, "flash": False, "padded": False, "dtype": torch.float32} | choices
    fused, _ = flags.pop("fused", False), flags.pop("compile", False)
    step = Step(sizes_of(config), device_of(config), **flags)
    if flags["padded"]:
        step.raw_model.vocab_multiple = 64  # on a CPU too, where a run would not pad
    if not fused:
        step.optimizer = unfused(step.optimizer)
    return step


class Ladder:
    """What all rungs share: the batch, the first rung's loss and speed, the peak for MFU."""

    def __init__(self, config):
        self.config, self.device, self.sizes = config, device_of(config), sizes_of(config)
        with torch.device("meta"):
            model = random_gpt(self.sizes, torch.device("meta"))
        self.flops = flops_per_token(model, self.sizes.T)
        self.peak = peak_flops(self.device, dtype_of(config))
        self.from_sheet = self.peak is not None
        if not self.from_sheet:  # a CPU, or a card that the program does not know
            action, flops = product(self.device, in_a_run(config))
            self.peak = flops / seconds_of(action, self.device)
        self.B, self.loss, self.rate = None, None, None

    def climb(self, name, choices, clock, B=None):
        """Measure a rung. B: a batch other than the ladder's, whose loss is not compared."""
        step = rung_step(self.config, choices)
        if not self.B:
            self.B = largest_B(step, self.sizes, MOST_B if self.device.type == "cuda" else 1)
        give_batch(step, self.sizes, B or self.B)
        if choices.get("compile"):
            step.model = compiled(step.raw_model, self.device)
        loss = loss_of(step)
        self.loss = self.loss or loss
        if not B and abs(loss / self.loss - 1) > 0.01:
            raise RuntimeError(f"the loss is {loss:.4f}, and {self.loss:.4f} on the first rung")
        ms = measure({name: step}, self.sizes, self.device, clock)[name]
        loss_of(step)
        rate = 1000 * (B or self.B) * self.sizes.T / ms
        self.rate = self.rate or rate
        return {"what": name, "B": B or self.B, "ms": ms, "tokens/s": rate,
                "MFU": rate * self.flops / self.peak, "ratio": rate / self.rate}

    def more(self, choices, clock):
        """Measure the last rung with the largest batch that fits; None if the ladder's is that.
        Compiled code needs less memory, so twice of what fits uncompiled is tried first."""
        step = rung_step(self.config, choices)
        B = largest_B(step, self.sizes, MOST_B if self.device.type == "cuda" else 4)
        del step
        for more in [2 * B, B] if choices.get("compile") and B < MOST_B else [B]:
            free(self.device)
            if more > self.B:
                try:
                    return self.climb(f"the same, B = {more}", choices, clock, more)
                except RuntimeError as error:
                    if not no_room(error):
                        raise
                    print(f"B = {more}: {error}")
        return None


def enough_time(config, choices, clock):
    return config.small or clock.left() > SECONDS["compile" in choices]


def ladder(config, clock):
    """Time a training step of 124M as the video speeds it up, one choice after another."""
    found, choices, rows, failed = Ladder(config), {}, [], []
    for name, choice in rungs(config):
        if "compile" in choice and not compiles(config):
            yield {"what": name, "note": "left out: a CPU compiles only with --compile"
                   if found.device.type == "cpu" else "left out: --no-compile"}
            continue
        choices |= choice
        if not enough_time(config, choices, clock):
            yield {"what": name, "note": f"left out: {max(0, clock.left()):.0f} s are left"}
            continue
        try:
            rows.append(found.climb(name, choices, clock))
            yield rows[-1]
        except Exception as error:  # the other rungs are still worth measuring
            failed.append(name)
            traceback.print_exc()
            yield {"what": name, "note": f"failed: {one_line(error)}"}
        free(found.device)
    if failed or not rows:
        raise RuntimeError(f"failed: {', '.join(failed)}" if failed else "no rung was measured")
    if enough_time(config, choices, clock) and (row := found.more(choices, clock)):
        rows.append(row)
        yield row
    whose = "the data sheet's" if found.from_sheet else "a matrix product's measured here"
    yield {"what": "100% MFU", "tokens/s": found.peak / found.flops,
           "note": f"{found.peak / 1e12:,.3g} TFLOPS, {whose}"}
    return (f"{rows[0]['what']} {rows[0]['tokens/s']:,.0f} tokens/s, {rows[-1]['what']} "
            f"{rows[-1]['tokens/s']:,.0f}: {rows[-1]['ratio']:.1f} times as many")
