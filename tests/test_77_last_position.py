"""generate() computes logits only at the positions it draws from."""

import torch
from helpers import lively_gpt
from torch.utils.flop_counter import FlopCounterMode


def test_one_row_of_logits_a_token():
    """2 B C V operations for each new token; at all T positions it would be T times as many."""
    model, B, new = lively_gpt(), 3, 5
    idx = torch.arange(B * 7).view(B, 7)
    with FlopCounterMode(display=False) as counter:
        model.generate(idx, new, temperature=0)
    # a product with a bias is addmm; the product with the vocabulary has none
    found = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    assert found == new * 2 * B * model.config.n_embd * model.config.vocab_size


def test_hidden_makes_the_logits():
    model, idx = lively_gpt(), torch.randint(257, (2, 9))
    x = model.hidden(idx)
    assert x.shape == (2, 9, model.config.n_embd)
    assert torch.allclose(model.lm_head(x), model(idx)[0], atol=1e-6, rtol=0)
