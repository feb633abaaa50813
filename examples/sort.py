"""A GPT learns to sort six digits of three kinds: it trains on half of the sequences and is tested
on the other half.

    python examples/sort.py                 # a few seconds on two cores
    python examples/sort.py --seed 2

A row is a sequence, a mark, and the same digits sorted: 2 0 1 0 2 1 | 0 0 1 1 2 2. The loss counts
the sorted digits alone, because the targets before them are -100. The exit status is 1 if a single
unseen sequence is sorted wrongly at the end.
"""

import argparse
import itertools
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without being installed
from train_gpt2 import GPT, GPTConfig, configure_optimizer, get_lr

LENGTH, KINDS = 6, 3


def all_sequences():
    """Every sequence, the mark, and its digits sorted: int64 (KINDS^LENGTH, 2 LENGTH + 1)."""
    given = torch.tensor(list(itertools.product(range(KINDS), repeat=LENGTH)))
    mark = torch.full((len(given), 1), KINDS)
    return torch.cat((given, mark, given.sort(dim=1).values), dim=1)


def count_right(model, rows):
    """How many sequences the network sorts without a mistake."""
    model.eval()
    written = model.generate(rows[:, :-LENGTH], LENGTH, temperature=0)
    model.train()
    return (written == rows).all(dim=1).sum().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    rows = all_sequences()[torch.randperm(KINDS**LENGTH)]
    # training has the sequences of one kind: only after 2 2 2 2 2 2 does an answer begin with 2
    same = (rows[:, :LENGTH] == rows[:, :1]).all(dim=1)
    seen, unseen = torch.cat((rows[same], rows[~same])).chunk(2)
    x, y = seen[:, :-1], seen[:, 1:].clone()
    y[:, :-LENGTH] = -100  # what is given

    model = GPT(GPTConfig(block_size=x.size(1), vocab_size=KINDS + 1, n_layer=2, n_head=4,
                          n_embd=64))
    optimizer = configure_optimizer(model, weight_decay=0.1, learning_rate=1e-2, kind="muon")
    print(f"{model.num_params():,} parameters, {len(seen)} sequences to learn from")
    right, began = 0, time.perf_counter()
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = get_lr(step, 1e-2, 0.0, 50, args.steps)
        batch = torch.randint(len(x), (64,))
        logits, loss = model(x[batch], y[batch])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 100 == 0 or step + 1 == args.steps:
            right = count_right(model, unseen)
            print(f"step {step + 1:4d} | loss {loss.item():.4f} | {right} of {len(unseen)} "
                  f"unseen sequences right | {time.perf_counter() - began:.0f} s", flush=True)
    print(f"score {right / len(unseen):.2%}")
    sys.exit(right != len(unseen))


if __name__ == "__main__":
    main()
