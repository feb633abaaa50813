"""The product with the vocabulary has nice numbers; the padding is never seen outside it."""

import pytest
import torch
from helpers import lively_gpt
from torch.nn import functional as F


@pytest.mark.parametrize("vocab_size, padded", [(50257, 50304), (257, 320), (256, 256)])
def test_product_is_padded_to_a_multiple_of_64(vocab_size, padded, monkeypatch):
    model, widths = lively_gpt(vocab_size=vocab_size), []
    model.vocab_multiple = 64
    original = F.linear

    def watched(x, weight, bias=None):
        widths.append(weight.shape[0])
        return original(x, weight, bias)

    monkeypatch.setattr(F, "linear", watched)
    logits, _ = model(torch.zeros(1, 4, dtype=torch.long))
    assert max(widths) == padded
    assert logits.shape == (1, 4, vocab_size)


def test_a_cpu_multiplies_with_the_matrix_as_it_is(monkeypatch):
    """F.pad would copy it in every step, 154 MB in GPT-2, even with nothing to add."""
    model, weights = lively_gpt(), []
    original = F.linear
    monkeypatch.setattr(F, "linear", lambda x, weight, bias=None: (
        weights.append(weight), original(x, weight, bias))[1])
    model(torch.zeros(1, 4, dtype=torch.long))
    assert weights[-1] is model.lm_head.weight


def test_padding_changes_no_logit_loss_or_gradient():
    model = lively_gpt().double()
    idx, targets = torch.randint(257, (2, 16)), torch.randint(257, (2, 16))
    results = []
    for multiple in 64, 1:
        model.vocab_multiple = multiple
        model.zero_grad()
        logits, loss = model(idx, targets)
        loss.backward()
        results.append([logits, loss, *(p.grad.clone() for p in model.parameters())])
    for with_padding, without in zip(*results, strict=True):
        torch.testing.assert_close(with_padding, without, atol=1e-12, rtol=0)


def test_padding_is_never_sampled():
    """The padding's logits are 0; with all true ones far below, nothing else could be drawn."""
    model = lively_gpt()
    model.vocab_multiple = 64
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.fill_(1.0)
        model.lm_head.weight.fill_(-1.0)  # every true logit is -32
    idx = torch.zeros(64, 1, dtype=torch.long)
    logits, _ = model(idx)
    assert logits.max() < -31
    drawn = model.generate(idx, 14, top_k=None, generator=torch.Generator().manual_seed(0))
    assert drawn.max() < 257
