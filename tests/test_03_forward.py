"""The forward pass is transformers', causal, and refuses what has no position."""

import pytest
import torch
from helpers import lively_gpt
from transformers import GPT2Config, GPT2LMHeadModel

from nanogpt.common import UserError
from train_gpt2 import GPT


@pytest.mark.parametrize("B, T", [(1, 1), (2, 7), (3, 64)])
@pytest.mark.parametrize("n_layer, n_head, n_embd", [(1, 1, 16), (3, 4, 64), (2, 12, 192)])
def test_logits_equal_transformers(B, T, n_layer, n_head, n_embd, tmp_path):
    torch.manual_seed(T)
    hf = GPT2LMHeadModel(GPT2Config(n_layer=n_layer, n_head=n_head, n_embd=n_embd, n_positions=64,
                                    vocab_size=257)).eval()
    with torch.no_grad():
        for p in hf.parameters():  # larger than at the start, so that every part counts
            p.mul_(4).add_(0.02 * torch.randn_like(p))
    hf.save_pretrained(tmp_path)
    idx = torch.randint(257, (B, T))
    with torch.no_grad():
        expected = hf(idx).logits
        logits, loss = GPT.from_pretrained(tmp_path)(idx)
    assert loss is None and logits.shape == (B, T, 257)
    # fp32 sums in another order: a few units in the last place of logits of size 10
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    assert expected.abs().max() > 1


def test_future_changes_nothing():
    """Changing token t may change no logit before t: the mask must leave nothing of the future."""
    model, T = lively_gpt(), 16
    idx = torch.randint(257, (1, T))
    logits, _ = model(idx)
    for t in range(1, T):
        changed = idx.clone()
        changed[0, t:] = (changed[0, t:] + 1) % 257
        after, _ = model(changed)
        assert torch.equal(after[:, :t], logits[:, :t])  # to the bit
        assert not torch.allclose(after[:, t:], logits[:, t:])


def test_longer_than_block_size_is_refused():
    with pytest.raises(ValueError, match="17 tokens, but the network has 16 positions"):
        lively_gpt()(torch.zeros(1, 17, dtype=torch.long))


def test_heads_must_divide_the_channels():
    with pytest.raises(UserError, match="n_embd 32 is not a multiple of n_head 5"):
        lively_gpt(n_head=5)
