"""At the end a run says where everything is, and it is all there."""

import re
from pathlib import Path

import pytest
from helpers import TINY, main_here, start, write_shards

import train_gpt2
from nanogpt.report import print_ending, read_log


@pytest.mark.slow
def test_every_path_it_names_is_there(tmp_path, monkeypatch, capsys):
    """Log, curves and the last checkpoint; a second run follows the advice and starts from it."""
    flags = [*TINY, "--data", write_shards(tmp_path / "shards"), "--val-tokens", 512,
             "--sample-tokens", 0]
    main_here(monkeypatch, *flags, "--out-dir", tmp_path / "run", "--max-steps", 3,
              "--checkpoint-every", 2)
    said = capsys.readouterr().out
    run = tmp_path / "run"
    for name, path in (("log", "log.txt"), ("curves", "curves.png"),
                       ("weights", "checkpoint_000003")):
        assert re.search(rf"^{name} +{re.escape(str(run / path))}$", said, re.MULTILINE)
        assert (run / path).exists()
    advice = re.search(r"^fine-tune it +add (--init-from) (\S+) and another --out-dir$", said,
                       re.MULTILINE)
    main_here(monkeypatch, *flags, "--out-dir", tmp_path / "on", "--max-steps", 1, *advice.groups())
    first, second = (read_log(tmp_path / name / "log.txt")["val"][1]
                     for name in ("run", "on"))
    assert second[0] == first[-1]


@pytest.mark.parametrize("vocab_size, scored", [("257", 0), ("50257", 1)])
def test_hellaswag_is_for_gpt2s_tokens_alone(vocab_size, scored, capsys):
    """The script's examples are too long and too hard for a network of bytes."""
    config = train_gpt2.parse_args(["--vocab-size", vocab_size, "--out-dir", "log/x"])
    print_ending(config, Path("log/x/checkpoint_000003"))
    said = capsys.readouterr().out
    checkpoint = Path("log/x/checkpoint_000003")
    assert said.count(f"python hellaswag.py --model {checkpoint}\n") == scored
    assert f'GPT2LMHeadModel.from_pretrained("{checkpoint}")' in said
    assert f"{Path('log/x/log.txt')}\n" in said and f"{Path('log/x/curves.png')}\n" in said


@pytest.mark.slow
def test_laptop_is_the_whole_job(tmp_path):
    """A few steps of it: data, training, evaluation, samples, log, curves, weights, advice."""
    done = start("train_gpt2.py", "laptop", "--val-tokens", 4096, "--max-steps", 30,
                 "--eval-every", 30, "--warmup-steps", 5, "--sample-tokens", 20,
                 "--hellaswag-limit", 40, "--out-dir", tmp_path / "run", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "validation" in done.stdout and "40 examples of heldout" in done.stdout
    assert done.stdout.count("sample 3: 'The ") + done.stdout.count('sample 3: "The ') == 2
    files = sorted(path.name for path in (tmp_path / "run").glob("[!.]*"))
    assert files == ["checkpoint_000030", "config.toml", "curves.png", "log.txt"]
    for name in {*files} - {"config.toml"}:
        assert str(tmp_path / "run" / name) in done.stdout
