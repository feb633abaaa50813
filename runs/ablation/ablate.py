"""GPT-2's recipe, one change at a time: which changes lower the validation loss by more than noise?

    python runs/ablation/ablate.py pairs SOURCE pairs.json            # 1,024 byte pairs of a text
    python fineweb.py --source SOURCE --tokenizer pairs.json --out data/ablation
    python runs/ablation/ablate.py train data/ablation base zero muon+apart --seeds 1 2 3
    python runs/ablation/ablate.py table                              # what rows.jsonl says

`base` is the video's recipe: AdamW, its initialization, a cosine down to a tenth. A name is one
change of it, or several joined by `+`. The seed decides on the weights and on the order of the
documents, so with the same seed all names start from the same weights and see the same tokens. A
finished run is a line of rows.jsonl and is not run again. `table` needs scipy, which
`pip install -e '.[test]'` brings.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs without being installed
from nanogpt.common import UserError, run
from nanogpt.muon import Muon
from nanogpt.ramp import Ramp
from nanogpt.ranks import Ranks
from nanogpt.shards import load_data
from train_gpt2 import (
    GPT, PRESETS, GPTConfig, get_lr, prepare_training, train_step, validate,
)

ROWS = Path(__file__).with_name("rows.jsonl")
# the best of the rates tried with seed 100, which no other run has: see README.md
ADAMW_RATE, MUON_RATE = 4e-3, 8e-3
BASE = replace(
    PRESETS["gpt2-124M"], n_layer=3, n_head=4, n_embd=64, B=32, T=128, total_batch_size=4096,
    max_steps=2442, warmup_steps=100, max_lr=ADAMW_RATE, shuffle=True, val_tokens=500_000,
    hellaswag="none", sample_tokens=0, device="cpu", products="plain")
AVERAGES = 0.99, 0.998  # of the weights, kept beside every run


def cosine(done, config):
    return get_lr(done, config.max_lr, config.final_lr, config.warmup_steps, config.max_steps)


@dataclass(frozen=True)
class Change:
    """What is different: settings, the schedule rate(done, config), and what is done to the network
    before training, to the optimizer before training, and before each update."""

    about: str
    settings: dict = field(default_factory=dict)
    rate: Callable | None = None
    net: Callable | None = None
    begin: Callable | None = None
    update: Callable | None = None


def zero_projections(net):
    for module in net.modules():
        if hasattr(module, "adds_to_residual"):
            nn.init.zeros_(module.weight)


def untie(net):
    """A second matrix of the same size reads; it is drawn like the first one."""
    net.transformer.wte.weight = nn.Parameter(torch.empty_like(net.lm_head.weight))
    nn.init.normal_(net.transformer.wte.weight, std=0.02)


class Apart(nn.Module):
    """c_attn as three matrices with the same weights, so that Muon treats each alone."""

    def __init__(self, c_attn):
        super().__init__()
        C = c_attn.in_features
        self.parts = nn.ModuleList(nn.Linear(C, C) for _ in "qkv")
        with torch.no_grad():
            for part, weight in zip(self.parts, c_attn.weight.split(C), strict=True):
                part.weight.copy_(weight)
                part.bias.zero_()

    def forward(self, x):
        return torch.cat([part(x) for part in self.parts], dim=-1)


def split_attention(net):
    for block in net.transformer.h:
        block.attn.c_attn = Apart(block.attn.c_attn)


def embeddings_rate(factor):
    """The rate of both embeddings, times `factor`."""
    def begin(t):
        adamw = getattr(t.optimizer, "parts", [t.optimizer])[-1]
        mine = {id(module.weight) for module in t.net.modules() if isinstance(module, nn.Embedding)}
        group, *_ = adamw.param_groups
        theirs = [p for p in group["params"] if id(p) in mine]
        group["params"] = [p for p in group["params"] if id(p) not in mine]
        adamw.add_param_group({**group, "params": theirs})

        def scale(*_):  # train_step sets the same rate for all groups
            adamw.param_groups[-1]["lr"] *= factor
        adamw.register_step_pre_hook(scale)
    return begin


def warm_up_momentum(t, done):
    """Muon's momentum, from 0.85 to 0.95 in the first 300 updates, as in modded-nanogpt."""
    for part in t.optimizer.parts:
        if isinstance(part, Muon):
            for group in part.param_groups:
                group["momentum"] = 0.85 + 0.1 * min(1, done / 300)


def warm_down(done, config):
    """Constant after the warm-up, then in the last 40% a line down to 0."""
    left = (config.max_steps - done) / (0.4 * config.max_steps)
    return config.max_lr * min(1, (done + 1) / config.warmup_steps, left)


CHANGES = {
    "base": Change("the video's recipe"),
    "muon": Change("Muon for the blocks' matrices", {"optimizer": "muon", "max_lr": MUON_RATE}),
    "zero": Change("c_proj starts at 0", net=zero_projections),
    "linear": Change("constant rate, then a line down to 0 in the last 40%", rate=warm_down),
    "cosine-0": Change("the cosine ends at 0, not at a tenth", {"min_lr": 0.0}),
    "embed-3": Change("embeddings: 3 times the rate", begin=embeddings_rate(3.0)),
    "embed-0.3": Change("embeddings: 0.3 times the rate", begin=embeddings_rate(0.3)),
    "no-decay": Change("no weight decay", {"weight_decay": 0.0}),
    "untied": Change("wte and lm_head are two matrices", net=untie),
    "ramp": Change("a quarter of the batch before 5% of the run, half before 15%",
                   {"batch_ramp": "0.25:0.05,0.5:0.15", "B": 8}),
    "momentum": Change("Muon's momentum starts at 0.85", update=warm_up_momentum),
    "apart": Change("q, k and v are three matrices", net=split_attention),
    # no runs of their own: averages of the weights of the runs that they are named after
    "ema-0.99": Change("validation with an average of the last 100 updates' weights"),
    "ema-0.998": Change("validation with an average of the last 500 updates' weights"),
}


