"""Packed HellaSwag and cached sampling against the plain ways, on a checkpoint of train_gpt2.py.

    python runs/fast/equal.py CHECKPOINT HELLASWAG.jsonl [LIMIT]

Prints how many choices of all examples differ, and how many of 200 greedy continuations.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

import hellaswag
from nanogpt.tokenizer import get_tokenizer, tokenizer_name
from train_gpt2 import GPT


def choices(model, encoded, score, size):
    """[(acc's choice, acc_norm's choice)] of every example, in the order of `encoded`."""
    found = {}
    for batch in hellaswag.batches(encoded, size=size):
        sums, means = score(model, batch, torch.device("cpu"))
        found |= {id(example): pair for example, *pair in
                  zip(batch, sums.argmin(1).tolist(), means.argmin(1).tolist(), strict=True)}
    return [found[id(example)] for example in encoded]


@torch.no_grad()
def whole_each_time(model, idx, n):
    for _ in range(n):
        logits = model(idx[:, -model.config.block_size :])[0]
        idx = torch.cat((idx, logits[:, -1].argmax(dim=-1, keepdim=True)), dim=1)
    return idx


def main(checkpoint, examples, limit=None):
    model = GPT.from_pretrained(checkpoint).eval()
    enc = get_tokenizer(tokenizer_name(model.config.vocab_size))
    encoded = hellaswag.encode(hellaswag.load_examples(examples, limit and int(limit)), enc,
                               model.config.block_size)
    found = {}
    for name, score, size in (("in rows", hellaswag.score, hellaswag.in_rows),
                              ("packed", hellaswag.score_packed, hellaswag.in_packs)):
        t0 = time.perf_counter()
        found[name] = choices(model, encoded, score, size)
        right = [sum(pair[i] == example.label for pair, example in
                     zip(found[name], encoded, strict=True)) for i in (0, 1)]
        print(f"{name}: acc {right[0]} and acc_norm {right[1]} of {len(encoded)} right, "
              f"{time.perf_counter() - t0:.0f} s")
    differ = sum(a != b for a, b in zip(*found.values(), strict=True))
    print(f"examples in four packed rows: {sum(len(hellaswag.pack(e)) == 4 for e in encoded)}")
    print(f"choices that differ: {differ} of {len(encoded)}")

    generator, differ = torch.Generator().manual_seed(0), 0
    text = torch.tensor(enc.encode_ordinary(" ".join(e["ctx"] for e in
                                                     hellaswag.load_examples(examples, 500))))
    for length in range(1, 201):
        at = int(torch.randint(len(text) - length, (1,), generator=generator))
        idx = text[at : at + length][None]
        differ += not torch.equal(model.generate(idx, 40, temperature=0),
                                  whole_each_time(model, idx, 40))
    print(f"greedy continuations by 40 tokens that differ, prompts of 1 to 200 tokens, "
          f"{model.config.block_size} positions: {differ} of 200")


if __name__ == "__main__":
    main(*sys.argv[1:])
