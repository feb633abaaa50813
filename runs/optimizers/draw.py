"""Draw curves.png: validation loss over tokens, AdamW and Muon, from the logs in this folder."""

import re
from pathlib import Path

from matplotlib.figure import Figure

HERE = Path(__file__).parent
TOKENS = 16 * 128  # a step
COLORS = {"adamw": "C0", "muon": "C1"}


def validation(path):
    pairs = re.findall(r"^(\d+) val (\S+)$", path.read_text(), re.MULTILINE)
    return [int(step) * TOKENS / 1e6 for step, _ in pairs], [float(value) for _, value in pairs]


figure = Figure(figsize=(10, 4), layout="constrained")
curves, sweep = figure.subplots(1, 2)
best = {"adamw": "5e-3", "muon": "1e-2"}
for path in sorted(HERE.glob("*.txt")):
    kind, lr, *_ = path.stem.split("_")
    tokens, losses = validation(path)
    if lr == best[kind]:
        seed = path.stem.partition("_s")[2]
        curves.plot(tokens, losses, COLORS[kind], linewidth=1,
                    label=None if seed else f"{kind}, learning rate {lr}")
        curves.plot(tokens[-1], losses[-1], "o", color=COLORS[kind], markersize=4)
    sweep.plot(float(lr), losses[-1], "o", color=COLORS[kind], markersize=5)
curves.set(xlabel="million tokens", ylabel="validation loss (nats per token)", ylim=(1.1, 2.2),
           title="Three seeds each, every run to the end of its schedule")
curves.legend()
sweep.set(xscale="log", xlabel="learning rate", ylabel="validation loss at the end",
          title="AdamW 3,000 steps (blue), Muon 1,800 (orange)")
sweep.set_xticks([2.5e-3, 5e-3, 1e-2, 2e-2], ["2.5e-3", "5e-3", "1e-2", "2e-2"])
sweep.minorticks_off()
figure.savefig(HERE / "curves.png", dpi=120)
