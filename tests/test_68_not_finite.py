"""A loss or a gradient that is not finite stops the run with the weights as they were."""

import copy
import math
import sys
import threading

import pytest
import torch
from helpers import (
    TINY,
    lively_gpt,
    main_here,
    refusal,
    stream_of,
    text_tokens,
    training,
    update,
    write_shards,
)

import train_gpt2
from nanogpt.common import UserError, run
from train_gpt2 import DataLoader, configure_optimizer
from nanogpt.checkpoints import save_checkpoint


def trained(model, **more):
    """Makes five good updates. Returns the optimizer and a function that makes one more."""
    optimizer = configure_optimizer(model, 0.1, 1e-3)
    loader = DataLoader(stream_of(text_tokens(5000)), 4, 16)
    for _ in range(5):
        update(model, loader, optimizer, 1e-3, steps=2, **more)
    return optimizer, lambda **more: update(model, loader, optimizer, 1e-3, steps=2, **more)


def broken(model, monkeypatch, what):
    """The next forward pass has a loss, or a gradient, that is not finite."""
    def forward(idx, targets=None, original=model.forward):
        logits, loss = original(idx, targets)
        if what == "loss":
            loss = loss * math.nan
        else:  # a finite loss whose gradient is not finite
            loss = loss + 0 * (model.transformer.ln_f.bias[0] * 0).abs().sqrt()
        return logits, loss

    monkeypatch.setattr(model, "forward", forward)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_neither_weights_nor_averages_are_touched(what, monkeypatch):
    model = lively_gpt()
    optimizer, step = trained(model)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    broken(model, monkeypatch, what)
    with pytest.raises(UserError, match="loss (nan|[0-9.]+), gradient norm nan at position 640 of"):
        step()
    weights, averages = before
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    for i, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, averages[i][kind]) for kind, value in state.items())


def test_a_scale_too_large_is_no_fault():
    """float16 begins with a scale that overflows: updates are skipped until it fits."""
    model = lively_gpt()
    optimizer, step = trained(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = copy.deepcopy(model.state_dict())
    _, norm = step(scaler=scaler, dtype=torch.float16)
    assert not math.isfinite(norm) and scaler.get_scale() == 2.0**39
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_scale_that_can_go_no_lower_is_one(monkeypatch):
    model = lively_gpt()
    optimizer, step = trained(model)
    broken(model, monkeypatch, "gradient")
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for _ in range(2):
        step(scaler=scaler, dtype=torch.float16)
    with pytest.raises(UserError, match="gradient norm"):
        step(scaler=scaler, dtype=torch.float16)


def test_the_run_ends_in_one_line_and_its_checkpoint_stays(tmp_path, monkeypatch, capsys):
    accumulate, calls = train_gpt2.accumulate_gradients, []

    def third(*args):
        calls.append(1)
        return accumulate(*args) * (math.inf if len(calls) == 4 else 1)

    monkeypatch.setattr(train_gpt2, "accumulate_gradients", third)
    said = refusal(train_gpt2.main, *TINY, "--data", write_shards(tmp_path / "shards"),
                   "--out-dir", tmp_path / "run", "--max-steps", 6, "--val-tokens", 512,
                   "--sample-tokens", 0, "--checkpoint-every", 2, monkeypatch=monkeypatch,
                   capsys=capsys)
    assert "loss inf" in said and "position 1,536" in said and "--resume" in said
    folders = [path.name for path in (tmp_path / "run").glob("checkpoint_*")]
    assert folders == ["checkpoint_000002"]
    monkeypatch.setattr(train_gpt2, "accumulate_gradients", accumulate)
    main_here(monkeypatch, *TINY, "--data", tmp_path / "shards", "--out-dir", tmp_path / "run",
              "--max-steps", 6, "--val-tokens", 512, "--sample-tokens", 0, "--resume")
    assert "resumed    | at step 2 of" in capsys.readouterr().out


def test_a_checkpoint_that_failed_is_told_beside_it(tmp_path, monkeypatch, capsys):
    """The disk fills up while a training step finds an infinite loss: two error lines."""
    accumulate, calls, found = train_gpt2.accumulate_gradients, [], threading.Event()

    def third(*args):
        calls.append(1)
        if len(calls) == 3:
            found.set()
        return accumulate(*args) * (math.inf if len(calls) == 3 else 1)

    def full(*args):
        assert found.wait(30)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train_gpt2, "accumulate_gradients", third)
    monkeypatch.setattr("nanogpt.checkpoints.write_checkpoint", full)
    monkeypatch.setattr(sys, "argv", ["train_gpt2.py", *TINY, "--data", str(write_shards(
        tmp_path / "shards")), "--out-dir", str(tmp_path / "run"), "--max-steps", "6",
        "--val-tokens", "512", "--sample-tokens", "0", "--checkpoint-every", "2"])
    with pytest.raises(SystemExit) as stop:
        run(train_gpt2.main)
    said = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(said) == 2, said
    assert said[0] == "error: the last checkpoint: [Errno 28] No space left on device"
    assert said[1].startswith("error: loss inf, gradient norm")


