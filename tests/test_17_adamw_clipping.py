"""AdamW as GPT-3 set it, and gradients cut to norm 1."""

import torch
from helpers import CPU, lively_gpt, no_scaler, stream_of, text_tokens

from train_gpt2 import DataLoader, accumulate_gradients, configure_optimizer, train_step


def test_settings_are_gpt3s():
    optimizer = configure_optimizer(lively_gpt(), 0.1, 6e-4)
    assert isinstance(optimizer, torch.optim.AdamW)
    for group in optimizer.param_groups:
        assert group["betas"] == (0.9, 0.95) and group["eps"] == 1e-8 and group["lr"] == 6e-4


def test_norm_is_at_most_1_after_clipping(monkeypatch):
    """And the gradient keeps its direction: the update sees g / |g| where |g| > 1."""
    model = lively_gpt()
    loader = DataLoader(stream_of(text_tokens(5000)), 4, 16)
    accumulate_gradients(model, loader, 1, CPU, torch.float32, no_scaler())
    before = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    seen = []
    optimizer = configure_optimizer(model, 0.1, 1e-3)
    monkeypatch.setattr(optimizer, "step", lambda: seen.append(
        torch.cat([p.grad.flatten() for p in model.parameters()])))
    loader.position = 0
    _, norm = train_step(model, loader, optimizer, no_scaler(), 1e-3, 1, CPU, torch.float32)
    assert before.norm() > 1.5, "nothing to clip"
    torch.testing.assert_close(torch.tensor(norm), before.norm())
    torch.testing.assert_close(seen[0], before / before.norm(), atol=1e-6, rtol=1e-5)


def test_one_update_is_adamws_formula():
    """The first update of AdamW moves every weight by lr g / (|g| + eps), after decay."""
    model = lively_gpt()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer, lr = configure_optimizer(model, 0.1, 1.0), 1e-3
    loader = DataLoader(stream_of(text_tokens(5000)), 4, 16)
    accumulate_gradients(model, loader, 1, CPU, torch.float32, no_scaler())
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    gradients = {name: p.grad / max(norm, 1) for name, p in model.named_parameters()}
    model.zero_grad()
    loader.position = 0
    train_step(model, loader, optimizer, no_scaler(), lr, 1, CPU, torch.float32)
    for name, p in model.named_parameters():
        g = gradients[name].double()
        decay = 0.1 if p.dim() >= 2 else 0.0
        expected = before[name].double() * (1 - lr * decay) - lr * g / (g.abs() + 1e-8)
        torch.testing.assert_close(p.detach(), expected.float(), atol=2e-6, rtol=0)
