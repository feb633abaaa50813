"""The part of the proof that trains, resumes from the middle, and compares the results bit by bit.
"""

import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from build_nanogpt.bench.ladder import SKIPPED, milliseconds
from build_nanogpt.lecture.git import ROOT
from build_nanogpt.proof.data import BIG, SMALL, flags_of, shards_of
from build_nanogpt.proof.parts import device_of, run_B
from nanogpt.checkpoints import find_checkpoints, read_tensors
from nanogpt.disk import digest
from nanogpt.report import read_log

SMALL_B = 4
FILES = "model.safetensors", "state.safetensors"

# Starts train_gpt2.py with the shards' own tokenizer in place of GPT-2's.
WITH_OWN = """import sys
sys.path.insert(0, {root!r})
from build_nanogpt.proof.data import own_tokenizer
train_gpt2.get_tokenizer = lambda name: own_tokenizer({file!r})
train_gpt2.run(train_gpt2.main)
"""


def train(config, flags, log):
    """Run train_gpt2.py, with its output in the file `log`. Returns the output. Raises RuntimeError
    with its last line if it fails."""
    own = shards_of(config)[0] / "vocabulary.json"
    program = [str(ROOT / "train_gpt2.py")]
    if own.exists():
        program = ["-c", WITH_OWN.format(root=str(ROOT), file=str(own))]
    with open(log, "wb") as file:
        done = subprocess.run([sys.executable, "-u", *program, *flags], stdout=file,
                              stderr=subprocess.STDOUT, cwd=config.out)
    said = log.read_text(encoding="utf-8", errors="replace")
    if done.returncode:
        last = said.strip().splitlines()[-1:] or ["no word"]
        raise RuntimeError(f"train_gpt2.py ended with status {done.returncode}: {last[0]} (all of "
                           f"it in {log.name})")
    return said


def run_row(what, said, folder, tokens):
    """The figures of a run, from its output and log. Raises RuntimeError if validation loss did
    not fall."""
    log, lines = read_log(folder / "log.txt"), said.splitlines()
    times = [ms for line in lines if (ms := milliseconds(line, tokens)) is not None][SKIPPED:]
    shares = [float(share) / 100 for share in re.findall(r"MFU ([\d.]+)%", said)]
    ms, (_, val), hella = statistics.median(times), log["val"], log["hella"][1]
    if not val[-1] < val[0]:
        raise RuntimeError(f"{what}: validation {val[0]:.4f} at first, {val[-1]:.4f} at the end")
    row = {"what": what, "ms": ms, "tokens/s": 1000 * tokens / ms}
    if shares[SKIPPED:]:
        row["MFU"] = statistics.median(shares[SKIPPED:])
    return row | {"validation at first": val[0], "validation": val[-1], "endings right": hella[-1]}


def resume(config, flags, name):
    """Copy the run without its last checkpoint, and resume the copy. Returns (folder, output)."""
    out = Path(config.out)
    last = find_checkpoints(out / "run")[-1][1].name
    folder = out / name
    shutil.copytree(out / "run", folder, ignore=shutil.ignore_patterns(last, ".lock"))
    said = train(config, [*flags, f"--out-dir={folder}", "--resume"], out / f"{name}.txt")
    if "resumed    | at step" not in said:
        raise RuntimeError(f"{name}: it began anew, see {name}.txt")
    return folder, said


def largest_difference(a, b):
    """(largest difference between two checkpoints, the tensor's name)."""
    a, b = read_tensors(a), read_tensors(b)
    if a.keys() != b.keys():
        raise RuntimeError(f"the checkpoints hold other tensors: {sorted(a.keys() ^ b.keys())[:3]}")
    return max(((a[name].double() - b[name].double()).abs().max().item(), name) for name in a)


def first_other_step(a, b):
    """The first step at which two runs' training losses differ, or None."""
    a, b = (read_log(folder / "log.txt")["train"][1] for folder in (a, b))
    return next((step for step, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), None)


def compare(config, flags, resumed, clock):
    """Compare the last checkpoints file by file, in rows. Raises RuntimeError if one differs; then
    a second resumed run shows whether the same computation gives the same bits here at all."""
    def last(folder):
        return find_checkpoints(folder)[-1][1]

    out = Path(config.out)
    equal = {name: digest(last(out / "run") / name) == digest(last(resumed) / name)
             for name in FILES}
    for name, same in equal.items():
        yield {"what": f"resumed against unbroken: {name}", "equal": "to the bit" if same else "no"}
    if all(equal.values()):
        return
    size, name = largest_difference(last(out / "run"), last(resumed))
    yield {"what": f"largest difference, in {name}", "difference": size}
    step = first_other_step(out / "run", resumed)
    where = "no training loss" if step is None else f"training losses from step {step} on"
    reason = f"the resumed run differs by up to {size:.3g}, in {name}; {where}"
    if clock.left() > 60:
        again, _ = resume(config, flags, "resumed-again")
        size, name = largest_difference(last(resumed), last(again))
        yield {"what": f"two resumed runs, in {name}", "difference": size}
        reason += (f"; two resumed runs differ by {size:.3g} too: the device is not deterministic"
                   if size else "; two resumed runs are equal: resuming is at fault")
    raise RuntimeError(reason)


def run(config, clock):
    """Train with validation, HellaSwag, samples and a checkpoint midway; then resume from that
    checkpoint, which must end with the same bits."""
    out = Path(config.out)
    B = run_B(config) if device_of(config).type == "cuda" else SMALL_B
    flags = flags_of(config, B, out / "run")
    sizes = SMALL if config.small else BIG
    steps, tokens = sizes["max_steps"], 2 * B * sizes["T"]
    row = run_row(f"{steps} steps of {tokens:,} tokens", train(config, flags, out / "run.txt"),
                  out / "run", tokens)
    yield row
    resumed, said = resume(config, flags, "resumed")
    yield run_row(f"the same, resumed at step {steps // 2}", said, resumed, tokens)
    yield from compare(config, flags, resumed, clock)
    for path in out.glob("*/checkpoint_*"):  # gigabytes, no longer needed
        shutil.rmtree(path)
    own = (shards_of(config)[0] / "vocabulary.json").exists()
    return (f"validation {row['validation at first']:.3f} to {row['validation']:.3f}, "
            f"{row['tokens/s']:,.0f} tokens/s; resumed at step {steps // 2}, equal to the bit"
            + "; with ids made from the text, as GPT-2's vocabulary is not cached" * own)
