"""Many micro-batches make the gradient of one big batch."""

import pytest
import torch
from helpers import CPU, lively_gpt, no_scaler, stream_of, text_tokens

from train_gpt2 import DataLoader, accumulate_gradients


def gradient(B, steps, double=True):
    model = lively_gpt()
    if double:
        model = model.double()
    loader = DataLoader(stream_of(text_tokens(5000)), B, 16)
    loss = accumulate_gradients(model, loader, steps, CPU, torch.float32, no_scaler())
    return loss, torch.cat([p.grad.flatten() for p in model.parameters()]), loader.position


@pytest.mark.parametrize("B, steps", [(4, 2), (2, 4), (1, 8)])
def test_equals_one_big_batch(B, steps):
    loss, grad, position = gradient(B, steps)
    expected_loss, expected_grad, expected_position = gradient(8, 1)
    # losses add up in fp32, gradients in float64 here: so the arithmetic itself is compared
    torch.testing.assert_close(loss, expected_loss, atol=1e-6, rtol=0)
    torch.testing.assert_close(grad, expected_grad, atol=1e-12, rtol=0)
    assert position == expected_position == 128


def test_equals_one_big_batch_in_fp32():
    _, grad, _ = gradient(2, 4, double=False)
    _, expected, _ = gradient(8, 1, double=False)
    torch.testing.assert_close(grad, expected, atol=1e-6, rtol=0)


def test_loss_scale_is_taken_out_again():
    """fp16's GradScaler: after unscale_ the gradient is the plain one."""
    model = lively_gpt()
    loader = DataLoader(stream_of(text_tokens(5000)), 2, 16)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    accumulate_gradients(model, loader, 4, CPU, torch.float32, scaler)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler.unscale_(optimizer)
    grad = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(grad, gradient(8, 1, double=False)[1], atol=1e-6, rtol=0)
