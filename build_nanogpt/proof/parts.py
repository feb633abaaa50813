"""Parts of the proof: tests, Muon, HellaSwag, sampling, memory.

Each is a generator that yields rows of figures as it measures them, and returns a one-line summary.
"""

import gc
import math
import multiprocessing
import os
import subprocess
import sys
import time
import xml.etree.ElementTree
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

import hellaswag as scoring
import train_gpt2
from build_nanogpt.bench.choices import Step
from build_nanogpt.bench.command import Config as Sizes
from build_nanogpt.bench.errors import no_room
from build_nanogpt.bench.growth import peak_memory
from build_nanogpt.bench.measure import measure, reading, seconds_of, synchronize
from build_nanogpt.bench.variants import as_in_a_run, random_gpt
from build_nanogpt.bench.variants import sizes as in_words
from build_nanogpt.lecture.git import ROOT
from build_nanogpt.proof.data import flags_of, shards_of
from nanogpt.ranks import Ranks, autocast, choose_dtype, compile_model
from nanogpt.shards import load_data
from nanogpt.trial import quicker_dtype

BIG = Sizes(n_layer=12, n_head=12, n_embd=768, vocab_size=50257, B=1, T=1024, repeats=3, steps=3)
SMALL = Sizes(n_layer=2, n_head=2, n_embd=64, vocab_size=257, B=1, T=64, repeats=3, steps=1)
# For memory: large logits, and enough layers for recomputing to save something.
SMALL_MEMORY = replace(SMALL, n_layer=4, n_embd=128, vocab_size=8192, B=8, T=128)
RUN_B = 16  # sequences a micro-step at most, outside of the ladder: for the run's time


class Skipped(Exception):
    """Raised by a part that cannot run on this machine. The message says why."""


def device_of(config):
    return torch.device(config.device)


def sizes_of(config):
    return SMALL if config.small else BIG


def in_a_run(config):
    """The dtype of matrix products in a run on this device."""
    return choose_dtype("auto", device_of(config))


def compiles(config):
    return device_of(config).type == "cuda" if config.compile is None else config.compile


def compiled(model, device):
    """Compile the model as a run does. Raises RuntimeError if that does not work."""
    torch._dynamo.reset()
    found = compile_model(model, device, wanted=True)
    if found is model:
        raise RuntimeError("torch.compile does not work here")
    return found


