"""A GPT learns to add: it trains on half of the sums and is tested on the other half.

    python examples/adder.py                # a minute on two cores
    python examples/adder.py --seed 2

A sum is a row of characters, "48+75=321": the answer is written backwards, ones first, in the order
in which digits are added and carried. The loss counts the answer alone, because the targets before
it are -100. The exit status is 1 if a single unseen sum is wrong at the end.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without being installed
from train_gpt2 import GPT, GPTConfig, configure_optimizer, get_lr

DIGITS, CHARS = 2, "0123456789+="
ANSWER = DIGITS + 1  # digits of a sum


def all_sums():
    """Every sum of two numbers below 10^DIGITS, one a row: int64 (100^DIGITS, 3 DIGITS + 3)."""
    numbers = range(10**DIGITS)
    texts = [f"{a:0{DIGITS}}+{b:0{DIGITS}}=" + f"{a + b:0{ANSWER}}"[::-1]
             for a in numbers for b in numbers]
    return torch.tensor([[CHARS.index(c) for c in text] for text in texts])


def count_right(model, sums):
    """How many sums the network completes without a mistake in any digit."""
    model.eval()
    written = model.generate(sums[:, :-ANSWER], ANSWER, temperature=0)
    model.train()
    return (written == sums).all(dim=1).sum().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=800)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    sums = all_sums()
    seen, unseen = sums[torch.randperm(len(sums))].chunk(2)
    x, y = seen[:, :-1], seen[:, 1:].clone()
    y[:, :-ANSWER] = -100  # the question is given

    model = GPT(GPTConfig(block_size=x.size(1), vocab_size=len(CHARS), n_layer=2, n_head=4,
                          n_embd=128))
    optimizer = configure_optimizer(model, weight_decay=0.1, learning_rate=1e-2, kind="muon")
    print(f"{model.num_params():,} parameters, {len(seen):,} sums to learn from")
    right, began = 0, time.perf_counter()
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = get_lr(step, 1e-2, 0.0, 50, args.steps)
        batch = torch.randint(len(x), (256,))
        logits, loss = model(x[batch], y[batch])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 100 == 0 or step + 1 == args.steps:
            right = count_right(model, unseen)
            print(f"step {step + 1:4d} | loss {loss.item():.4f} | {right:,} of {len(unseen):,} "
                  f"unseen sums right | {time.perf_counter() - began:.0f} s", flush=True)
    print(f"score {right / len(unseen):.2%}")
    sys.exit(right != len(unseen))


if __name__ == "__main__":
    main()
