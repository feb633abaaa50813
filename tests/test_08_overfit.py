"""One batch can be learnt by heart: gradients reach everything that must change."""

import torch
from helpers import small_gpt, text_tokens

from train_gpt2 import configure_optimizer


def test_one_batch_is_learnt_by_heart():
    model = small_gpt(n_embd=64)
    tokens = torch.from_numpy(text_tokens(65).astype("int64"))
    x, y = tokens[:-1].view(4, 16), tokens[1:].view(4, 16)
    optimizer = configure_optimizer(model, weight_decay=0.0, learning_rate=3e-3)
    for _ in range(150):
        _, loss = model(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    assert all(p.grad.abs().max() > 0 for p in model.parameters())
