"""Do two commits compute the same? Both train the same small networks; the losses are compared to
the bit."""

import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from build_nanogpt.bench.measure import INSTRUCTIONS, named
from build_nanogpt.cli import UserError
from build_nanogpt.lecture.git import ROOT, GitError, Repository, list_tree, read_blobs
from build_nanogpt.lecture.series import is_program
from nanogpt import common
from nanogpt.tokenizer import TOKENIZERS, get_tokenizer

WORK_TREE = "."
LOG_LINE = re.compile(r"^(\d+) (train|val) (\S+)$", re.MULTILINE)
# One thread, so that sums have one order, and no trial: what it finds differs from run to run.
FLAGS = ["--device", "cpu", "--products", "plain", "--no-compile", "--val-tokens", "4096",
         "--hellaswag", "none", "--sample-tokens", "0"]
LAPTOP = ["laptop", *FLAGS, "--total-batch-size", "2048"]
SMALL = ["--n-layer", "3", "--n-head", "3", "--n-embd", "48", "--T", "64", "--B", "4",
         "--total-batch-size", "512", "--data", "shards", "--warmup-steps", "10", *FLAGS]
# name -> (ranks, flags)
CONFIGURATIONS = {
    "laptop, AdamW": (1, [*LAPTOP, "--optimizer", "adamw"]),
    "laptop, AdamW, 2 ranks": (2, [*LAPTOP, "--optimizer", "adamw", "--B", "8"]),
    "laptop, Muon": (1, [*LAPTOP, "--optimizer", "muon"]),
    "laptop, Muon, 2 ranks": (2, [*LAPTOP, "--optimizer", "muon", "--B", "8"]),
    "124M in small": (1, SMALL),
}
# Of this process's environment; nothing else may change what a run does.
KEPT = ("PATH", "HOME", "TMPDIR", "TEMP", "SYSTEMROOT", "LD_LIBRARY_PATH", "TIKTOKEN_CACHE_DIR",
        *INSTRUCTIONS)


def program_of(commit, root):
    """{path: bytes} of the program at a commit of the repository `root`, or in its work tree."""
    if commit == WORK_TREE:
        found = (path.relative_to(root).as_posix()
                 for path in [*root.glob("*.py"), *root.glob("*/*.py")])
        return {path: (root / path).read_bytes() for path in found if is_program(path)}
    repository = Repository(root)
    try:
        repository.git("rev-parse", "--verify", "--quiet", "--end-of-options",
                       f"{commit}^{{commit}}")
    except GitError:
        raise UserError(f"there is no commit {commit}: name one, or {WORK_TREE} for the work tree"
                        ) from None
    files = {path: name for path, (_, name) in list_tree(repository, commit).items()
             if is_program(path)}
    blobs = read_blobs(repository, files.values())
    return {path: blobs[name] for path, name in files.items()}


def write_program(folder, program):
    """The files of a program, and shards of GPT-2's ids for it: the same for every program."""
    for path, content in program.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    (folder / "shards").mkdir()
    rng = np.random.default_rng(0)
    for split, n in ("train", 2**18), ("val", 2**13):
        ids = TOKENIZERS["gpt2"] * rng.random(n) ** 4  # some are frequent
        np.save(folder / "shards" / f"random_{split}_000000.npy", ids.astype(np.uint16))


def last_words(said):
    """The line that says why a run has ended: tyro draws boxes, torchrun adds a traceback."""
    lines = [words for line in said.splitlines() if (words := line.strip("│╭╮╰╯─ "))]
    for begin in "Unrecognized", "error: ":
        for line in lines:
            if line.startswith(begin):
                return line.removeprefix("error: ")
    return lines[-1] if lines else "nothing"


def train(folder, number, ranks, flags, steps):
    """{(step, kind): value} of a run's log. Raises RuntimeError with the run's last words."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    out = folder / f"run-{number}"
    # without instructions for it bfloat16 is so slow that the trial for Muon always finds float32
    env = {"ONEDNN_MAX_CPU_ISA": "AVX2", **{name: os.environ[name] for name in KEPT
                                            if name in os.environ}, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launch[: 4 * (ranks > 1)], "train_gpt2.py", *flags, "--max-steps",
         str(steps), "--eval-every", str(max(1, steps // 2)), "--out-dir", out.name],
        cwd=folder, env=env, capture_output=True, text=True, encoding="utf-8", errors="replace")
    if done.returncode:
        raise RuntimeError(last_words(done.stderr))
    log = (out / "log.txt").read_text(encoding="utf-8")
    return {(int(step), kind): float(value) for step, kind, value in LOG_LINE.findall(log)}


def difference(a, b):
    """What differs between two logs, as a row's figures; {} if nothing does."""
    others = [key for key in a if a[key] != b.get(key)] + [key for key in b if key not in a]
    if not others:
        return {}
    step, kind = others[0]
    return {"step": step, "kind": kind, "values": [log.get(others[0]) for log in (a, b)],
            "largest": max((abs(a[key] - b[key]) for key in others if key in a and key in b),
                           default=None)}


def words_of(row):
    if "failed" in row:
        return "; ".join(f"{commit} ended: {words}" for commit, words in row["failed"].items())
    if row["equal"]:
        return "equal to the bit"
    a, b = row["values"]
    return (f"{row['kind']} differs from step {row['step']} on: {a} and {b}; "
            f"largest difference {row['largest']}")


def has_vocabulary(flags, clock, name):
    """Whether a configuration's tokenizer is to be had; if not, the clock is told."""
    try:
        get_tokenizer("bytes" if "laptop" in flags else "gpt2")
    except common.UserError as error:
        clock.leave_out(name, str(error))
        return False
    return True


def losses(config, device, clock):
    """Train every configuration in both commits' programs, side by side, and compare the logs. A
    row is a configuration; "equal" says whether all numbers are."""
    if len(config.commits) != 2:
        raise UserError(f"losses compares two commits, not {len(config.commits)}: name them, "
                        f"{WORK_TREE} for the work tree, as in: bench losses HEAD {WORK_TREE}")
    wanted, rows = named(CONFIGURATIONS, config.only), []
    title = f"losses of {' and '.join(config.commits)}, {config.steps} steps"
    with tempfile.TemporaryDirectory(dir=config.folder) as temporary, ThreadPoolExecutor(2) as pool:
        folders = [Path(temporary, side).resolve() for side in ("a", "b")]
        for folder, commit in zip(folders, config.commits, strict=True):
            write_program(folder, program_of(commit, ROOT))
        print(f"\n{title}")
        for number, (name, (ranks, flags)) in enumerate(wanted.items()):
            if not has_vocabulary(flags, clock, name):
                continue
            runs = [pool.submit(train, folder, number, ranks, flags, config.steps)
                    for folder in folders]
            failed = {commit: str(run.exception()) for commit, run
                      in zip(config.commits, runs, strict=True) if run.exception()}
            found = {"failed": failed} if failed else difference(*(run.result() for run in runs))
            rows.append({"table": title, "variant": name, "steps": config.steps,
                         "equal": not found, **found})
            print(f"  {name:24s} {words_of(rows[-1])}", flush=True)
    if not rows:
        raise UserError("nothing was compared: every configuration was left out")
    return rows
