"""A resume that cannot be the same run is refused before the first step."""

from helpers import TINY, main_here, refusal, write_shards

import train_gpt2

RUN = [*TINY, "--val-tokens", 512, "--sample-tokens", 0, "--hellaswag", "none"]


def test_an_epoch_that_is_shorter_than_the_run_was(tmp_path, monkeypatch, capsys):
    """Without --max-steps, a larger batch makes fewer steps of an epoch than have been made."""
    flags = [*RUN[:RUN.index("--max-steps")], *RUN[RUN.index("--max-steps") + 2:]
             ] if "--max-steps" in RUN else RUN
    run = [*flags, "--data", write_shards(tmp_path / "shards", n_train=5000), "--out-dir",
           tmp_path / "run"]
    main_here(monkeypatch, *run)
    said = refusal(train_gpt2.main, *run, "--resume", "--total-batch-size", 2048,
                   monkeypatch=monkeypatch, capsys=capsys)
    assert "--max-steps 2: " in said and "is at step 9 already" in said
