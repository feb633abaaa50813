"""Token shards as one endless stream."""

import numpy as np


class TokenStream:
    """Tokens, epoch after epoch: one endless sequence, read at any position."""

    def __init__(self, tokens):
        self.tokens, self.n_tokens = tokens, len(tokens)

    def read(self, position, n):
        """The n tokens from `position` on: int64 (n,)."""
        # int64, because few torch functions take uint16
        return self.tokens.take(range(position, position + n), mode="wrap").astype(np.int64)
