"""AdamW as GPT-3 set it, and gradients cut to norm 1."""

import torch
from helpers import lively_gpt, stream_of, text_tokens, update

from train_gpt2 import DataLoader, configure_optimizer


def loader():
    return DataLoader(stream_of(text_tokens(5000)), 4, 16)


def gradients(model):
    """Of the loader's first batch, by the plainest means."""
    model(*loader().next_batch())[1].backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return found


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors])


def test_settings_are_gpt3s():
    optimizer = configure_optimizer(lively_gpt(), 0.1, 6e-4)
    assert isinstance(optimizer, torch.optim.AdamW)
    for group in optimizer.param_groups:
        assert group["betas"] == (0.9, 0.95) and group["eps"] == 1e-8 and group["lr"] == 6e-4


def test_norm_is_at_most_1_after_clipping(monkeypatch):
    """And the gradient keeps its direction: the update sees g / |g| where |g| > 1."""
    model = lively_gpt()
    before, seen = flat(gradients(model).values()), []
    optimizer = configure_optimizer(model, 0.1, 1e-3)
    monkeypatch.setattr(optimizer, "step", lambda: seen.append(
        flat(p.grad for p in model.parameters())))
    _, norm = update(model, loader(), optimizer, 1e-3)
    assert before.norm() > 1.5, "nothing to clip"
    torch.testing.assert_close(torch.tensor(norm), before.norm())
    torch.testing.assert_close(seen[0], before / before.norm(), atol=1e-6, rtol=1e-5)


def test_one_update_is_adamws_formula():
    """The first update of AdamW moves every weight by lr g / (|g| + eps), after decay."""
    model, lr = lively_gpt(), 1e-3
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = gradients(model)
    norm = flat(found.values()).norm()
    optimizer = configure_optimizer(model, 0.1, lr)
    update(model, loader(), optimizer, lr)
    decay = {p: group["weight_decay"] for group in optimizer.param_groups
             for p in group["params"]}
    for name, p in model.named_parameters():
        g = found[name].double() / max(norm.item(), 1)
        expected = before[name].double() * (1 - lr * decay[p]) - lr * g / (g.abs() + 1e-8)
        torch.testing.assert_close(p.detach(), expected.float(), atol=3e-6, rtol=0)


def test_weight_decay_is_a_setting():
    optimizer = configure_optimizer(lively_gpt(), 0.25, 6e-4)
    assert optimizer.param_groups[0]["weight_decay"] == 0.25
