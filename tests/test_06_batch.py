"""A batch (B, T): y is x one token later."""

import torch
from helpers import first_batch


def test_targets_are_the_next_tokens():
    x, y = first_batch(range(200), B=3, T=5)
    assert x.dtype == y.dtype == torch.long
    assert x.tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12, 13, 14]]
    assert torch.equal(y, x + 1)
