"""What a run says: its log, its curves, the table at the start, its lines."""

import json
import platform
from dataclasses import asdict
from pathlib import Path

import torch


def report_evaluation(step, found, log):
    """Log the Evaluation made after `step` updates; the master process also prints it."""
    log.value(step, "val", found.val_loss)
    hella = ""
    if found.hella:
        hella = f" | hella {found.hella[0]:.4f} +- {found.hella[1]:.4f}"
        log.value(step, "hella", found.hella[0])
        log.note(step=step, hella_standard_error=found.hella[1], hella_examples=found.hella[2])
    if not log.master_process:
        return
    print(f"step {step:5d} | val {found.val_loss:.4f}{hella} | "
          f"evaluated in {found.seconds:.1f} s")
    for number, continuation in enumerate(found.samples):
        print(f"  sample {number}: {continuation!r}")


class Log:
    """log.txt: one `{step} {train|val|hella} {value}` per line; notes are lines of `# ` and JSON.

    Only the master process writes, and it only appends. A run's first line is its header.
    """

    def __init__(self, path, master_process):
        self.path, self.master_process = Path(path), master_process

    def line(self, text):
        if self.master_process:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(text + "\n")

    def value(self, step, kind, value):
        self.line(f"{step} {kind} {value!r}")

    def note(self, **facts):
        self.line(f"# {json.dumps(facts)}")

    def begin(self, config, t):
        """Write a run's header line: its settings, its size, its versions and its machine."""
        self.note(config=asdict(config), ranks=t.ranks.ddp_world_size, device=str(t.ranks.device),
                  parameters=t.net.num_params(), max_steps=t.max_steps, torch=torch.__version__,
                  python=platform.python_version(), system=platform.platform())
