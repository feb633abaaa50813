"""Before a run: does it fit, how long will it take, what will it cost?"""

import contextlib
import math
import os
from dataclasses import dataclass, replace

import torch

import fineweb
from nanogpt.cards import Card, find_card
from nanogpt.common import UserError
from nanogpt.drift import check_settings
from nanogpt.memory import Memory, linux_bytes
from nanogpt.own_text import folder_beside, is_text, own_tokenizer
from nanogpt.ramp import Ramp, check_ramp, read_ramp
from nanogpt.ranks import on_master
from nanogpt.report import print_table
from nanogpt.settings import check_limits
from nanogpt.shards import load_data
from nanogpt.sources import estimate_tokens, find_source
from nanogpt.speed import measured_speed, published_speed
from nanogpt.tokenizer import TOKENIZERS, get_tokenizer

# other ways to train the same network, each a line of the plan
VARIANTS = {"as given": {}, "--recompute": {"recompute": True},
            "--loss-rows 1024": {"loss_rows": 1024}, "--shard optimizer": {"shard": "optimizer"},
            "--shard model": {"shard": "model"}}


@dataclass(frozen=True)
class Place:
    """Where a run is planned: on `world` cards of a kind, or here, where `card` is None. Tensors of
    a rank may take `room` bytes. e: bytes of a number that comes out of a matrix product."""

    world: int
    room: float
    e: int
    on_cpu: bool
    card: Card | None = None

    def memory(self, config, net):
        return Memory(config, net, self.world, self.e, self.on_cpu)

    def largest_batch(self, config, net):
        """The largest B that divides the total batch and fits, up to 65,536; 0 if none does."""
        parts = [int(share * config.total_batch_size) for share, _ in read_ramp(config.batch_ramp)]
        rows = math.gcd(config.total_batch_size, *parts) // (config.T * self.world)
        return max((B for B in range(1, min(rows, 2**16) + 1) if not rows % B and
                    self.memory(replace(config, B=B), net).peak() <= self.room), default=0)


def find_place(config, ranks):
    """The Place that --card and --ranks name; without them, this machine."""
    world = config.ranks or ranks.ddp_world_size
    if config.card not in ("", "cpu"):
        card = find_card(config.card)
        return Place(world, 0.9 * 2**30 * card.memory, 2, False, card)
    on_cpu = ranks.device.type == "cpu"
    return Place(world, free_memory(ranks.device), ranks.dtype.itemsize, on_cpu)


def free_memory(device):
    """Bytes that the tensors of a process may take on this machine now."""
    if device.type == "cuda":
        return 0.9 * torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return 0.9 * torch.mps.recommended_max_memory()
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1)
    # a heap has holes: up to half as much again as the tensors in it
    return 0.6 * linux_bytes("meminfo", "MemAvailable", 8e9) / processes


def choose_batch(config, net, stream, ranks):
    """config.B; of --B auto the largest that fits, the same on every rank. Raises UserError."""
    check_settings(config, stream, ranks)  # or one rank chooses, and waits for those that do not
    if config.B != "auto":
        return config.B
    here = find_place(replace(config, card="", ranks=None), ranks)
    return on_master(ranks, lambda: here.largest_batch(config, net) or 1)


@dataclass(frozen=True)
class Tokens:
    """How many there are, and where the numbers come from."""

    n_tokens: int
    validation: int
    vocab_size: int
    source: str


