"""How many bytes a training step needs on each rank, calculated from its sizes.

C = n_embd, V = vocab_size, n = B T positions of a micro-batch. A number takes 4 bytes, or e where
it comes out of a matrix product: 2 under autocast, else 4.
"""

import contextlib

from nanogpt.muon import MOST


class Memory:
    """The memory of a training step of `net`, whose tensors may be on the meta device."""

    def __init__(self, config, net, world=1, e=4, on_cpu=True):
        self.config, self.c, self.e, self.on_cpu = config, net.config, e, on_cpu
        self.world, self.n = world, config.B * config.T
        self.accumulates = config.total_batch_size > self.n * world
        self.muon = config.optimizer != "adamw"
        self.divided = config.shard == "model" and world > 1
        # bytes of all weights, of a block's matrices, of the matrix that reads and writes tokens
        self.all = 4 * net.num_params()
        self.block = 48 * self.c.n_embd**2
        self.wte = 4 * self.c.vocab_size * self.c.n_embd
        self.share = self.all / (world if self.divided else 1)  # of the weights, on one rank

    def weights(self):
        """Bytes of them on one rank, and of the copies that autocast makes."""
        return self.share + self.all / 2 * (self.e == 2 and not self.divided)

    def kept_by_block(self):
        """Bytes for each position that a block keeps for its backward pass.

        Two norms keep their inputs in float32, a mean and a deviation. Then come the inputs of four
        products (C, C, C and 4 C), q, k, v and GELU's input (4 C), and a sum for each head.
        """
        C, nh, T, e = self.c.n_embd, self.c.n_head, self.config.T, self.e
        kept = 2 * (4 * C + 8) + 14 * C * e + 4 * nh
        if not self.config.dropout:
            return kept
        if self.on_cpu:  # masks are numbers; attention keeps its scores, and theirs
            return kept + 2 * C * e + 3 * nh * T * e - 4 * nh
        return kept + 2 * C  # masks are bytes

    def activations(self):
        """Bytes from the forward to the backward pass, without the logits."""
        C = self.c.n_embd
        each = 4 * C if self.config.recompute else self.kept_by_block()  # or its input alone
        masks = C * (4 if self.on_cpu else 1) * bool(self.config.dropout)
        last_norm, ids = 4 * C + 8 + C * self.e, 32
        return self.n * (self.c.n_layer * each + masks + last_norm + ids)

    def logits(self):
        """Bytes that the loss adds at most: logits, log-probabilities, two gradients; or those of
        its parts, one at a time, and the gradients of its weight and input."""
        rows = min(self.config.loss_rows, self.n)
        if rows:
            return self.wte + 4 * rows * self.c.vocab_size + 4 * self.n * self.c.n_embd
        return self.n * self.c.vocab_size * (self.e + 12)

    def moments(self):
        """Bytes of averages: two for a weight of AdamW, one for one of Muon."""
        averages = 2 * self.all - self.c.n_layer * self.block * self.muon
        if self.world == 1 or self.config.shard == "none":
            return averages
        if self.divided:
            return averages / self.world
        return max(averages / self.world, 2 * self.wte)  # the embeddings have one owner

    def update(self):
        """Bytes of Muon's rounds, for as many of the largest matrices as it takes at once."""
        at_once = min(self.c.n_layer, max(1, MOST // (4 * self.c.n_embd**2)))
        numbers = 18 / self.world if self.divided else 11  # sent, received and joined; or not
        return self.muon * 4 * numbers * at_once * self.c.n_embd**2

    def exchange(self, blocks=0):
        """Bytes for what ranks exchange: DDP's buckets; or the embeddings and some blocks, whole
        for a moment. (An evaluation has all of them.)"""
        if self.divided:
            return self.all - (self.c.n_layer - blocks) * self.block
        return self.all * (self.world > 1)

    def evaluation(self):
        """Bytes that a validation adds: a whole network; logits with their log, or an MLP."""
        C, e, rows = self.c.n_embd, self.e, min(self.config.loss_rows or self.n, self.n)
        logits = rows * self.c.vocab_size * (12 - e) + self.n * 4 * C  # autocast: float32, too
        return self.all * self.divided + max(logits, self.n * 8 * C * (1 + e))

    def parts(self):
        """{part: bytes}, each when it is largest, which is not at the same moment. "peak" is the
        most of all together at any moment."""
        return {"weights": self.weights(),
                "gradients": self.all if self.accumulates else self.share,
                "moments": self.moments(), "activations": self.activations(),
                "logits": self.logits(),
                "exchange": self.exchange(max(3, self.c.n_layer)), "peak": self.peak()}

    def peak(self):
        """Bytes at the worst moment of a step that is not the first, or of a validation."""
        before = self.all * self.accumulates  # gradients of earlier micro-steps
        logits = 0 if self.config.loss_rows else self.n * self.c.vocab_size * self.e
        work = self.n * 16 * self.c.n_embd  # gradients of what a block computes
        block = self.n * self.kept_by_block()
        worst = [
            before + self.activations() + self.logits() + self.exchange(blocks=1),  # the loss
            # the last block, from which the backward pass starts; the first one; the embeddings,
            # whose gradient is the sum of lm_head's and wte's; then the update
            before + self.activations() + logits + self.wte + work
            + block * self.config.recompute + self.exchange(blocks=3),
            self.late_gradients(1) + logits + work + block + self.exchange(blocks=3),
            self.late_gradients(2 if self.config.loss_rows else 3) + logits + work
            + self.exchange(blocks=2),
            self.share + self.update() + (0 if self.divided else self.exchange()),
            self.evaluation(),
        ]
        return self.weights() + self.moments() + max(worst)

    def late_gradients(self, n):
        """Bytes of gradients at the backward pass's end, when `n` of wte's size are still whole and
        not yet added to those of earlier micro-steps, which wait for them."""
        ranks = self.world if self.divided else 1
        return self.share + self.wte * (n - 1 / ranks + self.accumulates)


def linux_bytes(file, name, otherwise=0):
    """A size that Linux tells in /proc, in bytes; `otherwise` on other systems."""
    with contextlib.suppress(OSError, IndexError), open(f"/proc/{file}", encoding="utf-8") as text:
        return 1024 * int(text.read().split(f"{name}:")[1].split()[0])
    return otherwise
