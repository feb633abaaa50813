"""Many micro-batches make the gradient of one big batch."""

import pytest
import torch
from helpers import lively_gpt, stream_of, text_tokens, training

from nanogpt.common import UserError, run
from train_gpt2 import DataLoader, accumulate_gradients, check_config, parse_args


def grad_accum_steps(*flags):
    return check_config(parse_args([*flags]), 1)


def gradient(B, steps, double=True):
    model = lively_gpt()
    if double:
        model = model.double()
    loader = DataLoader(stream_of(text_tokens(5000)), B, 16)
    loss = accumulate_gradients(training(model, loader, steps))
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
    accumulate_gradients(training(model, loader, 4, scaler=scaler))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler.unscale_(optimizer)
    grad = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(grad, gradient(8, 1, double=False)[1], atol=1e-6, rtol=0)


def test_settings_decide_the_number_of_micro_steps():
    assert grad_accum_steps("--B", "8", "--T", "32", "--total-batch-size", "1024") == 4


def test_batch_that_does_not_divide_names_the_way_out():
    with pytest.raises(UserError, match="--total-batch-size 1000 is not a multiple of B x T.*"
                                        " 256: try 1024, or another --B"):
        grad_accum_steps("--B", "8", "--T", "32", "--total-batch-size", "1000")


@pytest.mark.parametrize("error, shown", [
    (torch.OutOfMemoryError("CUDA out of memory. Tried"), "error: out of memory: halve --B"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
     "error: out of memory: halve --B"),
    (OSError(28, "No space left on device", "log.txt"), "error: [Errno 28] No space left"),
    (UserError("two\nlines"), "error: two lines")])
def test_what_the_user_can_mend_is_one_line(error, shown, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        run(main)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith(shown) and said.count("\n") == 1


def test_a_mistake_of_ours_keeps_its_traceback():
    def main():
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        run(main)
