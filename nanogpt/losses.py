"""The loss of many positions without all their logits at once."""

import torch
from torch import nn
from torch.nn import functional as F


def loss_in_parts(x, weight, targets, rows):
    """Mean loss in nats of x (B, T, C) with the vocabulary's matrix `weight` (V, C) for targets
    (B, T), with logits for at most `rows` positions at a time: the backward pass computes each
    part's logits again."""
    dtype, kind = weight.dtype, x.device.type
    if torch.is_autocast_enabled(kind):  # autocast does not cover linear_cross_entropy
        x, weight = (t.to(torch.get_autocast_dtype(kind)) for t in (x, weight))
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=rows)
    losses = F.linear_cross_entropy(x.flatten(0, 1), weight, targets.flatten(), reduction="none",
                                    options=options)
    return losses.sum(dtype=dtype) / (targets != -100).sum()  # not in bf16
