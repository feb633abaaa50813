"""Training continues while a checkpoint is written, and later updates do not get into it."""

import threading
import time

import pytest
import torch
from helpers import (
    TINY,
    lively_gpt,
    main_here,
    refusal,
    stream_of,
    text_tokens,
    training,
    write_shards,
)
from safetensors.torch import load_file

import train_gpt2
from nanogpt.checkpoints import save_checkpoint, write_checkpoint
from train_gpt2 import GPT, DataLoader, TrainConfig

pytestmark = pytest.mark.slow

RUN = [*TINY, "--val-tokens", 512, "--sample-tokens", 0, "--max-steps", 6]


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_what_is_written_is_of_the_moment_it_was_asked_for(tmp_path):
    """Weights, averages and position change before the first byte is written."""
    t = training(lively_gpt(), DataLoader(stream_of(text_tokens(1000)), 2, 8))

    def update(seed):
        torch.manual_seed(seed)
        for p in t.net.parameters():
            p.grad = torch.randn_like(p)
        t.optimizer.step()
        t.loader.next_batch()
        t.step += 1

    update(1)
    facts = (t, TrainConfig(), {"rng.cpu": torch.get_rng_state()[None]})
    assert save_checkpoint(tmp_path / "now", *facts) is None
    waiting = []

    class Later:
        submit = staticmethod(waiting.append)

    save_checkpoint(tmp_path / "later", *facts, Later)
    update(2)
    assert not (tmp_path / "later").exists()
    waiting[0]()
    assert files(tmp_path / "later") == files(tmp_path / "now")


def test_training_goes_on_meanwhile(tmp_path, monkeypatch):
    """The disk hangs until two more steps are in the log: they must come."""
    log, write, stuck = tmp_path / "run" / "log.txt", write_checkpoint, []

    def slow(folder, *args):
        if folder.name == "checkpoint_000002":
            waited = threading.Event()
            for _ in range(3000):
                if "\n3 train" in log.read_text():
                    break
                waited.wait(0.01)
            else:
                stuck.append(folder)
        write(folder, *args)

    monkeypatch.setattr("nanogpt.checkpoints.write_checkpoint", slow)
    main_here(monkeypatch, *RUN, "--data", write_shards(tmp_path / "shards"), "--out-dir",
              tmp_path / "run", "--checkpoint-every", 2)
    assert not stuck, "training waited for the disk"
    saved = sorted(path.name for path in (tmp_path / "run").glob("checkpoint_*"))
    assert saved == ["checkpoint_000002", "checkpoint_000004", "checkpoint_000006"]


def test_the_last_one_is_whole_when_the_run_ends(tmp_path, monkeypatch, capsys):
    """The ending names a folder that is there, and no thread is left."""
    before = threading.active_count()
    main_here(monkeypatch, *RUN, "--data", write_shards(tmp_path / "shards"), "--out-dir",
              tmp_path / "run")
    last = tmp_path / "run" / "checkpoint_000006"
    assert str(last) in capsys.readouterr().out
    GPT.from_pretrained(last)
    assert len(load_file(last / "state.safetensors")) > 3
    until = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)  # a thread that has done its work ends a moment later
    assert threading.active_count() <= before


@pytest.mark.parametrize("every", [2, 6])
def test_an_error_of_the_writer_ends_the_run(every, tmp_path, monkeypatch, capsys):
    """At the next checkpoint, or at the end. It is reported once."""
    def full(*args, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nanogpt.checkpoints.write_checkpoint", full)
    said = refusal(train_gpt2.main, *RUN, "--data", write_shards(tmp_path / "shards"), "--out-dir",
                   tmp_path / "run", "--checkpoint-every", every, monkeypatch=monkeypatch,
                   capsys=capsys)
    assert "No space left on device" in said
