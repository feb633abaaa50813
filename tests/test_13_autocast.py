"""bf16 products under autocast: parameters stay fp32, activations are 16 bits."""

import pytest
import torch
from helpers import lively_gpt, no_scaler, stream_of, text_tokens, update

from train_gpt2 import DataLoader
from nanogpt.ranks import autocast, choose_dtype

CPU_DEVICE, CUDA = torch.device("cpu"), torch.device("cuda")


def test_parameters_fp32_activations_bf16():
    model, seen = lively_gpt(), {}
    for name in "attn", "mlp":
        getattr(model.transformer.h[0], name).register_forward_hook(
            lambda module, args, out, name=name: seen.update({name: out.dtype}))
    idx = torch.randint(257, (2, 16))
    with autocast(CPU_DEVICE, torch.bfloat16):
        logits, loss = model(idx, idx)
    loss.backward()
    assert seen == {"attn": torch.bfloat16, "mlp": torch.bfloat16}
    assert logits.dtype == torch.bfloat16 and loss.dtype == torch.float32
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())
    expected = model(idx, idx)[1]
    assert loss.item() != expected.item()
    assert loss.item() == pytest.approx(expected.item(), rel=0.01)  # 8 bits of mantissa


def test_fp32_means_no_autocast():
    model, idx = lively_gpt(), torch.randint(257, (2, 16))
    with autocast(CPU_DEVICE, torch.float32):
        logits, _ = model(idx)
    assert torch.equal(logits, model(idx)[0])


@pytest.mark.parametrize("has_bf16, expected", [(True, torch.bfloat16), (False, torch.float16)])
def test_cuda_takes_bf16_if_the_card_has_it(has_bf16, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported",
                        lambda including_emulation=True: has_bf16 or including_emulation)
    assert choose_dtype("auto", CUDA) == expected


def test_elsewhere_fp32_unless_named():
    assert choose_dtype("auto", CPU_DEVICE) == torch.float32
    assert choose_dtype("auto", torch.device("mps")) == torch.float32
    assert choose_dtype("bfloat16", CPU_DEVICE) == torch.bfloat16
    assert choose_dtype("float32", CUDA) == torch.float32


def test_autocast_takes_the_type_not_the_index():
    """torch.autocast("cuda:3") is an error; the helper hands it "cuda"."""
    assert autocast(torch.device("cuda", 3), torch.float32).device == "cuda"


def test_a_training_step_runs_in_the_dtype_it_is_told():
    """The forward pass of train_step must stand inside autocast, with its dtype."""
    seen = {}
    for dtype in torch.float32, torch.bfloat16:
        model = lively_gpt()
        model.transformer.h[0].mlp.register_forward_hook(
            lambda module, args, out, dtype=dtype: seen.update({dtype: out.dtype}))
        loader = DataLoader(stream_of(text_tokens(500)), 4, 16)
        update(model, loader, torch.optim.SGD(model.parameters(), lr=0.1), 0.1, dtype=dtype)
    assert seen == {torch.float32: torch.float32, torch.bfloat16: torch.bfloat16}


def test_scaled_loss_gives_the_update_of_the_plain_one():
    """fp16's GradScaler takes its factor out again before the weights move."""
    weights = []
    for scaler in no_scaler(), torch.amp.GradScaler("cpu", init_scale=1024.0):
        model = lively_gpt()
        loader = DataLoader(stream_of(text_tokens(500)), 4, 16)
        update(model, loader, torch.optim.SGD(model.parameters(), lr=0.1), 0.1, scaler=scaler)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*weights, atol=1e-6, rtol=0)
