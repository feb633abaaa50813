"""What several tests need: small networks, shards, and the program as its users start it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import train_gpt2

ROOT = Path(__file__).resolve().parent.parent
CPU = train_gpt2.Ranks(torch.device("cpu"))


def small_gpt(seed=0, block_size=16, vocab_size=257, n_layer=2, n_head=2, n_embd=32):
    """A network of a few thousand parameters, random but the same every time."""
    torch.manual_seed(seed)
    config = train_gpt2.GPTConfig(block_size, vocab_size, n_layer, n_head, n_embd)
    return train_gpt2.GPT(config)


def lively_gpt(**sizes):
    """small_gpt with weights five times as large: its logits differ enough to compare."""
    model = small_gpt(**sizes)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(5).add_(0.01 * torch.randn_like(p))
    return model


def no_scaler():
    return torch.amp.GradScaler("cpu", enabled=False)


def stream_of(tokens, vocab_size=257, seed=None, parts=1):
    """A TokenStream over tokens in memory, cut into `parts` shards."""
    arrays = np.array_split(np.asarray(tokens, dtype=np.uint16), parts)
    shards = [train_gpt2.Shard(f"part {i}", len(a), lambda a=a: a) for i, a in enumerate(arrays)]
    return train_gpt2.TokenStream(shards, vocab_size, seed)


def text_tokens(n, seed=0):
    """`n` byte tokens that a network can learn something from: words of a small set, documents."""
    rng = np.random.default_rng(seed)
    words = [bytes(rng.integers(97, 123, size=rng.integers(2, 7)).tolist()) for _ in range(30)]
    tokens = []
    while len(tokens) < n:
        tokens.append(256)
        for _ in range(rng.integers(5, 60)):
            tokens.extend(words[min(29, int(rng.exponential(6)))] + b" ")
    return np.array(tokens[:n], dtype=np.uint16)


def write_shards(folder, n_train=40_000, n_val=6_000, shards=2, tokenizer="bytes", manifest=True):
    """A folder of byte shards as fineweb.py writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = [text_tokens(n_val, seed=1), *np.array_split(text_tokens(n_train, seed=2), shards)]
    listed = []
    for i, array in enumerate(arrays):
        name = f"text_{'train' if i else 'val'}_{i:06d}.npy"
        np.save(folder / name, array)
        listed.append({"file": name, "tokens": len(array), "documents": 1})
    if manifest:
        facts = {"tokenizer": tokenizer, "vocab_size": 257, "shards": listed}
        (folder / "manifest.json").write_text(json.dumps(facts), encoding="utf-8")
    return folder


# A network that trains in seconds, as flags.
TINY = ["--vocab-size", "257", "--n-layer", "2", "--n-head", "2", "--n-embd", "32", "--B", "8",
        "--T", "32", "--total-batch-size", "512", "--warmup-steps", "2", "--max-lr", "3e-3",
        "--hellaswag", "none", "--sample-tokens", "8", "--device", "cpu"]


def start(script, *args, ranks=None, env=None, timeout=300):
    """Run a script of the project as its user would. Returns the CompletedProcess, text."""
    command = [sys.executable]
    if ranks:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return subprocess.run([*command, str(ROOT / script), *map(str, args)], cwd=ROOT,
                          env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
                          capture_output=True, text=True, encoding="utf-8", timeout=timeout)


def gpt2_vocabulary_missing():
    """A reason to skip, or an empty string: GPT-2's vocabulary is not downloaded by tests."""
    import tiktoken.load

    def no_network(url):
        raise OSError("tests do not download")

    original, tiktoken.load.read_file = tiktoken.load.read_file, no_network
    try:
        tiktoken.get_encoding("gpt2")
        return ""
    except OSError:
        return "GPT-2's vocabulary is not cached (set TIKTOKEN_CACHE_DIR)"
    finally:
        tiktoken.load.read_file = original
