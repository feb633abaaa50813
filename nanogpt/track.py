"""TensorBoard or Weights & Biases, which get every value that log.txt gets."""

import importlib.util
import os
import re
import secrets
import threading
from dataclasses import asdict
from pathlib import Path

from nanogpt.common import UserError


class Tracker:
    """Hands a run's values to the package `kind`, or to nobody ("none"). When that fails, one line
    says so, and the run continues without it. Raises UserError if it is not installed."""

    def __init__(self, kind):
        self.kind, self.add, self.finish = kind, None, None
        # a folder wandb/ of logs passes for a package, but it has no origin
        if kind != "none" and not getattr(importlib.util.find_spec(kind), "origin", None):
            raise UserError(f"--track {kind} is not installed: run pip install {kind}")

    def begin(self, config, t, log):
        """Begin, or continue as the text of a resumed run's log says. Returns facts for the log."""
        before = re.findall(r'"wandb": "(\w+)"', log.rpartition('# {"config"')[2])
        run_id = before[-1] if before else secrets.token_hex(4)
        if self.kind != "none":  # a killed run got further than this: its values come again
            self.attempt(getattr(self, self.kind), config, t.step + (t.evaluated == t.step), run_id)
        return {"wandb": run_id} if self.kind == "wandb" else {}

    def tensorboard(self, config, step, run_id):
        from torch.utils.tensorboard import SummaryWriter

        hook = threading.excepthook  # what its thread raises, add and finish will raise as well
        threading.excepthook = lambda args: isinstance(args.exc_value, OSError) or hook(args)
        writer = SummaryWriter(Path(config.out_dir, "tensorboard"), purge_step=step)
        self.add, self.finish = writer.add_scalar, writer.close

    def wandb(self, config, step, run_id):
        import wandb

        run = wandb.init(id=run_id, resume="allow", name=Path(config.out_dir).name,
                         project=os.environ.get("WANDB_PROJECT", "nanogpt"), dir=config.out_dir,
                         config=asdict(config), settings=wandb.Settings(console="off"))
        run.define_metric("*", step_metric="step")  # wandb's own steps may not go back
        self.add = lambda kind, value, step: run.log({kind: value, "step": step})
        self.finish = run.finish

    def attempt(self, call, *args):
        """Call it, unless it is None; an error is printed, and nothing is called after that."""
        try:
            return call(*args) if call else None
        except Exception as error:  # a full disk, no network, not logged in
            self.add = self.finish = None
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            print(f"--track {self.kind} failed ({reason}): the run continues without it")
