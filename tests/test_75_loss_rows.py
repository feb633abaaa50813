"""The loss with logits for a few positions at a time: the same value and the same gradients."""

import copy

import pytest
import torch
from helpers import TINY, lively_gpt, main_here, refusal, write_shards
from torch import nn
from torch.profiler import ProfilerActivity, profile

import train_gpt2
from nanogpt.report import read_log

if not hasattr(nn, "LinearCrossEntropyOptions"):
    pytest.skip("this torch has no linear_cross_entropy", allow_module_level=True)


def loss_and_gradients(model, idx, targets, rows):
    model = copy.deepcopy(model)
    model.loss_rows = rows
    logits, loss = model(idx, targets)
    assert (logits is None) == bool(rows)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("rows", [1, 7, 16, 48, 100])
def test_the_same_loss_and_gradients(rows):
    """48 positions, in parts that divide them and that do not; float64 makes rounding tiny."""
    tokens = torch.randint(257, (3, 17), generator=torch.Generator().manual_seed(rows))
    idx, targets = tokens[:, :-1], tokens[:, 1:]
    for dtype, most in (torch.float64, 1e-12), (torch.float32, 1e-5):
        model = lively_gpt().to(dtype)
        loss, gradients = loss_and_gradients(model, idx, targets, 0)
        in_parts, others = loss_and_gradients(model, idx, targets, rows)
        assert abs(loss - in_parts) < most
        for name, gradient in gradients.items():
            assert torch.allclose(others[name], gradient, atol=most, rtol=0), name


def test_no_more_logits_than_that():
    """Among the inputs of all operations with a column for each id, the most rows."""
    model, tokens = lively_gpt(n_embd=4), torch.randint(257, (8, 17))
    for rows, most in (0, 128), (8, 8):
        model.loss_rows = rows
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
            model(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())[1].backward()
        shapes = [shape for event in profiler.events() for shape in event.input_shapes]
        assert max(s[0] for s in shapes if len(s) == 2 and s[1] in (257, 320)) == most


def test_autocast_is_heeded():
    """Products in bfloat16, as without loss_rows: the two losses agree to its 8 bits."""
    model, idx = lively_gpt(), torch.randint(257, (4, 16))
    with torch.autocast("cpu", torch.bfloat16):
        whole = model(idx, idx)[1].float()
        model.loss_rows = 16
        in_parts = model(idx, idx)[1].float()
    model.loss_rows = 0
    assert whole != model(idx, idx)[1] and abs(in_parts - whole) < 0.01 * whole


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_many_parts_add_up_in_float32(dtype):
    """128 parts of 64 positions: summed up in 16 bits, the loss would be off by a percent or more,
    and float16's, times the scaler's 65,536, would be infinite."""
    model = lively_gpt(block_size=64)
    tokens = torch.randint(257, (128, 65), generator=torch.Generator().manual_seed(0))
    idx, targets = tokens[:, :-1], tokens[:, 1:]
    with torch.autocast("cpu", dtype):
        whole = model(idx, targets)[1].item()
        model.loss_rows = 64
        in_parts = model(idx, targets)[1]
    assert in_parts.dtype == torch.float32 and (in_parts * 65536).isfinite()
    assert in_parts.item() == pytest.approx(whole, rel=1e-3)


def test_targets_of_minus_100_do_not_count():
    model, idx = lively_gpt().double(), torch.randint(257, (3, 16))
    targets = idx.clone()
    targets[:, ::3] = -100
    whole, in_parts = (loss_and_gradients(model, idx, targets, rows)[0] for rows in (0, 7))
    assert abs(whole - in_parts) < 1e-12


def test_the_run_has_them(tmp_path, monkeypatch):
    data = write_shards(tmp_path / "shards")
    losses = []
    for rows in 0, 16:
        main_here(monkeypatch, *TINY, "--max-steps", 3, "--val-tokens", 512, "--sample-tokens", 0,
                  "--loss-rows", rows, "--data", data, "--out-dir", tmp_path / str(rows))
        log = read_log(tmp_path / str(rows) / "log.txt")
        losses.append(log["train"][1] + log["val"][1])
    assert losses[0] != losses[1]  # sums in another order
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_an_older_torch_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.delattr(nn, "LinearCrossEntropyOptions")
    said = refusal(train_gpt2.main, *TINY, "--loss-rows", 16, "--data", write_shards(
        tmp_path / "shards"), "--out-dir", tmp_path / "run", monkeypatch=monkeypatch, capsys=capsys)
    assert "--loss-rows 16 needs torch 2.13" in said
    assert train_gpt2.TrainConfig().loss_rows == train_gpt2.GPT.loss_rows == 0  # all logits
