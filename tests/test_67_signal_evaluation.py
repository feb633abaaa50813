"""A signal does not wait for HellaSwag: an evaluation cut short is done again from the start."""

import json
import os
import signal

import pytest
from helpers import (
    CPU,
    TINY,
    bytes_encoded,
    four_endings,
    lively_gpt,
    main_here,
    stream_of,
    text_tokens,
    write_jsonl,
    write_shards,
)

import hellaswag
import train_gpt2

pytestmark = pytest.mark.slow

RUN = [*TINY, "--B", 4, "--eval-every", 2, "--val-tokens", 512, "--max-steps", 4]


class Asked:
    """A Stop whose `asked` becomes true after it was read this many times."""

    def __init__(self, after):
        self.left = after

    @property
    def asked(self):
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("after", [0, 1, 3])
def test_no_batch_is_begun_after_the_wish(after):
    model, calls = lively_gpt(block_size=64), []
    model.transformer.ln_f.register_forward_hook(lambda *args: calls.append(1))
    stream = stream_of(text_tokens(5000))
    train_gpt2.validate(model, stream, 4096, 4, 16, CPU, Asked(after))
    assert len(calls) == after and model.training
    calls.clear()
    encoded = bytes_encoded(four_endings(200))
    hellaswag.count_correct(model, encoded, CPU.device, stop=Asked(after))
    assert len(calls) == after
    calls.clear()
    acc, _ = train_gpt2.evaluate_hellaswag(model, encoded, CPU, Asked(after))
    assert len(calls) == after and 0 <= acc <= 1


@pytest.mark.parametrize("where", ["score", "validation"])
def test_it_is_done_again_and_the_log_is_the_unbroken_runs(where, tmp_path, monkeypatch, capsys):
    """The signal arrives within the evaluation at step 2; the checkpoint remembers none of it."""
    flags = [*RUN, "--data", write_shards(tmp_path / "shards"), "--hellaswag",
             write_jsonl(tmp_path / "examples.jsonl", four_endings(40)), "--out-dir"]
    main_here(monkeypatch, *flags, tmp_path / "unbroken")
    expected = (tmp_path / "unbroken" / "log.txt").read_text().splitlines()
    forward, batches, steps = train_gpt2.GPT.forward, hellaswag.batches, []

    def told(now):
        if len(steps) == 2 * 4 and where == now:
            handler = signal.getsignal(signal.SIGTERM)
            assert handler is not signal.SIG_DFL, "nobody listens"
            steps.append(1)
            os.kill(os.getpid(), signal.SIGTERM)

    def interrupted(self, idx, targets=None):
        if self.training:
            steps.append(1)
        elif targets is not None:
            told("validation")
        return forward(self, idx, targets)

    def interrupted_batches(*args, **kwargs):
        told("score")
        return batches(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(train_gpt2.GPT, "forward", interrupted)
        patch.setattr(hellaswag, "batches", interrupted_batches)
        main_here(monkeypatch, *flags, tmp_path / "run")
    said = capsys.readouterr().out
    assert "stopped by SIGTERM at step 2" in said
    state = json.loads((tmp_path / "run" / "checkpoint_000002" / "state.json").read_text())
    assert state["evaluated"] == 0
    assert "2 val" not in (tmp_path / "run" / "log.txt").read_text()
    main_here(monkeypatch, *flags, tmp_path / "run", "--resume")
    log = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert [line for line in log if '{"config' not in line and '{"resumed' not in line] == [
        line for line in expected if '{"config' not in line]
