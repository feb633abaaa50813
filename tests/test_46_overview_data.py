"""The table before the first step says what the run will do, and the run does it."""

import pytest
from helpers import TINY, lively_gpt, start, stream_of, text_tokens, training, write_shards

import train_gpt2
from nanogpt.report import describe


def overview(out):
    """The printed rows before the first step, as {name: text}."""
    lines = out.partition("\nstep ")[0].splitlines()
    return dict((part.strip() for part in line.split("|", 1)) for line in lines if " | " in line)


@pytest.mark.slow
def test_the_rows_of_a_run(tmp_path):
    data = write_shards(tmp_path / "shards")
    done = start("train_gpt2.py", *TINY, "--data", data, "--out-dir", tmp_path / "run", "--shuffle",
                 "--max-steps", 2, "--val-tokens", 1000, "--eval-every", 5, "--sample-tokens", 0,
                 "--hellaswag", "heldout", "--hellaswag-limit", 20, ranks=2)
    assert done.returncode == 0, done.stderr
    rows = overview(done.stdout)
    assert rows["training"] == f"40,000 tokens in 2 shards of {data}, shuffled"
    assert rows["validation"] == "992 tokens every 5 steps"  # 31 whole rows of 32
    assert rows["HellaSwag"] == "20 examples of heldout"
    assert rows["steps"] == "2 = 0.03 epochs, 2 of warm-up (the run ends in it)"
    assert rows["batch"] == "512 tokens = 8 x 32 x 2 ranks x 1 micro-steps"
    assert rows["folder"] == str(tmp_path / "run")
    assert list(rows)[:10] == ["device", "precision", "network", "vocabulary", "training",
                               "validation", "HellaSwag", "steps", "batch", "folder"]


def rows_of(*flags, train=None, val=None, max_steps=100, grad_accum_steps=2):
    config = train_gpt2.parse_args([*TINY, *flags])
    train, val = train or stream_of(text_tokens(51_200)), val or stream_of(text_tokens(6000))
    loader = train_gpt2.DataLoader(train, config.B, config.T)
    t = training(lively_gpt(), loader, grad_accum_steps, max_steps=max_steps)
    return dict(describe(config, t, train_gpt2.Exam(val, None, [])))


def test_steps_are_counted_in_epochs():
    """A step is one total batch; a warm-up that the run never leaves is pointed out."""
    assert rows_of()["steps"] == "100 = 1.00 epochs, 2 of warm-up"
    assert rows_of(max_steps=12_345)["steps"] == "12,345 = 123.45 epochs, 2 of warm-up"
    assert rows_of("--warmup-steps", "99")["steps"].endswith("99 of warm-up")
    assert rows_of("--warmup-steps", "100")["steps"].endswith("of warm-up (the run ends in it)")


def test_the_validation_that_there_is():
    """Not what was asked for but the whole rows that exist; the last needs one more target."""
    for n, said in (6000, 5984), (65, 64), (64, 32), (33, 32):
        rows = rows_of(val=stream_of(text_tokens(n)))
        assert rows["validation"] == f"{said:,} tokens every 250 steps"


def test_what_is_not_done_is_said():
    rows = rows_of(train=stream_of(text_tokens(5000), parts=3))
    assert rows["HellaSwag"] == "none"
    assert rows["training"].startswith("5,000 tokens in 3 shards of ")
    assert rows["training"].endswith(", in the order on disk")
    assert rows["batch"] == "512 tokens = 8 x 32 x 1 ranks x 2 micro-steps"
