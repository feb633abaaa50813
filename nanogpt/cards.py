"""What is published about GPUs: their memory, power and speed."""

from dataclasses import dataclass

from nanogpt.common import UserError, did_you_mean
from nanogpt.report import PEAK_TFLOPS


@dataclass(frozen=True)
class Card:
    """A GPU by its data sheet: GiB of memory, watts at most, peak TFLOPS of 16-bit products."""
    memory: int
    watts: int
    tflops: float


# NVIDIA's data sheets (B200: an eighth of DGX B200's; RTX: GeForce pages); SXM where it is sold
SHEETS = {"B200": (180, 1000), "H200": (141, 700), "H100": (80, 700), "A100": (40, 400),
          "A100-80GB": (80, 400), "L40S": (48, 350), "A10": (24, 150), "L4": (24, 72),
          "5090": (32, 575), "4090": (24, 450), "3090": (24, 350), "V100": (16, 300),
          "T4": (16, 70)}


def find_card(name):
    """The Card with this name, h100 too. Raises UserError if it is unknown."""
    if (name := name.upper()) not in SHEETS:
        raise UserError(f"--card {name}{did_you_mean(name, SHEETS)}: choose cpu or one of "
                        f"{', '.join(SHEETS)}")
    peaks = {full.split()[-1]: peak for full, peak in PEAK_TFLOPS.items()}
    return Card(*SHEETS[name], peaks[name.partition("-")[0]])