def test_an_update_that_ruins_the_weights_ends_the_run(tmp_path, monkeypatch, capsys):
    """Loss and gradient are finite, but the update ruins the weights: no sample, no checkpoint."""
    said = refusal(train_gpt2.main, *TINY, "--data", write_shards(tmp_path / "shards"),
                   "--val-tokens", 512, "--out-dir", tmp_path / "run", "--max-lr", 1e30,
                   "--max-steps", 1, monkeypatch=monkeypatch, capsys=capsys)
    assert "validation loss nan after step 1: go on with --resume and a lower --max-lr" in said
    assert not list((tmp_path / "run").glob("*checkpoint*"))


def test_hellaswag_is_not_scored_after_a_validation_of_nan(tmp_path, monkeypatch, capsys):
    """Minutes of scoring for an evaluation that is thrown away; and the loss says more."""
    monkeypatch.setattr(train_gpt2, "evaluate_hellaswag", lambda *args: pytest.fail("scored"))
    monkeypatch.setattr(train_gpt2, "validate", lambda *args: math.nan)
    said = refusal(train_gpt2.main, *TINY, "--data", write_shards(tmp_path / "shards"),
                   "--val-tokens", 512, "--out-dir", tmp_path / "run", "--hellaswag", "heldout",
                   "--hellaswag-limit", 4, "--max-steps", 1, monkeypatch=monkeypatch,
                   capsys=capsys)
    assert "validation loss nan after step 0" in said


def test_a_score_of_nan_ends_the_run(tmp_path, monkeypatch, capsys):
    """Validation reads other tokens than HellaSwag, so it may be finite: nothing is logged."""
    monkeypatch.setattr(train_gpt2, "validate", lambda *args: 3.0)
    for name in "score", "score_packed":  # packed from step 79 on
        monkeypatch.setattr(f"hellaswag.{name}", lambda model, batch, device: (
            torch.full((len(batch), 4), math.nan), torch.ones(len(batch), 4)), raising=False)
    said = refusal(train_gpt2.main, *TINY, "--data", write_shards(tmp_path / "shards"),
                   "--val-tokens", 512, "--out-dir", tmp_path / "run", "--hellaswag", "heldout",
                   "--hellaswag-limit", 4, "--max-steps", 1, monkeypatch=monkeypatch,
                   capsys=capsys)
    assert "example" in said and "nan" in said
    assert "hella" not in (tmp_path / "run" / "log.txt").read_text().split("\n", 1)[1]


def test_ruined_weights_are_not_saved(tmp_path):
    """A checkpoint between two evaluations, with --keep 1, would take the good one's place."""
    model = lively_gpt()
    optimizer, _ = trained(model)
    with torch.no_grad():
        model.transformer.ln_f.bias[3] = math.inf
    t = training(model, DataLoader(stream_of(text_tokens(5000)), 4, 16), optimizer=optimizer)
    with pytest.raises(UserError, match="the weights of checkpoint_000005 are not finite"):
        save_checkpoint(tmp_path / "checkpoint_000005", t, train_gpt2.TrainConfig())
    assert list(tmp_path.iterdir()) == []
