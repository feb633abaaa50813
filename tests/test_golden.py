"""The program trains as it did: losses of small runs against those in golden.json.

    python tests/test_golden.py      # writes golden.json anew; say in the commit why it changes

What is tested is the whole program: initialization, data, schedule, optimizers, accumulation, DDP.
"""

import json
import os
import random
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import helpers
import numpy as np
import pytest
import torch

import train_gpt2
from nanogpt import trial
from nanogpt.report import read_log
from nanogpt.tokenizer import get_tokenizer

FILE = Path(__file__).with_name("golden.json")
# Relative, and 5 times the largest difference seen: 4.5e-7 between AVX-512 and AVX2 alone
# (ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2), 3.4e-7 between
# AVX-512 and neither (ATEN_CPU_CAPABILITY=default, with MKL_CBWR=COMPATIBLE 3.7e-7).
TOLERANCE = 2.5e-6
EVERY = 10  # steps from one loss in the file to the next
STEPS = 100
FLAGS = ["--device", "cpu", "--products", "plain", "--no-compile", "--max-steps", STEPS,
         "--hellaswag", "none", "--sample-tokens", 0, "--val-tokens", 256]
LAPTOP = ["laptop", "--vocab-size", 257, "--n-layer", 2, "--n-head", 2, "--n-embd", 32,
          "--T", 32, "--B", 8, "--total-batch-size", 256, "--warmup-steps", 20, *FLAGS]
# name -> (ranks, flags)
RUNS = {
    "laptop, AdamW": (1, [*LAPTOP, "--optimizer", "adamw"]),
    "laptop, Muon": (1, [*LAPTOP, "--optimizer", "muon"]),
    "laptop, Muon, 2 ranks": (2, [*LAPTOP, "--optimizer", "muon", "--B", 4]),
    "124M in small": (1, ["--n-layer", 3, "--n-head", 3, "--n-embd", 24, "--T", 16, "--B", 2,
                          "--total-batch-size", 64, "--warmup-steps", 20,
                          "--max-lr", 6e-3, *FLAGS]),
}


def tokens(n, vocab_size):
    """Words of a few ids in random order, and an end-of-text now and then."""
    number = random.Random(0).random  # gives the same numbers in every version of Python
    words = [[int(number() * (vocab_size - 1)) for _ in range(2 + int(4 * number()))]
             for _ in range(40)]
    ids = []
    while len(ids) < n:
        ids += [vocab_size - 1] if number() < 0.05 else words[int(40 * number() ** 2)]
    return np.array(ids[:n], dtype=np.uint16)


def write_shards(folder, vocab_size):
    folder.mkdir()
    ids = tokens(9000, vocab_size)
    np.save(folder / "words_val_000000.npy", ids[:600])
    np.save(folder / "words_train_000001.npy", ids[600:])


def train(rank, world, port, flags):
    """One rank of a run, in this process."""
    if world > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank),
                       "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    with (patch.object(sys, "argv", ["train_gpt2.py", *map(str, flags)]),
          # no trial: which dtype is quicker for Muon depends on the machine
          patch.object(trial, "quicker_dtype", lambda device: torch.float32),
          # nothing is encoded or decoded, so GPT-2's vocabulary is not needed
          patch.object(train_gpt2, "get_tokenizer", lambda name: get_tokenizer("bytes"))):
        train_gpt2.main()


def losses(name, folder):
    """The training losses of a run, of every tenth step, and its validation losses."""
    world, flags = RUNS[name]
    vocab_size = train_gpt2.parse_args(map(str, flags)).vocab_size or 50257
    write_shards(folder / "shards", vocab_size)
    flags = [*flags, "--data", folder / "shards", "--out-dir", folder / "run"]
    if world == 1:
        train(0, 1, None, flags)
    else:
        helpers.together(train, world, helpers.free_port(), flags)
    log = read_log(folder / "run" / "log.txt")
    return {"train": log["train"][1][::EVERY], "val": log["val"][1]}


def differences(found, expected):
    """{kind: relative differences}."""
    return {kind: np.abs(np.array(found[kind]) / np.array(expected[kind]) - 1)
            for kind in expected}


@pytest.mark.parametrize("name", RUNS)
def test_losses_are_the_golden_ones(name, tmp_path):
    expected, found = json.loads(FILE.read_text())[name], losses(name, tmp_path)
    assert expected["train"][-1] < expected["train"][0] - 1  # it learns
    for kind, values in differences(found, expected).items():
        assert values.max() < TOLERANCE, f"{kind}: {found[kind]} for {expected[kind]}"


def main():
    torch.set_num_threads(1)
    found = {}
    for name in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = losses(name, Path(folder))
    if FILE.exists():
        for name, expected in json.loads(FILE.read_text()).items():
            print(name, {kind: f"{values.max():.1e}"
                         for kind, values in differences(found[name], expected).items()})
    FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
