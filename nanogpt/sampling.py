"""Samples: of which weights, from which text, by which choices, and how much can be shown."""

import contextlib
import functools
import os
import random
import sys
from pathlib import Path

import torch

from nanogpt.checkpoints import find_checkpoints
from nanogpt.common import UserError
from nanogpt.report import read_log

# characters that could change a terminal's colors, or worse
CONTROL = dict.fromkeys([*range(9), 11, 12, *range(14, 32), *range(127, 160)], "\ufffd")
say_once = functools.cache(lambda note: print(note, file=sys.stderr))


def find_weights(place, best=False):
    """The folder of a run's newest checkpoint, or its best one; any other place as it is."""
    if not best and (not place.is_dir() or (place / "config.json").exists()):
        return place
    found = dict(find_checkpoints(place)) if place.is_dir() else {}
    if best and found:  # those that the log has a validation loss for, by that loss
        losses = dict(zip(*read_log(place / "log.txt")["val"], strict=True))
        found = {losses[step]: found[step] for step in found if step in losses}
    if not found:
        raise UserError(f"no checkpoint{' with a validation loss' * best} in {place}: name the "
                        "folder of a run, or one with GPT-2's config.json and model.safetensors")
    return found[min(found) if best else max(found)]


def newest(name):
    """The newest checkpoint of a run's folder; any other name of weights as it is. UserError."""
    return str(find_weights(Path(name))) if os.path.isdir(name) else name


def read_prompt(prompt):
    """A prompt's text: itself, a FILE:path's, or standard input's for "-". Raises UserError."""
    try:
        if prompt == "-":
            return open(0, encoding="utf-8", closefd=False).read()
        if prompt.startswith("FILE:"):
            return Path(prompt[5:]).read_text(encoding="utf-8")
        return prompt.encode("utf-8", "surrogateescape").decode("utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the prompt {prompt[:40]!r} ({error}): give text in UTF-8, "
                        "FILE:path, or - for standard input") from None


def typed():
    """Prompts that are typed on the terminal, until Ctrl-D."""
    with contextlib.suppress(ImportError):  # Windows has none
        import readline  # noqa: F401 (arrow keys and a history for input())
    with contextlib.suppress(EOFError):
        while True:
            yield input("prompt: ")
    print()


def chooser(config, numbers, device):
    """GPT.next_tokens' `choose` for the samples `numbers`, each with its own random numbers.

    config has temperature (0: take the likeliest), top_k (0: all), top_p (1: all), and seed.
    """
    generators = [torch.Generator(device).manual_seed(
        random.Random(f"{config.seed} {number}").getrandbits(32)) for number in numbers]

    def choose(logits):  # (B, V) -> (B, 1)
        if config.temperature < 1e-6:  # below, the division overflows
            return logits.argmax(dim=-1, keepdim=True)
        V = logits.size(1)
        top, ids = (logits / config.temperature).topk(min(config.top_k or V, V))  # (B, k)
        probs = top.softmax(dim=-1)
        probs[probs.cumsum(dim=-1) - probs >= config.top_p] = 0  # those before them are enough
        # probs / -log(u) is largest at i with probability probs[i]. Every id has its own u, in any
        # batch: rounding differs there, and may swap two ranks, but rarely changes the largest
        u = torch.stack([torch.rand(V, generator=g, device=device) for g in generators])
        return ids.gather(1, (probs / -u.gather(1, ids).log()).argmax(dim=-1, keepdim=True))

    return choose


def readable(enc, ids, max_tokens, stops=()):
    """(text, over) of a sample's ids. It is over at max_tokens, at end-of-text, and before one of
    `stops`; until then, what later ids may make a character or a stop is left out."""
    over = len(ids) == max_tokens
    if enc.eot_token in ids:
        ids, over = ids[: ids.index(enc.eot_token)], True
    text = enc.decode_bytes(ids).decode("utf-8", "replace").rstrip("\ufffd")  # half a character
    if found := [text.index(stop) for stop in stops if stop in text]:
        text, over = text[: min(found)], True
    begun = [n for stop in stops for n in range(len(stop)) if text.endswith(stop[:n])]
    return text if over else text[: len(text) - max(begun, default=0)], over
