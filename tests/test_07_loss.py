"""Cross-entropy in nats, the mean over all positions; ln(vocab_size) before any training."""

import math

import torch
from helpers import lively_gpt, small_gpt


def test_loss_at_the_start_is_that_of_guessing():
    """ln(vocab_size), and a little more: the mean, and not the sum, over all positions."""
    model = small_gpt(n_embd=64)
    idx = torch.randint(257, (8, 16))
    _, loss = model(idx, torch.randint(257, (8, 16)))
    # the first logits are small but not zero, which adds half their variance: 1/6 with PyTorch's
    # own initialization, where lm_head's weights are uniform within 1 / sqrt(n_embd)
    assert abs(loss.item() - math.log(257) - 1 / 6) < 0.2


def test_loss_is_the_mean_of_minus_log_p():
    model = lively_gpt().double()
    idx, targets = torch.randint(257, (4, 16)), torch.randint(257, (4, 16))
    logits, loss = model(idx, targets)
    p = logits.exp() / logits.exp().sum(dim=-1, keepdim=True)
    expected = -p.gather(2, targets[..., None]).log().mean()
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=0)
    assert logits.shape == (4, 16, 257)
