"""Several texts in one row, by positions and a mask: each is computed as if it were alone."""

import pytest
import torch
from helpers import lively_gpt


@torch.no_grad()
def test_two_texts_in_one_row_do_not_see_each_other():
    model = lively_gpt().double()
    first, second = torch.randint(257, (1, 6)), torch.randint(257, (1, 9))
    part = torch.tensor([0] * 6 + [1] * 9)
    pos = torch.cat((torch.arange(6), torch.arange(9)))[None]
    mask = (part[:, None] == part) & (pos[0] <= pos[0][:, None])
    x = model.hidden(torch.cat((first, second), dim=1), pos=pos, mask=mask[None, None])
    alone = torch.cat((model.hidden(first), model.hidden(second)), dim=1)
    assert torch.allclose(x, alone, atol=1e-12, rtol=0)
    # 17 tokens in a row, and no more than 12 positions
    long = torch.randint(257, (1, 17))
    pos = torch.arange(17)[None] % 12
    assert model.hidden(long, pos=pos, mask=torch.ones(1, 1, 17, 17).bool()).shape == (1, 17, 32)
    with pytest.raises(ValueError, match="17 tokens, but the network has 16"):
        model.hidden(long, pos=pos + 5, mask=torch.ones(1, 1, 17, 17).bool())


@torch.no_grad()
def test_the_mask_of_the_past_is_the_same_as_none():
    model, idx = lively_gpt(), torch.randint(257, (2, 11))
    past = torch.ones(1, 1, 11, 11).bool().tril()
    pos = torch.arange(11).expand(2, 11)
    masked = model.hidden(idx, pos=pos, mask=past)
    assert torch.allclose(masked, model.hidden(idx), atol=1e-5, rtol=0)
    assert not torch.allclose(model.hidden(idx, pos=pos.flip(1), mask=past), masked, atol=1e-2)


def test_blocks_that_are_recomputed_have_the_mask():
    """In training mode: the same outputs of hidden(), and the same gradients of a sum in which
    every term has a different weight."""
    model, idx = lively_gpt(), torch.randint(257, (2, 11))
    pos = torch.randint(16, (2, 11))
    mask = torch.rand(2, 1, 11, 11) < 0.5
    mask |= torch.eye(11).bool()  # a token sees itself at least
    found = []
    for recompute in False, True:
        model.train().recompute = recompute
        model.zero_grad()
        x = model.hidden(idx, pos=pos, mask=mask)
        (x * torch.arange(x.numel()).view_as(x).cos()).sum().backward()
        found.append([x.detach(), *(p.grad.clone() for p in model.parameters())])
    for without, recomputed in zip(*found, strict=True):
        assert torch.equal(recomputed, without)
