"""How long a training step takes: by a card's data sheet, or measured on this machine."""

import math
import time
from dataclasses import dataclass, replace

import torch

from nanogpt.memory import Memory, linux_bytes
from nanogpt.ranks import on_master
from nanogpt.report import flops_per_token
from nanogpt.shards import Shard, TokenStream

# The video's A100 took 93 ms for 16 rows of 1,024 tokens (step-47): 48% of its 312 TFLOPS
SHARE_OF_PEAK = 0.48


@dataclass(frozen=True)
class Speed:
    """Seconds of a training step, and where they come from. process: bytes of a process at its
    largest; 0 if unknown."""

    seconds: float
    source: str
    process: float = 0.0


def published_speed(config, net, world, card):
    """Of a run that uses as much of its cards' peak as the video's did."""
    rate = SHARE_OF_PEAK * 1e12 * card.tflops * world
    seconds = flops_per_token(net, config.T) * config.total_batch_size / rate
    return Speed(seconds, f"calculated from {SHARE_OF_PEAK:.0%} of {card.tflops} TFLOPS, the "
                          "published peak")


def measured_speed(config, net, place, ranks, training):
    """From steps of one and of three micro-steps, here. Its seconds are 0 where they do not fit."""
    import matplotlib.backends.backend_agg  # noqa: F401 (a run draws curves)
    import matplotlib.figure  # noqa: F401

    on_cpu, before = ranks.device.type == "cpu", linux_bytes("self/status", "VmRSS")
    most = (1e12 if on_cpu else 1e15) / flops_per_token(net, config.T)  # tokens in some seconds
    B, T = max(1, min(config.B, int(most / config.T))), max(1, min(config.T, int(most)))
    small, n = replace(config, B=B, T=T), ranks.ddp_world_size
    need = Memory(small, net, n, place.e, on_cpu).peak()
    if need > place.room:
        return Speed(0, f"not measured: {B} x {T} tokens need {need / 1e9:.3g} GB here, and there "
                        f"is room for {place.room / 1e9:.3g}. Try --card, or --recompute")
    # a shorter row has fewer FLOPs, so a step is that many more of them
    micro_steps = (config.total_batch_size * flops_per_token(net, config.T)
                   / (B * T * place.world * flops_per_token(net, T)))
    one, more = time_steps(small, ranks, min(3, math.ceil(micro_steps)), *training)
    source = f"measured: {n} x {B} x {T} tokens in a micro-step"
    if place.world != n:
        source += f"; what {place.world} ranks exchange is not measured"
    grew = (linux_bytes("self/status", "VmHWM") - before) * Memory(config, net, n).peak() / need
    process = process_bytes(config, net, before, grew) * (on_cpu and before > 0)
    return Speed(one + (micro_steps - 1) * more, source, process)


def time_steps(config, ranks, most, init_model, prepare_training, train_step):
    """(seconds of a training step with one micro-step, seconds of each more, tried with `most`)"""
    n, took = config.B * config.T * ranks.ddp_world_size, []
    numbers = (torch.arange(n + 1) % config.vocab_size).numpy
    stream = TokenStream([Shard("numbers", n + 1, numbers)], config.vocab_size)
    config = replace(config, total_batch_size=n, batch_ramp="")
    t = prepare_training(config, init_model(config), stream, ranks, {})
    while on_master(ranks, lambda: len(took) < 6 or len(took) < 42 and sum(took) < 15):
        for t.grad_accum_steps in 1, most:  # in turn, so that a busy moment affects both
            began = time.perf_counter()
            train_step(t, 0.0)
            took.append(time.perf_counter() - began)
    one, many = torch.tensor(took).view(-1, 2)[1:].quantile(0.5, dim=0).tolist()  # once warm
    return one, (many - one) / max(1, most - 1)


def process_bytes(config, net, before, grew):
    """Bytes of a process on a CPU that had `before` bytes, and whose steps need `grew` more. It
    copies what a checkpoint holds, and the writer transposes matrices."""
    alone = Memory(config, net)
    copy = alone.all + alone.moments()
    goes_on = not config.max_steps or config.max_steps > config.checkpoint_every
    return before + net.config.n_layer * alone.block + max(grew + copy * goes_on, 2 * copy)
