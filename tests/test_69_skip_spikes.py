"""With --skip-spikes, a spike changes nothing but the position in the data."""

import copy
import json
import math

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
    write_shards,
)

import train_gpt2
from nanogpt.guard import Spikes
from nanogpt.ranks import Ranks
from train_gpt2 import DataLoader, train_step


@pytest.mark.parametrize("skip_above, skipped", [(None, False), (8.0, True), (4.0, True),
                                                 (1e6, False), (0.0, True)])
def test_a_spike_leaves_weights_and_averages_as_they_were(skip_above, skipped, monkeypatch):
    model = lively_gpt()
    usual = {"loss": [4.0, 4.1] * 64, "norm": [1.0, 1.1] * 64}
    spikes = Spikes(usual, skip_above)
    t = training(model, DataLoader(stream_of(text_tokens(5000)), 4, 16), 2, spikes=spikes)

    def step(loss):
        monkeypatch.setattr(train_gpt2, "accumulate_gradients", lambda t: accumulate(t) * 0 + loss)
        return train_step(t, 1e-3)

    accumulate = train_gpt2.accumulate_gradients
    monkeypatch.setattr(train_gpt2.nn.utils, "clip_grad_norm_", lambda *args: torch.tensor(1.0))
    step(3.9)  # below all of them: taken, whatever the limit
    assert not spikes.skipped and not spikes.high
    before = copy.deepcopy((model.state_dict(), t.optimizer.state_dict()["state"]))
    position = t.loader.position
    loss, _ = step(4.0 + 0.05 * 10)  # nine standard deviations and a little above the mean
    assert loss == pytest.approx(4.5) and t.loader.position == position + 128
    assert spikes.skipped == skipped and spikes.high["loss"] > 6
    same = all(torch.equal(v, before[0][name]) for name, v in model.state_dict().items())
    same_state = all(torch.equal(v, before[1][i][kind]) for i, values
                     in t.optimizer.state_dict()["state"].items() for kind, v in values.items())
    assert (same, same_state) == (skipped, skipped)
    assert all(p.grad is None for p in model.parameters()), "the next step begins without it"


def test_the_scaler_is_content_with_a_step_left_out():
    """float16: unscale_ without step, then update, and the next step as usual."""
    model, scaler = lively_gpt(), torch.amp.GradScaler("cpu", init_scale=8.0)
    spikes = Spikes({"loss": [0.0, 0.1] * 64, "norm": [0.0, 0.1] * 64}, 6.0)
    t = training(model, DataLoader(stream_of(text_tokens(5000)), 4, 16), 2, scaler=scaler,
                 ranks=Ranks(torch.device("cpu"), dtype=torch.float16), spikes=spikes)
    skipped = []
    for _ in range(3):
        train_step(t, 1e-3)
        skipped.append(spikes.skipped)
        spikes.skip_above = math.inf
    assert skipped == [True, False, False]
    states = t.optimizer.state.values()
    assert [state["step"].item() for state in states] == [2.0] * len(list(model.parameters()))


def test_the_log_says_which_were_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(Spikes, "WINDOW", 4)
    main_here(monkeypatch, *TINY, "--data", write_shards(tmp_path / "shards"), "--val-tokens", 512,
              "--sample-tokens", 0, "--max-steps", 12, "--max-lr", 1e-9, "--min-lr", 0,
              "--skip-spikes", 0.5, "--out-dir", tmp_path / "run")
    log = (tmp_path / "run" / "log.txt").read_text().splitlines()
    notes = [json.loads(line[2:]) for line in log if "\"spike\"" in line]
    assert notes and all(note["skipped"] for note in notes)
    assert all(z > 0.5 for note in notes for z in note["spike"].values())


def test_a_limit_below_zero_is_refused(tmp_path, monkeypatch, capsys):
    for value in -1, "nan":
        said = refusal(train_gpt2.main, *TINY, "--data", tmp_path, "--skip-spikes", value,
                       monkeypatch=monkeypatch, capsys=capsys)
        assert "--skip-spikes" in said and "give 0 or more" in said
