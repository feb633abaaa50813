"""What a note of --health costs, in seconds of the CPU, and its share of every 100 steps.

    python runs/health/cost.py > runs/health/cost.txt

One process and one thread. Steps with a note and without take turns; the medians of ten each.
"""

import sys
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402
import torch  # noqa: E402

import train_gpt2  # noqa: E402
from nanogpt.health import Health  # noqa: E402
from nanogpt.ranks import Ranks  # noqa: E402
from nanogpt.shards import Shard, TokenStream  # noqa: E402

torch.set_num_threads(1)
# layers, heads, channels, ids; rows, tokens in a row, micro-steps
CASES = {"laptop": (2, 4, 128, 257, 16, 128, 1), "shakespeare-char-cpu": (4, 4, 128, 65, 12, 64, 1),
         "10.8M": (6, 6, 384, 65, 8, 256, 1)}


def main():
    quiet = Health(), Health(SimpleNamespace(health=1), SimpleNamespace(note=lambda **facts: None))
    for name, (L, nh, C, V, B, T, micro) in CASES.items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        net = train_gpt2.GPT(train_gpt2.GPTConfig(T, V, L, nh, C))
        tokens = (np.arange(10**6) * 31 % V).astype(np.uint16)
        stream = TokenStream([Shard("numbers", len(tokens), lambda tokens=tokens: tokens)], V)
        t = train_gpt2.Training(net, net, train_gpt2.configure_optimizer(net, 0.1, 1e-3),
                                torch.amp.GradScaler("cpu", enabled=False),
                                train_gpt2.DataLoader(stream, B, T), micro,
                                Ranks(torch.device("cpu")))
        took = [], []
        for i in range(2 * 11):
            t.health = quiet[i % 2]
            began = time.process_time()
            train_gpt2.train_step(t, 1e-3)
            took[i % 2].append(time.process_time() - began)
        plain, noted = (sorted(times[1:])[len(times) // 2 - 1] for times in took)
        print(f"{name}: a step of {B * T * micro:,} tokens {plain:.3f} s, "
              f"with a note {noted:.3f} s: "
              f"{(noted - plain) / plain / 100:.2%} of every 100 steps", flush=True)


if __name__ == "__main__":
    main()
