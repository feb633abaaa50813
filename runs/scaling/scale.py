"""Train networks of five sizes on up to five amounts of text, for a scaling law.

    python runs/scaling/scale.py --data SHARDS              # a row of JSON each in rows.jsonl
    python runs/scaling/scale.py --data SHARDS --rates      # which learning rate? in rates.jsonl

SHARDS is a folder that fineweb.py wrote, with at least 10.24M training tokens: none is seen twice.
A row that is there is not trained again, so a stopped script goes on where it was. --size 4x128
does that size alone; --threads as many as there are cores. Every run has a schedule of its own,
down to a tenth of the rate at its end: the loss at a third of a longer run would be too high.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs without being installed
from nanogpt.common import UserError, run
from nanogpt.cpu import keep_memory
from nanogpt.ranks import Ranks
from nanogpt.report import flops_per_token
from nanogpt.shards import load_data, validation_rows
from nanogpt.tokenizer import get_tokenizer
from train_gpt2 import GPT, GPTConfig, TrainConfig, get_lr, prepare_training, train_step, validate

HERE = Path(__file__).resolve().parent
STEPS = (250, 500, 1000, 2000, 4000)  # of 2,048 tokens
# layers x channels: most steps
SIZES = {"2x32": 4000, "2x48": 4000, "3x64": 4000, "3x96": 2000, "4x128": 2000}
RATE = 1e-2  # for Muon: no other in rates.jsonl is better by more than seeds differ
TRIED = {"muon": (5e-3, 1e-2, 2e-2), "adamw": (1e-3, 4e-3, 8e-3)}
RATES = [(size, 625, kind, rate, 1) for size in ("2x32", "3x96")
         for kind, rates in TRIED.items() for rate in rates]
# every size at every amount of text, short runs first; then two more seeds, to see the noise
GRID = [(size, steps, "muon", RATE, 1) for steps in STEPS for size, most in SIZES.items()
        if steps <= most] + [("2x48", 500, "muon", RATE, seed) for seed in (2, 3)]


def settings(data, size, steps, optimizer, rate, seed):
    n_layer, n_embd = map(int, size.split("x"))
    return TrainConfig(
        data=data, n_layer=n_layer, n_embd=n_embd, n_head=n_embd // 16, B=16, T=128,
        total_batch_size=16 * 128, max_steps=steps, warmup_steps=min(100, steps // 10),
        optimizer=optimizer, max_lr=rate, shuffle=True, seed=seed, val_tokens=400_000,
        device="cpu", dtype="float32")


def bytes_per_token(stream, n):
    """UTF-8 bytes of the text behind the first n tokens, for each of them."""
    enc, ids = get_tokenizer(stream.tokenizer), stream.read(0, n).tolist()
    return len(enc.decode_bytes([i for i in ids if i != enc.eot_token])) / n


def train(config):
    """Train one network. Returns its row."""
    text, val = load_data(config)
    if config.max_steps * config.total_batch_size > text.n_tokens:
        raise UserError(f"{config.data} has {text.n_tokens:,} training tokens: give at least "
                        f"{config.max_steps * config.total_batch_size:,}, so that none comes twice")
    config = replace(config, vocab_size=text.vocab_size)
    torch.manual_seed(config.seed)
    net = GPT(GPTConfig(config.T, text.vocab_size, config.n_layer, config.n_head, config.n_embd))
    ranks, began = Ranks(torch.device("cpu")), time.process_time()
    t = prepare_training(config, net, text, ranks, saved={})
    for step in range(config.max_steps):
        train_step(t, get_lr(step, config.max_lr, config.final_lr, config.warmup_steps,
                             config.max_steps))
    seconds = time.process_time() - began
    loss = validate(net, val, config.val_tokens, config.B, config.T, ranks)
    wte, wpe = net.transformer.wte.weight.numel(), net.transformer.wpe.weight.numel()
    D = config.max_steps * config.total_batch_size
    n_val = validation_rows(val, config.val_tokens, config.T) * config.T
    return {"N": net.num_params() - wte - wpe, "wte": wte, "D": D, "loss": round(loss, 5),
            "flops": flops_per_token(net, config.T) * D, "cpu_s": round(seconds, 1),
            "bytes_per_token": round(bytes_per_token(val, n_val), 5)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, help="a folder of shards that fineweb.py wrote")
    parser.add_argument("--rates", action="store_true", help="try learning rates instead")
    parser.add_argument("--size", choices=SIZES, nargs="+", default=SIZES, help="only these")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", help="the file of rows; default: beside this script")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_memory()
    path = Path(args.rows or HERE / ("rates.jsonl" if args.rates else "rows.jsonl"))
    names = "size", "steps", "optimizer", "rate", "seed"
    for point in RATES if args.rates else GRID:
        rows = map(json.loads, path.read_text().splitlines() if path.exists() else ())
        done = any(point == tuple(row[name] for name in names) for row in rows)
        if done or point[0] not in args.size:
            continue
        row = dict(zip(names, point, strict=True)) | train(settings(args.data, *point))
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    run(main)
