"""The laptop preset uses the optimizer that learns more from the same tokens."""

import pytest
from helpers import main_here

from nanogpt.report import read_log
from train_gpt2 import parse_args

pytestmark = pytest.mark.slow

SHORT = ["--max-steps", 40, "--warmup-steps", 10, "--eval-every", 40, "--val-tokens", 8192,
         "--hellaswag", "none", "--sample-tokens", 0, "--device", "cpu"]


def test_the_same_tokens_teach_it_more(tmp_path, monkeypatch):
    """Against AdamW at the learning rate that was best for it."""
    losses = []
    for name, flags in ("own", []), ("adamw", ["--optimizer", "adamw", "--max-lr", "5e-3"]):
        main_here(monkeypatch, "laptop", *SHORT, *flags, "--out-dir", tmp_path / name)
        losses.append(read_log(tmp_path / name / "log.txt")["val"][1][-1])
    assert losses[0] < 0.95 * losses[1]


def test_the_reproductions_keep_theirs():
    for preset in [], ["gpt2-350M"], ["gpt2-1558M"], ["gpt3-125M"]:
        assert parse_args(preset).optimizer == "adamw"
