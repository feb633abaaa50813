"""With --recompute: the same gradients, less memory, and most of a forward pass more work."""

import torch
from helpers import TINY, lively_gpt, main_here, write_shards
from torch.utils.flop_counter import FlopCounterMode

import train_gpt2
from nanogpt.report import read_log


def step(model, idx):
    """Gradients, bytes kept from the forward to the backward pass, and the blocks' products."""
    model.zero_grad()
    kept = {}

    def keep(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            _, loss = model(idx, idx)
        loss.backward()
    weights = {p.data_ptr() for p in model.parameters()}
    return ({name: p.grad.clone() for name, p in model.named_parameters()},
            sum(n for place, n in kept.items() if place not in weights),
            counter.get_flop_counts()["Global"][torch.ops.aten.addmm])


def test_the_same_gradients_for_less_memory_and_more_work():
    model, idx = lively_gpt(n_layer=6, n_embd=64), torch.randint(257, (8, 16))
    gradients, kept, products = step(model, idx)
    model.recompute = True
    again, kept_now, products_now = step(model, idx)
    for name, gradient in gradients.items():
        assert torch.equal(again[name], gradient), name
    stream = 8 * 16 * 64 * 4  # bytes of one (B, T, C)
    assert kept - kept_now > 6 * 10 * stream  # of each block: 4 C in the MLP twice, q, k, v, ...
    # 8 of a block's 12 C^2 products are repeated: the last one's result is not needed. Products
    # computed in a custom autograd function cannot be stopped early: then it is all 12
    assert products_now in (products * (12 + 8) // 12, products * (12 + 12) // 12)


def test_evaluation_has_nothing_to_recompute():
    model, idx = lively_gpt(), torch.randint(257, (2, 16))
    model.recompute = True
    with train_gpt2.evaluating(model):
        whole = model(idx)[0]
        assert torch.equal(model.generate(idx[:, :4], 5, temperature=0)[:, 4],
                           whole[:, 3].argmax(dim=-1))


def test_the_run_has_it(tmp_path, monkeypatch):
    data, calls = write_shards(tmp_path / "shards"), []
    function = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint",
                        lambda *args, **kwargs: calls.append(1) or function(*args, **kwargs))
    logs = []
    for flag in "--no-recompute", "--recompute":
        main_here(monkeypatch, *TINY, "--max-steps", 2, "--val-tokens", 512, "--sample-tokens", 0,
                  flag, "--data", data, "--out-dir", tmp_path / flag)
        logs.append(read_log(tmp_path / flag / "log.txt"))
        assert bool(calls) == (flag == "--recompute")
    assert logs[0]["train"] == logs[1]["train"] and logs[0]["val"] == logs[1]["val"]