def free(device):
    """Return the memory of deleted tensors to the card."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def one_line(error):
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"[:300]


# -----------------------------------------------------------------------------
# a batch that fits


def give_batch(step, sizes, B):
    """Give the step a batch of B sequences of random tokens, the same every time."""
    generator = torch.Generator(step.device).manual_seed(1)
    tokens = torch.randint(sizes.vocab_size, (B, sizes.T + 1), device=step.device,
                           generator=generator)
    step.x, step.y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def fits(step, sizes, B):
    """Whether memory is enough for a training step on B sequences, which become its batch."""
    give_batch(step, sizes, B)
    try:
        step()
        return True
    except RuntimeError as error:
        if not no_room(error):
            raise
    # the error holds the step's tensors: memory is freed only after the except block
    step.optimizer.zero_grad()
    free(step.device)
    return False


def largest_B(step, sizes, most):
    """The largest batch that fits into memory, a power of two up to `most`; the step keeps it.
    Raises RuntimeError if not even one sequence fits."""
    B = 1
    while 2 * B <= most and fits(step, sizes, 2 * B):
        B *= 2
    while not fits(step, sizes, B):  # a failed try may leave memory fragmented
        if B == 1:
            raise RuntimeError("no room for a training step of one sequence")
        B //= 2
    return B


def run_B(config):
    """Sequences in a micro-step of the run: RUN_B, fewer if they do not fit, 1 on a CPU."""
    device, sizes = device_of(config), sizes_of(config)
    if device.type != "cuda":
        return sizes.B
    step = Step(sizes, device, in_a_run(config))
    B = largest_B(step, sizes, RUN_B)
    del step
    free(device)
    return B


def loss_of(step):
    """The loss of one more training step. Raises RuntimeError if it is not finite."""
    loss = step()
    if not math.isfinite(loss):
        raise RuntimeError(f"loss {loss} in a training step")
    return loss


# -----------------------------------------------------------------------------
# tests


def tests(config, clock):
    """Run the tests that need a GPU."""
    files = [path for path in sorted((ROOT / "tests").glob("test_*.py"))
             if "pytest.mark." + "gpu" in path.read_text(encoding="utf-8")]
    report = Path(config.out) / "tests.xml"
    outer = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run([sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-n", "0", "-p",
                           "no:cacheprovider", f"--junitxml={report}", *files], cwd=ROOT, env=outer)
    if not report.exists():
        raise RuntimeError(f"pytest ended with status {done.returncode}, see tests.log: is "
                           "everything there? pip install -e '.[test]'")
    outcomes = {}
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        bad = [child for child in case if child.tag in ("failure", "error", "skipped")]
        said = f"{bad[0].tag}: {bad[0].get('message', '')}" if bad else "passed"
        outcomes[case.get("name")] = said.splitlines()[0]
        yield {"what": case.get("name"), "outcome": outcomes[case.get("name")],
               "s": float(case.get("time"))}
    skipped = [name for name, said in outcomes.items() if said.startswith("skipped")]
    if outcomes and len(skipped) == len(outcomes) and device_of(config).type != "cuda":
        raise Skipped("no GPU")
    passed = list(outcomes.values()).count("passed")
    if done.returncode or passed < len(outcomes) or not outcomes:
        others = ", ".join(name for name, said in outcomes.items() if said != "passed")
        raise RuntimeError(f"{passed} of {len(outcomes)} tests passed; not {others or 'one ran'}")
    return f"{passed} passed"


# -----------------------------------------------------------------------------
# Muon, HellaSwag, sampling, memory


def muon(config, clock):
    """Time a training step with AdamW and with Muon, in turns, on one network."""
    device, sizes, B = device_of(config), sizes_of(config), run_B(config)
    step, dtype = Step(sizes, device, in_a_run(config)), quicker_dtype(device)
    give_batch(step, sizes, B)
    if compiles(config):
        step.model = compiled(step.raw_model, device)
    other = train_gpt2.configure_optimizer(step.raw_model, 0.1, 1e-6, "muon", dtype)
    optimizers = {"AdamW": step.optimizer, f"Muon, {str(dtype)[6:]}": other}

    def action(optimizer):
        step.optimizer = optimizer
        return loss_of(step)

    actions = {name: (lambda optimizer=optimizer: action(optimizer))
               for name, optimizer in optimizers.items()}
    medians = measure(actions, sizes, device, clock)
    first = next(iter(medians.values()))
    for name, ms in medians.items():
        yield {"what": name, "B": B, "ms": ms, "tokens/s": 1000 * B * sizes.T / ms,
               "ratio": ms / first}
    return (f"{B * sizes.T:,} tokens with Muon take {list(medians.values())[1] / first:.2f} times "
            "as long as with AdamW")


def network(config, rows, **sizes):
    """A random network on the device, set up as in a run. rows: of its matrix products."""
    device = device_of(config)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    model = random_gpt(replace(sizes_of(config), **sizes), device)
    as_in_a_run(model, device, rows)
    return model


def hellaswag(config, clock):
    """Score all examples of the file, or as many as the held-out text is long enough for."""
    device, (_, enc, vocab_size) = device_of(config), shards_of(config)
    settings = train_gpt2.parse_args(flags_of(config, 1, config.out))
    _, val = load_data(settings)
    held_out, limit = settings.hellaswag == "heldout", None
    if held_out:  # an example is a context and four endings
        text = enc.decode(val.read(0, min(val.n_tokens, 10**6)).tolist())
        limit = max(1, min(10_042, len(text) // (64 + 4 * 32)))  # HellaSwag has 10,042
    settings = replace(settings, hellaswag_limit=limit)
    model = network(config, 1024, vocab_size=vocab_size, T=settings.T)
    encoded = scoring.load_run(settings, enc, settings.T, val)
    ranks = Ranks(device, dtype=in_a_run(config))
    train_gpt2.evaluate_hellaswag(model, encoded[:8], ranks)  # allocates
    synchronize(device)
    began = time.perf_counter()
    right, error = train_gpt2.evaluate_hellaswag(model, encoded, ranks)
    seconds = time.perf_counter() - began
    tokens = sum(len(row) for example in encoded for row in scoring.pack(example))
    yield {"what": "held-out endings" if held_out else Path(settings.hellaswag).name,
           "examples": len(encoded), "s": seconds, "examples/s": len(encoded) / seconds,
           "tokens/s": tokens / seconds, "right, untrained": right, "standard error": error}
    return f"{len(encoded):,} examples in {seconds:.1f} s: {len(encoded) / seconds:,.0f} a second"


def sampling(config, clock):
    """Time greedy decoding of one sequence with the KV cache. Each token reads all weights."""
    device, new = device_of(config), 32 if config.small else 256
    model = network(config, 8)
    idx = torch.randint(model.config.vocab_size, (1, 8), device=device)
    read, size = reading(device)
    memory = size / seconds_of(read, device)
    del read
    free(device)
    weights = model.num_params() - model.transformer.wpe.weight.numel()
    for dtype in dict.fromkeys([torch.float32, in_a_run(config)]):
        with train_gpt2.evaluating(model), autocast(device, dtype):
            seconds = seconds_of(lambda: model.generate(idx, new, temperature=0.0), device)
        share = dtype.itemsize * weights * new / seconds / memory
        yield {"what": f"{str(dtype)[6:]}, {new} tokens after 8", "tokens/s": new / seconds,
               "memory, GB/s": memory / 1e9, "share of it": share}
    return f"{new / seconds:,.0f} tokens/s, {share:.1%} of the memory's speed"


def peak_of_step(sizes, device, dtype, choices):
    """(peak bytes of two training steps, the first one's loss). Needs a fresh process."""
    device = torch.device(device)
    before = peak_memory(device)
    if before is None:
        raise Skipped("this system does not report a process's peak memory")
    step = Step(sizes, device, dtype, **choices)
    loss = loss_of(step)
    loss_of(step)  # now the optimizer has its averages
    return peak_memory(device) - before, loss


def memory(config, clock):
    """Measure peak memory of an uncompiled training step, and how much two options save."""
    sizes = SMALL_MEMORY if config.small else replace(BIG, B=run_B(config))
    peaks, losses = {}, {}
    for name, choices in {"plain": {}, "loss_rows = 512": {"loss_rows": 512},
                          "recompute": {"recompute": True}}.items():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            peaks[name], losses[name] = fresh.submit(
                peak_of_step, sizes, config.device, in_a_run(config), choices).result()
        if abs(losses[name] / losses["plain"] - 1) > 0.01:
            raise RuntimeError(f"the losses disagree: {losses}")
        yield {"what": name, "of": f"{in_words(sizes)}, {sizes.vocab_size:,} ids",
               "MiB": peaks[name] / 2**20, "saved": 1 - peaks[name] / peaks["plain"]}
    return ", ".join(f"{name}: {1 - peak / peaks['plain']:.0%} saved"
                     for name, peak in peaks.items() if name != "plain")
