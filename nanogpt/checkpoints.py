"""A run's state: checkpoints, complete or absent, and which of them to resume from."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import torch

from nanogpt.disk import check_writable, save_file, whole
from nanogpt.report import Log

FILES = ("config.json", "model.safetensors", "state.json", "state.safetensors")
OURS = re.compile(  # no files but these are ever deleted; .tmp...: while they are written
    r"(config|state|manifest)\.json|(model|state)\.safetensors|\.(config|model)\.\w+\.tmp|\.tmp\w{6}")


def save_checkpoint(folder, t, config):
    """Write a folder that transformers opens, with all else that the Training `t` needs to resume;
    complete, or not at all.

    state.safetensors holds the optimizer's tensors under their parameters' names, and torch's
    random state. state.json holds the rest. Neither can run code when it is read.
    """
    names = {p: name for name, p in t.net.named_parameters()}
    tensors = {f"{kind}.{names[p]}": value for p, values in t.optimizer.state.items()
               for kind, value in values.items()}
    tensors["rng"] = torch.get_rng_state()
    facts = dict(step=t.step, position=t.loader.position, scaler=t.scaler.state_dict(),
                 config=asdict(config))
    with whole(folder, OURS) as path:
        t.net.save_pretrained(path)
        save_file(tensors, path / "state.safetensors")
        (path / "state.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


class RunFolder:
    """A run's --out-dir: its log and its checkpoints."""

    def __init__(self, config, ranks):
        self.config, self.ranks = config, ranks
        if ranks.master_process:
            check_writable(config.out_dir)
        self.log = Log(Path(config.out_dir) / "log.txt", ranks.master_process)
        self.newest = None  # folder of the last checkpoint

    def save(self, t):
        """Write a checkpoint of the Training `t`, from the master process."""
        folder = Path(self.config.out_dir) / f"checkpoint_{t.step:06d}"
        if self.ranks.master_process:
            save_checkpoint(folder, t, self.config)
        self.newest = folder