CHANGES |= {f"rate-{rate}": Change(f"rate {rate}", {"max_lr": float(rate)})
            for rate in ("2e-3", "4e-3", "8e-3", "1.6e-2", "3.2e-2")}


class Silent:
    """A log for Ramp, which notes when the batch changes."""

    def note(self, **facts):
        pass


def train(name, seed, data):
    """Train base with these changes. Returns the row: losses in nats per token."""
    changes = [CHANGES[word] for word in name.split("+")]
    config = replace(BASE, data=data, seed=seed)
    for change in changes:
        config = replace(config, **change.settings)
    text, val = load_data(config, verify=False)
    torch.manual_seed(seed)
    net = GPT(GPTConfig(config.T, text.vocab_size, config.n_layer, config.n_head, config.n_embd))
    for change in changes:
        if change.net:
            change.net(net)
    ranks = Ranks(torch.device("cpu"))
    t = prepare_training(config, net, text, ranks, saved={})
    for change in changes:
        if change.begin:
            change.begin(t)
    rate = next((change.rate for change in changes[::-1] if change.rate), cosine)
    averages = {decay: [p.detach().clone() for p in net.parameters()] for decay in AVERAGES}
    ramp, began = Ramp(config, text), time.process_time()
    for _ in range(ramp.last_step({})):
        done = ramp.set_batch(t, Silent())
        for change in changes:
            if change.update:
                change.update(t, done)
        train_step(t, rate(done, config))
        t.step += 1
        for decay, kept in averages.items():
            torch._foreach_lerp_(kept, [p.detach() for p in net.parameters()],
                                 1 - min(decay, t.step / (t.step + 10)))
    row = {"name": name, "seed": seed, "tokens": t.loader.position, "updates": t.step,
           "parameters": sum(p.numel() for p in net.parameters()),
           "cpu_seconds": round(time.process_time() - began, 1)}
    row["val"] = validate(net, val, config.val_tokens, BASE.B, config.T, ranks)
    for decay, kept in averages.items():
        with torch.no_grad():
            for p, average in zip(net.parameters(), kept, strict=True):
                p.copy_(average)
        row[f"ema-{decay}"] = validate(net, val, config.val_tokens, BASE.B, config.T, ranks)
    return row


def read_rows():
    """{name: {seed: validation loss}}, with the averages as changes of their own."""
    found = {}
    for line in ROWS.read_text(encoding="utf-8").splitlines() if ROWS.exists() else []:
        row = json.loads(line)
        found.setdefault(row["name"], {})[row["seed"]] = row["val"]
        for decay in AVERAGES:
            word = f"ema-{decay}" if row["name"] == "base" else f"{row['name']}+ema-{decay}"
            found.setdefault(word, {})[row["seed"]] = row[f"ema-{decay}"]
    return found


def before(name):
    """What a name is compared with: all but its last change."""
    return name.rpartition("+")[0] or "base"


def learn_pairs(source, out):
    """Learn 1,024 byte pairs from a text, named as for fineweb.py; write a tokenizer.json."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from nanogpt.sources import find_source

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(find_source(source).texts(), trainers.BpeTrainer(
        vocab_size=1024, special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.save(out)


def compare(rows):
    """[(name, difference of each seed, p)], the best first: each name against what it changes.

    p: of a two-sided paired t-test of this name alone, not corrected for the number of names."""
    from scipy import stats

    table = []
    for name, losses in rows.items():
        others = rows.get(before(name), {})
        seeds = sorted(losses.keys() & others.keys())
        if name != "base" and len(seeds) > 1:
            ds = [losses[seed] - others[seed] for seed in seeds]
            table.append((name, ds, stats.ttest_1samp(ds, 0).pvalue))
    return sorted(table, key=lambda row: sum(row[1]) / len(row[1]))


def print_table():
    rows = {name: {seed: loss for seed, loss in losses.items() if seed != 100}
            for name, losses in read_rows().items()}
    averaged = ("base", "muon", "muon+apart", "muon+apart+linear")
    table = compare({name: losses for name, losses in rows.items()
                     if "ema" not in name or before(name) in averaged})
    print("| change | of | validation | difference | by seed | p |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, ds, p in [("base", [], None), *table]:
        mean = sum(rows[name].values()) / len(rows[name])
        cells = [name, before(name) if ds else "", f"{mean:.3f}"]
        cells += [f"{sum(ds) / len(ds):+.3f}", " ".join(f"{d:+.3f}" for d in ds),
                  f"{p:.2g}"] if ds else ["", "", ""]
        print(f"| {' | '.join(cells)} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    pairs = commands.add_parser("pairs")
    pairs.add_argument("source")
    pairs.add_argument("out")
    training = commands.add_parser("train")
    training.add_argument("data")
    training.add_argument("names", nargs="+")
    training.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    commands.add_parser("table")
    args = parser.parse_args()
    if args.command == "table":
        return print_table()
    if args.command == "pairs":
        return learn_pairs(args.source, args.out)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    for word in [word for name in args.names for word in name.split("+")]:
        if word not in CHANGES or word.startswith("ema"):
            raise UserError(f"no change {word}: choose among {', '.join(CHANGES)}")
    for seed in args.seeds:
        for name in args.names:
            if seed not in read_rows().get(name, {}):
                row = train(name, seed, args.data)
                with ROWS.open("a", encoding="utf-8") as file:
                    print(json.dumps(row), file=file)
                print(row, flush=True)


if __name__ == "__main__":
    run(main)
