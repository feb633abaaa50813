"""Let a network write: it continues your text, and you read along.

    python sample.py log/laptop "The "                    # a run's newest checkpoint
    python sample.py log/laptop                           # asks for one beginning after another
    python sample.py gpt2-xl FILE:story.txt --n 4         # four texts, by OpenAI's GPT-2
    git log -3 | python sample.py gpt2 - --top-p 0.9      # continue what another program says
"""

# imported first, so that Ctrl-C ends the program without a traceback from here on
from nanogpt.common import UserError, parse, run

import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from nanogpt.cpu import quicken
from nanogpt.ranks import find_device
from nanogpt.sampling import (
    CONTROL, chooser, find_weights, read_prompt, readable, say_once, typed,
)
from nanogpt.tokenizer import cut, encoding, folder_key
from nanogpt.trial import try_products
from train_gpt2 import GPT


@dataclass
class Config:
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """a run's folder, a checkpoint, another GPT-2's folder, or gpt2 ... gpt2-xl"""
    prompt: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT")] = ""
    """a text, FILE:path, or - for standard input; without it, a terminal asks for prompts"""
    n: int = 1  # samples
    B: int = 32  # samples computed at once; halve it if memory runs out
    max_tokens: int = 500  # new tokens in a sample; an end-of-text token ends it sooner
    temperature: float = 0.8  # lower is less random, 0 takes the likeliest token
    top_k: int = 200  # choose among this many of the likeliest tokens; 0: all
    top_p: float = 1.0  # and of them among the fewest that together are this probable
    seed: int = 1337  # with the sample's number, it decides on the random numbers
    stop: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()  # end a sample before this
    best: bool = False  # a run's checkpoint with the lowest validation loss, not its newest
    device: str = "auto"  # cuda, mps, cpu, or auto: the first of them that is available
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the weights


def load(config, device):
    """The network that MODEL names, and its tokenizer. Raises UserError if they do not fit."""
    place, dtype = find_weights(Path(config.model), config.best), getattr(torch, config.dtype)
    enc = encoding(folder_key(place)) if place.is_dir() else None
    net = GPT.from_pretrained(place, enc and enc.n_vocab).eval().to(device, dtype)
    enc = enc or encoding("gpt2")
    if net.config.vocab_size != enc.n_vocab:
        raise UserError(f"{place} has {net.config.vocab_size} ids, and its tokenizer {enc.n_vocab}:"
                        " name a folder where they agree")
    if device.type == "cpu" and dtype == torch.float32:
        quicken(net, try_products(net, 128))
    return net, enc


def write(net, enc, config, prompt):
    """Print the samples as they come, one after the other, though B are computed at once."""
    began, n_tokens, size = time.perf_counter(), 0, net.config.block_size
    line = "\n" * (enc.eot_token is None and "\n" in getattr(enc, "characters", "\n"))
    parts = [enc.encode_ordinary(part) for part in cut(prompt or line)]
    ids = sum(parts, []) or [enc.eot_token or 0]  # without a prompt, a document or a line begins
    if len(ids) + config.max_tokens > size:
        say_once(f"past {size} tokens the window slides: it reads the last {size // 2} to {size}")
    for first in range(0, config.n, config.B):
        rows = {number: [] for number in range(config.n)[first : first + config.B]}
        idx = torch.tensor([ids[-size:]] * len(rows), device=net.lm_head.weight.device)
        tokens = net.next_tokens(idx, config.max_tokens, chooser(config, rows, idx.device),
                                 keep=size // 2 or 1)
        for number, row in rows.items():  # the one that you see
            print("---------------\n" * (number > 0), end="")
            shown, over = 0, False
            while not over:
                text, over = readable(enc, row, config.max_tokens, config.stop)
                piece = (prompt + text)[shown:].translate(CONTROL if sys.stdout.isatty() else {})
                print(piece, end="\n" * over, flush=True)
                shown += len(piece)
                if not over:
                    for each, id in zip(rows.values(), next(tokens)[:, 0].tolist(), strict=True):
                        each.append(id)
            n_tokens += len(row)
    if sys.stderr.isatty():
        rate = n_tokens / (time.perf_counter() - began)
        print(f"{n_tokens} tokens, {rate:.1f} tokens/s", file=sys.stderr)


def main():
    config = parse(Config(tyro.MISSING), sys.argv[1:], "sample.py", __doc__)
    for name, least in dict(n=1, B=1, max_tokens=1, temperature=0, top_k=0).items():
        if not (value := getattr(config, name)) >= least:
            raise UserError(f"--{name.replace('_', '-')} {value}: give {least} or more")
    if not 0 < config.top_p <= 1:
        raise UserError(f"--top-p {config.top_p}: give more than 0, and 1 at most")
    if "" in config.stop:
        raise UserError("--stop '': give the text that a sample is to end before")
    asking = not config.prompt and sys.stdin and sys.stdin.isatty() and sys.stdout.isatty()
    prompts = typed() if asking else [read_prompt(config.prompt)]
    net, enc = load(config, find_device(config.device))
    for prompt in prompts:
        try:
            write(net, enc, config, prompt)
        except (KeyboardInterrupt, UserError) as error:
            if not asking:
                raise
            print(f"\n{error}", file=sys.stderr)  # this text ends, and the next one is asked for


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # when its reader leaves, it ends, as other tools do
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    run(main)