def find_tokens(config):
    """The Tokens of --data; without shards, those of the sample that fineweb.py makes."""
    data = config.data
    if text := is_text(data):
        config = replace(config, data=str(folder_beside(data, own_tokenizer(config))))
    with contextlib.suppress(ValueError, OSError):
        train, val = load_data(config, verify=False)
        return Tokens(train.n_tokens, val.n_tokens, train.vocab_size, f"measured in {config.data}")
    if text:
        source, key = find_source(data), own_tokenizer(config)
        if key not in TOKENIZERS:  # counts the characters of chars
            key = fineweb.find_key(fineweb.Config(source=data, tokenizer=key), source)
        n, n_ids = estimate_tokens(source, key), TOKENIZERS.get(key) or get_tokenizer(key).n_vocab
        return Tokens(n - n // 10, n // 10, n_ids, f"estimated from {data}")
    vocab_size = config.vocab_size or TOKENIZERS.get(config.tokenizer, TOKENIZERS["gpt2"])
    return Tokens(9_854_000_000, 100_000_000, vocab_size,
                  f"published for sample-10BT, since {config.data} has none")


def check_config(config, ddp_world_size):
    """Raises UserError for settings that no run can have. Returns grad_accum_steps; of --B auto,
    those of B = 1."""
    check_limits(config)
    config = replace(config, B=1) if config.B == "auto" else config
    at_once = config.B * config.T * ddp_world_size
    if config.total_batch_size % at_once:
        nearest = max(1, round(config.total_batch_size / at_once)) * at_once
        raise UserError(f"--total-batch-size {config.total_batch_size} is not a multiple of B x T "
                        f"x ranks = {config.B} x {config.T} x {ddp_world_size} = {at_once}: "
                        f"try {nearest}, or another --B")
    check_ramp(config, at_once)
    return config.total_batch_size // at_once


def print_plan(config, ranks, *training):
    """Print what a run needs, and for each figure whether it is measured, calculated or published.
    training: the program's init_model(), prepare_training(), train_step()."""
    if config.card == "cpu":
        ranks = replace(ranks, device=torch.device("cpu"), dtype=torch.float32)
    place, tokens = on_master(ranks, lambda: find_place(config, ranks)), find_tokens(config)
    check_config(config, place.world)
    config = replace(config, vocab_size=tokens.vocab_size)
    with torch.device("meta"):
        net = training[0](config)
    if config.B == "auto":
        config = replace(config, B=place.largest_batch(config, net) or 1)
    if ranks.master_process:
        print_table(memory_rows(config, net, place))
        print(end="", flush=True)  # to measure may take a minute
    speed = (published_speed(config, net, place.world, place.card) if place.card else
             measured_speed(config, net, place, ranks, training))
    rows = time_rows(config, place, tokens, speed) if speed.seconds else [("speed", speed.source)]
    if ranks.master_process:
        print_table([*rows, disk_row(config, net, tokens)])


def memory_rows(config, net, place):
    """A line for each variant: the bytes of each part, and the largest B."""
    parts = place.memory(config, net).parts()
    unit, size = ("GB", 1e9) if parts["peak"] >= 1e9 else ("MB", 1e6)
    widths = {part: max(7, len(part)) for part in parts}
    rows = [("memory", f"{unit} on each of {place.world} ranks, with --B {config.B}: calculated"),
            ("", " " * 18 + "  ".join(f"{part:>{widths[part]}}" for part in parts) + "  largest B")]
    for name, change in VARIANTS.items():
        changed = replace(config, **change)
        parts = place.memory(changed, net).parts()
        cells = [f"{parts[part] / size:{widths[part]}.3g}" for part in parts]
        cells += [f"{place.largest_batch(changed, net) or 'none':>9}"]
        rows.append(("", f"{name:18s}{'  '.join(cells)}"))
    how = "90% of the card's: published" if place.card else "free now, less a reserve: measured"
    return [*rows, ("room", f"{place.room / 1e9:.3g} GB on each rank, {how}")]


def time_rows(config, place, tokens, speed):
    """Speed, hours, energy and price, each with its source."""
    ramp, total, world = Ramp(config, tokens), config.total_batch_size, place.world
    evaluations = -(-(steps := ramp.last_step({})) // config.eval_every) + 1
    read = evaluations * min(config.val_tokens, tokens.validation)  # forward: a third of the work
    hours = speed.seconds / 3600 * (ramp.n + read / total / 3)
    rows = [("process", f"{speed.process / 1e9:.3g} GB of memory at most: measured")]
    energy, price = "unknown: give --card", "unknown: give --price, dollars for a rank and an hour"
    if place.card:
        energy = f"{hours * world * place.card.watts / 1000:,.3g} kWh: calculated from {world} x " \
                 f"{place.card.watts} W, published"
    if config.price is not None:
        price = f"${hours * world * config.price:,.2f}: calculated from --price"
    return rows * bool(speed.process) + [
        ("speed", f"{total / speed.seconds:,.0f} tok/s, {speed.seconds:.3g} s a step: "
                  f"{speed.source}"),
        ("time", f"{hours:,.3g} hours for {steps:,} steps and {evaluations:,} validations: "
                 "calculated"),
        ("energy", energy), ("price", price)]


def disk_row(config, net, tokens):
    """Shards and checkpoints."""
    steps, alone = Ramp(config, tokens).last_step({}), Memory(config, net)
    each, kept = alone.all + alone.moments(), -(-steps // config.checkpoint_every)
    if config.keep:
        kept = min(kept, config.keep + steps // (config.keep_every or steps + 1))
    return ("disk", f"{2e-9 * (tokens.n_tokens + tokens.validation):.3g} GB of shards, "
                    f"{tokens.source}; checkpoints: {kept} x {each / 1e9:.3g} GB, calculated")
