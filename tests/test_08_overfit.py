"""One batch can be learned by heart: gradients reach everything that must change."""

import re

import pytest
import torch
from helpers import TINY, learn_by_heart, small_gpt, start, text_tokens, write_data

import train_gpt2


def test_one_batch_is_learnt_by_heart():
    """The loss on one batch, seen again and again, must come down to nearly nothing."""
    model = small_gpt(n_embd=64)
    losses = learn_by_heart(model, text_tokens(64), B=4, T=16, updates=150, lr=3e-3)
    assert losses[0] > 5 and losses[-1] < 0.1


def test_every_parameter_learns():
    """A parameter that does not move gets no gradient: is it used in forward?"""
    model = small_gpt(n_embd=64)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    learn_by_heart(model, text_tokens(64), B=4, T=16, updates=3, lr=3e-3)
    for name, p in model.named_parameters():
        assert not torch.equal(p.detach(), before[name]), name


def test_gradients_do_not_pile_up_between_updates():
    """After an update no gradient is left, so the next one starts without any."""
    model = small_gpt()
    learn_by_heart(model, text_tokens(64), B=4, T=16, updates=1, lr=3e-3)
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def losses_of(done):
    assert done.returncode == 0, done.stderr
    return [float(loss) for loss in re.findall(r"step +\d+ \| loss ([\d.]+)", done.stdout)]


def test_the_loop_learns(tmp_path):
    folder = write_data(tmp_path / "data")
    losses = losses_of(start("train_gpt2.py", *TINY, "--max-steps", 30, "--data", folder,
                             "--out-dir", tmp_path / "run"))
    assert len(losses) == 30 and losses[-1] < losses[0] - 0.5
    assert folder.exists()


@pytest.mark.parametrize("flags, words", [
    (["--rate", "1"], "Unrecognized options: --rate"),
    (["--n-layer", "many"], "Error parsing --n-layer: invalid literal"),
    (["--device", "tpu"], "--device tpu")])
def test_a_flag_that_cannot_be_read_is_named(flags, words):
    done = start("train_gpt2.py", *flags)
    assert done.returncode == 2 and words in done.stderr
    assert "Traceback" not in done.stderr


def test_the_bare_command_suits_the_machine():
    """The defaults of a CPU are a small network's; those of a GPU are the video's."""
    assert train_gpt2.PRESETS["laptop"].n_embd == 128
    assert train_gpt2.PRESETS["gpt2-124M"].n_layer == 12
    assert train_gpt2.parse_args(["--n-layer", "3"]).n_layer == 3
