"""Where the time of a training step goes."""

import os
from pathlib import Path

import torch

from nanogpt.disk import whole


class Profile:
    """Profiles --profile steps after the first three: writes trace.json, for chrome://tracing
    or ui.perfetto.dev, and prints the ten costliest operations. Only the master does."""

    def __init__(self, config, ranks):
        self.n = config.profile if ranks.master_process else 0
        self.folder, self.seen = Path(config.out_dir), 0
        self.kind = "device" if ranks.device.type == "cuda" else "cpu"

    def step(self):
        """Call this after every training step."""
        self.seen += 1
        if self.n and self.seen == 3:  # warmed up and compiled
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # no messages of its own
            self.profiler = torch.profiler.profile()
            self.profiler.start()
        elif self.n and self.seen == 3 + self.n:
            self.profiler.stop()
            with whole(self.folder / "trace.json") as path:
                self.profiler.export_chrome_trace(str(path))
            self.table()

    def table(self):
        """Print the operations that took longest themselves, without those they called."""
        events = self.profiler.key_averages()
        took = {event.key: getattr(event, f"self_{self.kind}_time_total") for event in events
                # GPU time is listed under the operation that launched it and again under its kernel
                if event.device_type == torch.autograd.DeviceType.CPU
                and not event.is_user_annotation}
        print(f"profile of {self.n} steps, full trace in {self.folder / 'trace.json'}")
        for name in sorted(took, key=took.get, reverse=True)[:10]:
            share, ms = took[name] / sum(took.values()), took[name] / self.n / 1000
            print(f"  {share:6.1%} {ms:9.1f} ms a step | {name[:60]}")
