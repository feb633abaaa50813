"""nanoGPT and this program in one process, on the characters of Shakespeare, taking turns.

    python fineweb.py --source shakespeare --tokenizer chars --out data/shakespeare
    python runs/shakespeare/beside.py NANOGPT data/shakespeare table.json [seed ...]

NANOGPT: a clone of karpathy/nanoGPT, whose prepare.py has made its train.bin and val.bin. Its
train.py runs as it is, with its README's settings for a CPU, and another seed where it says 1337:
the code before its loop once, then the loop's body 2,000 times. Ours is the preset
shakespeare-char-cpu. They take turns of 50 updates, so that a busy moment of the machine slows
both. At the end each is tested on all validation rows of 64 characters, in float32. Times are
medians over the updates: of a clock, and of the process's CPU seconds.
"""

import contextlib
import datetime
import io
import json
import os
import statistics
import sys
import tempfile
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from nanogpt.presets import OWN_TEXT
from nanogpt.ranks import Ranks
from nanogpt.shards import load_data
from nanogpt.trial import machine
from train_gpt2 import PRESETS, get_lr, init_model, prepare_training, train_step, validate

FLAGS = ("config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 "
         "--log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 "
         "--max_iters=2000 --lr_decay_iters=2000 --dropout=0.0").split()
STEPS, TURN, CPU = 2000, 50, Ranks(torch.device("cpu"))


class Theirs:
    """train.py, one update at a time."""

    def __init__(self, nanogpt, seed):
        code = (nanogpt / "train.py").read_text(encoding="utf-8")
        assert code.count("torch.manual_seed(1337 +") == 1
        code = code.replace("torch.manual_seed(1337 +", f"torch.manual_seed({seed} +")
        before, loop = code.split("\nwhile True:\n")
        loop = textwrap.dedent(loop.partition("\nif ddp:")[0]).replace("break", "pass")
        self.body, self.names = compile(loop, "train.py", "exec"), {"__name__": "train"}
        os.chdir(nanogpt)
        sys.path.insert(0, str(nanogpt))
        self.folder = tempfile.TemporaryDirectory()
        sys.argv = ["train.py", *FLAGS, f"--out_dir={self.folder.name}"]
        exec(compile(before, "train.py", "exec"), self.names)

    def update(self):
        exec(self.body, self.names)

    def net(self):
        return self.names["model"]


class Ours:
    """The preset, one update at a time."""

    def __init__(self, data, seed):
        self.config = replace(PRESETS["shakespeare-char-cpu"], data=str(data), seed=seed)
        train, self.val = load_data(self.config)
        torch.manual_seed(seed)
        net = init_model(replace(self.config, vocab_size=train.vocab_size))
        self.t = prepare_training(self.config, net, train, CPU, saved={})

    def update(self):
        c = self.config
        train_step(self.t, get_lr(self.t.step, c.max_lr, c.final_lr, c.warmup_steps, STEPS))
        self.t.step += 1

    def net(self):
        return self.t.net


def take_turns(runners):
    """Both make STEPS updates. Returns {name: [(clock, CPU) seconds of each update]}."""
    took = {name: [] for name in runners}
    for _ in range(STEPS // TURN):
        for name, runner in runners.items():
            for _ in range(TURN):
                clock, cpu = time.perf_counter(), time.process_time()
                with contextlib.redirect_stdout(io.StringIO()):
                    runner.update()
                took[name].append((time.perf_counter() - clock, time.process_time() - cpu))
    return took


def check_same_ids(nanogpt, data):
    for split in "train", "val":
        theirs = np.fromfile(nanogpt / f"data/shakespeare_char/{split}.bin", dtype=np.uint16)
        ours = np.concatenate([np.load(path) for path in sorted(data.glob(f"*_{split}_*.npy"))])
        assert np.array_equal(theirs, ours), split


def main():
    nanogpt, data, out = (Path(name).resolve() for name in sys.argv[1:4])
    seeds, rows = [int(seed) for seed in sys.argv[4:]] or [1337, 1338, 1339], []
    check_same_ids(nanogpt, data)
    for seed in seeds:
        with contextlib.redirect_stdout(io.StringIO()):
            runners = {"ours": Ours(data, seed), "nanoGPT": Theirs(nanogpt, seed)}
        val = runners["ours"].val
        for name, took in take_turns(runners).items():
            clock, cpu = (1000 * statistics.median(each) for each in zip(*took, strict=True))
            loss = validate(runners[name].net(), val, val.n_tokens, 64, 64, CPU)
            rows.append(dict(seed=seed, program=name, val=round(loss, 4), ms=round(clock, 2),
                             cpu_ms=round(cpu, 2)))
            print(json.dumps(rows[-1]), flush=True)
    record = dict(date=str(datetime.date.today()), machine=machine(torch.device("cpu")),
                  torch=torch.__version__, ours=OWN_TEXT["shakespeare-char-cpu"],
                  nanogpt=FLAGS, rows=rows)
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
