"""--dropout: GPT-2's three places, in training alone, and the same again after a resume."""

import json

import pytest
import torch
from helpers import TINY, main_here, small_gpt, write_shards
from torch.nn import functional as F

import train_gpt2
from nanogpt.ranks import Ranks
from nanogpt.report import read_log


def dropping(p, **sizes):
    torch.manual_seed(0)
    return train_gpt2.GPT(train_gpt2.GPTConfig(16, 257, 2, 2, 32, dropout=p))


def places_where_zeros_appear(model, idx, monkeypatch):
    """(share of zeros that each Dropout adds to its input, dropout_p of each attention)."""
    shares, attention = {}, []

    def look(name):
        def hook(module, args, out):
            shares[name] = (out == 0).float().mean().item()
            kept = out != 0  # the rest is scaled up, so that means stay
            assert torch.allclose(out[kept], args[0][kept] / (1 - module.p * module.training))
        return hook

    def attend(q, k, v, mask=None, dropout_p=0.0, original=F.scaled_dot_product_attention, **more):
        attention.append(dropout_p)
        return original(q, k, v, mask, dropout_p, **more)

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout):
            module.register_forward_hook(look(name))
    with monkeypatch.context() as m:
        m.setattr(F, "scaled_dot_product_attention", attend)
        model(idx)
    return shares, attention


def test_gpt2s_three_places_and_its_attention(monkeypatch):
    """GPT-2 has embd_pdrop, resid_pdrop (after both projections of a block) and attn_pdrop."""
    idx = torch.randint(257, (8, 16))
    names = {"dropout", *(f"transformer.h.{i}.{part}.dropout" for i in (0, 1)
                          for part in ("attn", "mlp"))}
    model = dropping(0.25)
    shares, attention = places_where_zeros_appear(model, idx, monkeypatch)
    assert shares.keys() == names and attention == [0.25, 0.25]
    assert all(0.2 < share < 0.3 for share in shares.values())
    shares, attention = places_where_zeros_appear(model.eval(), idx, monkeypatch)
    assert set(shares.values()) | set(attention) == {0.0}


def test_without_it_nothing_is_drawn():
    """The video's run: the same numbers, and the same random state afterwards."""
    idx = torch.randint(257, (2, 16), generator=torch.Generator().manual_seed(1))
    plain, zero = small_gpt(), dropping(0.0)
    before = torch.get_rng_state()
    assert torch.equal(plain(idx, idx)[1], zero(idx, idx)[1])
    assert torch.equal(before, torch.get_rng_state())


def test_weights_say_what_they_were_trained_with(tmp_path):
    """transformers goes on with the same dropout; loading them here, the flag decides."""
    from transformers import GPT2LMHeadModel

    dropping(0.2).save_pretrained(tmp_path / "model")
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path / "model").config
    assert (theirs.attn_pdrop, theirs.embd_pdrop, theirs.resid_pdrop) == (0.2, 0.2, 0.2)
    for p in 0.0, 0.3:
        model = train_gpt2.GPT.from_pretrained(tmp_path / "model", dropout=p)
        assert {module.p for module in model.modules()
                if isinstance(module, torch.nn.Dropout)} == {p}


@pytest.mark.slow
def test_the_flag_reaches_the_network_and_a_resume_goes_on(tmp_path, monkeypatch):
    """Two steps and two more are four, to the bit, and other than without dropout."""
    data = write_shards(tmp_path / "data")
    losses = {}
    for name, flags, steps in [("none", ("--dropout", 0), [4]), ("four", (), [4]),
                               ("two", (), [2, 4])]:
        for n in steps:
            main_here(monkeypatch, *TINY, "--data", data, "--out-dir", tmp_path / name, "--dropout",
                      0.2, *flags, "--max-steps", n, "--val-tokens", 64, "--resume",
                      "--warmup-steps", 0, "--min-lr", 3e-3)
        losses[name] = read_log(tmp_path / name / "log.txt")["train"][1]
    assert losses["two"] == losses["four"]
    assert abs(losses["none"][0] - losses["four"][0]) > 1e-4
    config = json.loads((tmp_path / "two" / "checkpoint_000004" / "config.json").read_text())
    assert config["resid_pdrop"] == 0.2


@pytest.mark.slow
def test_ranks_drop_different_numbers(monkeypatch):
    seen, model = [], dropping(0.5)
    monkeypatch.setattr(torch, "manual_seed", lambda seed: seen.append(seed))
    monkeypatch.setattr(train_gpt2, "on_master", lambda ranks, work: work())
    config = train_gpt2.parse_args([*TINY, "--dropout", "0.5", "--products", "plain"])
    for rank in 0, 3:
        stream = type("Stream", (), {"n_tokens": 10**6})()
        train_gpt2.prepare_training(config, model, stream,
                                    Ranks(torch.device("cpu"), False, rank, 0, 1), {})
    assert seen[-1] - seen[-2] == 3
