"""N steps, a stop and M steps equal N + M steps: same losses and weights, to the bit."""

import shutil

import pytest
import torch
from helpers import TINY, main_here, refusal, start, write_shards
from safetensors.torch import load_file

import train_gpt2
from nanogpt.checkpoints import find_checkpoints
from nanogpt.report import read_log

pytestmark = pytest.mark.slow

RUN = [*TINY, "--max-steps", 12, "--eval-every", 4, "--val-tokens", 512, "--checkpoint-every", 3]


def losses(folder):
    """step -> training loss; if a step was logged twice, the later line counts."""
    lines = (line.split() for line in (folder / "log.txt").read_text().splitlines())
    return {int(step): value for step, kind, value in (x for x in lines if x[0] != "#")
            if kind == "train"}


def same_weights(a, b):
    a, b = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run of 12 steps in one go; its epoch of 9 steps ends within it, and so do shards."""
    folder = tmp_path_factory.mktemp("unbroken")
    data = write_shards(folder / "shards", n_train=4900, n_val=1000, shards=3)
    done = start("train_gpt2.py", *RUN, "--data", data, "--shuffle", "--out-dir", folder / "run")
    assert done.returncode == 0, done.stderr
    return folder


def stopped_at(unbroken, folder, step):
    """A copy of the run as if it had been killed after its checkpoint of this step."""
    shutil.copytree(unbroken / "run", folder)
    for checkpoint in folder.glob("checkpoint_*"):
        if int(checkpoint.name[-6:]) > step:
            shutil.rmtree(checkpoint)
    return folder


@pytest.mark.parametrize("step", [3, 6, 9])
def test_it_goes_on_to_the_bit(step, unbroken, tmp_path):
    """From any checkpoint, across the ends of shards and of the epoch, between evaluations."""
    run = stopped_at(unbroken, tmp_path / "run", step)
    done = start("train_gpt2.py", *RUN, "--data", unbroken / "shards", "--shuffle", "--out-dir",
                 run, "--resume")
    assert done.returncode == 0, done.stderr
    assert f"at step {step} of" in done.stdout
    steps = [int(line[5:10]) for line in done.stdout.splitlines() if " | loss " in line]
    assert steps == list(range(step, 12))
    assert f"step {step:5d} | val" not in done.stdout, "evaluated twice"
    assert losses(run) == losses(unbroken / "run")
    assert same_weights(run / "checkpoint_000012", unbroken / "run" / "checkpoint_000012")


def test_without_a_checkpoint_it_starts_anew(tmp_path):
    """So one command line serves the first start and every restart."""
    data = write_shards(tmp_path / "shards")
    done = start("train_gpt2.py", *TINY, "--data", data, "--max-steps", 1, "--val-tokens", 512,
                 "--sample-tokens", 0, "--out-dir", tmp_path / "run", "--resume")
    assert done.returncode == 0, done.stderr
    assert "resumed" not in done.stdout
    assert read_log(tmp_path / "run" / "log.txt")["train"][0] == [0]


def test_a_finished_run_has_nothing_to_do(unbroken, tmp_path, monkeypatch, capsys):
    run = stopped_at(unbroken, tmp_path / "run", 12)
    before = (run / "log.txt").read_text()
    main_here(monkeypatch, *RUN, "--data", unbroken / "shards", "--shuffle", "--out-dir", run,
              "--resume")
    said = capsys.readouterr().out
    assert "at step 12 of" in said and "| loss" not in said and "checkpoint_000012" in said
    assert losses(run) == losses(unbroken / "run") and before in (run / "log.txt").read_text()


def test_other_names_are_no_checkpoints(tmp_path):
    """Copies that someone has put aside; the third name has an Arabic digit."""
    for name in "checkpoint_000003", "checkpoint_3", "checkpoint_00000\u0663", "checkpoint_000004x":
        (tmp_path / name).mkdir()
    assert find_checkpoints(tmp_path) == [(3, tmp_path / "checkpoint_000003")]


def test_the_scale_of_the_loss_goes_on(tmp_path, monkeypatch):
    """float16: starting again at a scale of 65,536 would skip updates that the run made."""
    data = write_shards(tmp_path / "shards")
    flags = [*TINY, "--data", data, "--dtype", "float16", "--val-tokens", 512, "--sample-tokens", 0,
             "--max-steps", 4, "--checkpoint-every", 2, "--out-dir", tmp_path / "run"]
    scalers = []
    original = torch.amp.GradScaler

    def small(*args, **more):
        scalers.append(original(*args, **more, init_scale=8.0 * 2**len(scalers)))
        return scalers[-1]

    monkeypatch.setattr(torch.amp, "GradScaler", small)
    main_here(monkeypatch, *flags)
    main_here(monkeypatch, *flags, "--resume")
    assert scalers[0].get_scale() == scalers[1].get_scale() == 8.0


@pytest.mark.parametrize("what", ["gone", "cut"])
def test_a_checkpoint_that_is_taken_away_while_it_is_read(what, tmp_path, monkeypatch, capsys):
    """Somebody moves it, or copies over it, between state.json and the tensors."""
    args = [*TINY, "--data", write_shards(tmp_path / "shards"), "--out-dir", tmp_path / "run",
            "--max-steps", 2, "--val-tokens", 512, "--sample-tokens", 0]
    main_here(monkeypatch, *args)
    prepare = train_gpt2.prepare_training

    def too_late(*given):
        weights = tmp_path / "run" / "checkpoint_000002" / "model.safetensors"
        if what == "gone":
            weights.unlink()
        else:
            weights.write_bytes(weights.read_bytes()[:-9])
        return prepare(*given)

    monkeypatch.setattr(train_gpt2, "prepare_training", too_late)
    said = refusal(train_gpt2.main, *args, "--resume", monkeypatch=monkeypatch, capsys=capsys)
    assert f"cannot read {tmp_path / 'run' / 'checkpoint_000002'} (" in said and "--resume" in said
