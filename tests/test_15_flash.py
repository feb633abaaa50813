"""The fused attention equals the written-out one, and keeps no mask."""

import math

import torch
from helpers import lively_gpt, small_gpt

from train_gpt2 import CausalSelfAttention, GPTConfig


def written_out(attn, x):
    """softmax(q k^T / sqrt(hs) + mask) v, as the video first writes it, in float64."""
    B, T, C = x.size()
    q, k, v = attn.c_attn(x).split(C, dim=2)
    q, k, v = (t.view(B, T, attn.n_head, C // attn.n_head).transpose(1, 2) for t in (q, k, v))
    scores = q @ k.transpose(-2, -1) / math.sqrt(k.size(-1))
    scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), float("-inf"))
    return attn.c_proj((torch.softmax(scores, dim=-1) @ v).transpose(1, 2).reshape(B, T, C))


def test_equals_the_written_out_attention():
    torch.manual_seed(0)
    attn = CausalSelfAttention(GPTConfig(16, 257, 2, 4, 32))
    x = torch.randn(3, 16, 32)
    expected = written_out(attn.double(), x.double())
    torch.testing.assert_close(attn.float()(x), expected.float(), atol=1e-6, rtol=0)


def test_no_mask_is_stored():
    assert list(small_gpt().buffers()) == []


def test_no_matrix_of_T_by_T_is_kept_for_the_backward_pass():
    model, T, kept = lively_gpt(block_size=64), 64, []
    with torch.autograd.graph.saved_tensors_hooks(
            lambda t: (kept.append(t.shape), t)[1], lambda t: t):
        model(torch.zeros(1, T, dtype=torch.long))
    assert kept and not any(shape[-2:] == (T, T) for shape in kept if len(shape) >= 2)
