"""Small batches first: how many tokens each update takes, by its place in the run."""

import re
from fractions import Fraction

from nanogpt.common import UserError
from nanogpt.shards import count_steps

NUMBER = r"(\d*\.?\d+|\d+/0*[1-9]\d*)"


def read_ramp(text):
    """[(share of the batch, share of the run that ends it)] of "0.25:0.03,0.5:0.1". UserError."""
    parts = []
    for part in text.split(",") if text else []:
        match = re.fullmatch(f"{NUMBER}:{NUMBER}", part.strip())
        share, until = map(Fraction, match.groups()) if match else (0, 0)
        if not (0 < share < 1 and (parts[-1][1] if parts else 0) < until < 1):
            raise UserError(f"--batch-ramp {text}: {part!r} is not SHARE:UNTIL, both between 0 and "
                            "1, UNTIL larger than the one before: try 0.25:0.03,0.5:0.1")
        parts.append((share, until))
    return parts


def check_ramp(config, at_once):
    """Raises UserError unless each part of the batch is a multiple of `at_once` = B T ranks."""
    for share, _ in read_ramp(config.batch_ramp):
        tokens = share * config.total_batch_size
        if tokens % at_once:
            raise UserError(f"--batch-ramp {config.batch_ramp}: {float(share):g} of the batch is "
                            f"{float(tokens):g} tokens, not a multiple of B x T x ranks = "
                            f"{at_once}: choose a smaller --B, or other shares")


class Ramp:
    """A run on the tokens of `n` whole batches. At first, an update takes a part of one, so there
    are more updates. All follows from the loader's position, so a run can resume anywhere."""

    def __init__(self, config, stream):
        self.n, self.whole = count_steps(config, stream), config.total_batch_size
        self.ramps, self.total, self.tokens = config.batch_ramp, self.n * self.whole, None
        # (end, tokens): an update that begins before `end` takes this many, and all fit
        self.parts = [(min(until * self.total, self.total - share * self.whole + 1),
                       int(share * self.whole))
                      for share, until in [*read_ramp(config.batch_ramp), (1, 1)]]

    def updates(self, position=0):
        """[(updates, tokens of each)] from this position to the end of the run."""
        found = []
        for end, tokens in self.parts:
            n = max(0, -(-(end - position) // tokens))
            position += n * tokens
            found.append((n, tokens))
        return found

    def last_step(self, saved):
        """Updates in the whole run. saved: facts to resume from, or {}. Raises UserError."""
        if not self.ramps:
            return self.n
        position = saved.get("position", 0)
        if position > self.total:
            raise UserError(f"--max-steps {self.n}: {saved['folder']} has had the tokens of "
                            f"{position / self.whole:g}: give more, or choose another --out-dir")
        return saved.get("step", 0) + sum(n for n, _ in self.updates(position))

    def done(self, step, position):
        """Whole batches in the tokens before `position`; without a ramp, the number of updates."""
        return position / self.whole if self.ramps else step

    def set_batch(self, t, log):
        """Have the next update take its part of the batch; the log gets a note when that changes.
        Returns the whole batches done: what the learning rate depends on."""
        if self.ramps:
            tokens = next(tokens for end, tokens in self.parts if t.loader.position < end)
            t.grad_accum_steps = tokens // (t.loader.B * t.loader.T * t.ranks.ddp_world_size)
            if tokens != self.tokens:
                log.note(step=t.step, batch=tokens, position=t.loader.position)
            self.tokens = tokens
        return self.done(t.step, t.loader.position)

    def describe(self):
        """Rows for the table at the start of a run."""
        parts = [f"{tokens:,} tokens for {n:,} steps" for n, tokens in self.updates() if n]
        return [("ramp", ", ".join(parts))] if self.ramps else []
