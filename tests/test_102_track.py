"""--track: TensorBoard or Weights & Biases gets what the log gets, and training never needs it."""

import importlib.util
import io
import json
import re
import shutil
import sys
import types

import pytest
from helpers import TINY, main_here, refusal, write_shards

import train_gpt2
from nanogpt.common import UserError
from nanogpt.report import Log
from nanogpt.terminal import Stream
from nanogpt.track import Tracker

RUN = [*TINY, "--data", "shards", "--out-dir", "run", "--max-steps", 6, "--eval-every", 2,
       "--val-tokens", 512, "--sample-tokens", 0, "--checkpoint-every", 2]
MISSING = {kind: "" if importlib.util.find_spec(kind) else f"{kind} is not installed"
           for kind in ("tensorboard", "wandb")}


class Fake:
    """Both packages: they remember what they were told, and fail where a test says so."""

    def __init__(self):
        self.begun, self.values, self.closed, self.fails_at = [], [], 0, None

    def begin(self, **facts):
        self.begun.append(facts)
        if self.fails_at == "begin":
            raise RuntimeError("no\nnetwork")
        return self

    def SummaryWriter(self, log_dir, **facts):
        return self.begin(log_dir=str(log_dir), **facts)

    def add_scalar(self, kind, value, step):
        if self.fails_at == len(self.values):
            raise OSError("disk full")
        self.values.append((step, kind, value))

    def log(self, values):
        step = values.pop("step")
        [(kind, value)] = values.items()
        self.add_scalar(kind, value, step)

    def define_metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "step")

    def close(self):
        self.closed += 1
        if self.fails_at == "close":
            raise OSError("disk full")

    finish = close


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """One Fake in place of both packages, which count as installed. In a folder with shards."""
    fake, find_spec = Fake(), importlib.util.find_spec
    installed = types.SimpleNamespace(origin="somewhere/__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more:
                        installed if name in MISSING else find_spec(name, *more))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(
        init=fake.begin, Settings=lambda **facts: facts))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    monkeypatch.setattr("threading.excepthook", sys.excepthook)  # restored afterwards
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    write_shards(tmp_path / "shards")
    return fake


def logged(path="run/log.txt"):
    """The log's values, and its notes."""
    lines = open(path, encoding="utf-8").read().splitlines()
    values = [line.split() for line in lines if line[0] != "#"]
    return ([(int(step), kind, float(value)) for step, kind, value in values],
            [json.loads(line[2:]) for line in lines if line[0] == "#"])


@pytest.mark.parametrize("kind", MISSING)
def test_every_value_of_the_log_is_handed_on(kind, fake, monkeypatch):
    main_here(monkeypatch, *RUN, "--track", kind)
    values, _ = logged()
    assert fake.values == values and len(values) == 6 + 4
    assert len(fake.begun) == fake.closed == 1


def test_what_weights_and_biases_is_told(fake, monkeypatch):
    main_here(monkeypatch, *RUN, "--track", "wandb")
    [begun], (header, *_) = fake.begun, logged()[1]
    assert begun["config"] == header["config"] and begun["config"]["max_steps"] == 6
    assert (begun["project"], begun["name"], begun["dir"]) == ("nanogpt", "run", "run")
    assert begun["id"] == header["wandb"] and re.fullmatch(r"\w{8}", begun["id"])
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    main_here(monkeypatch, *RUN, "--track", "wandb")  # another run in the same folder
    assert fake.begun[1]["project"] == "mine" and fake.begun[1]["id"] != begun["id"]


def resume(monkeypatch, *flags):
    """Lose the last checkpoint, as a killed run does, and resume from step 4."""
    shutil.rmtree("run/checkpoint_000006")
    main_here(monkeypatch, *RUN, "--resume", *flags)


def test_a_resumed_run_continues_the_same_one(fake, monkeypatch):
    """Also one that was tracked only from its first resume on, and not an earlier run's."""
    main_here(monkeypatch, *RUN, "--track", "wandb")
    resume(monkeypatch, "--track", "wandb")
    first, second = fake.begun
    assert second["id"] == first["id"] and second["resume"] == "allow"
    assert logged()[1][-1]["wandb"] == first["id"]
    main_here(monkeypatch, *RUN)  # a new run, not tracked
    resume(monkeypatch, "--track", "wandb")
    main_here(monkeypatch, *RUN, "--resume", "--max-steps", 8, "--track", "wandb")
    _, _, third, fourth = fake.begun
    assert first["id"] != third["id"] == fourth["id"]


def test_tensorboard_forgets_what_comes_again(fake, monkeypatch):
    """The validation loss of step 4 was logged before the checkpoint, and does not come again."""
    main_here(monkeypatch, *RUN, "--track", "tensorboard")
    fake.values.clear()
    resume(monkeypatch, "--track", "tensorboard")
    assert fake.begun == [{"log_dir": "run/tensorboard", "purge_step": 0},
                          {"log_dir": "run/tensorboard", "purge_step": 5}]
    assert [(step, kind) for step, kind, _ in fake.values] == [
        (4, "train"), (5, "train"), (6, "val")]


@pytest.mark.parametrize("kind", MISSING)
@pytest.mark.parametrize("fails_at, reason", [
    ("begin", "RuntimeError: no network"), (3, "OSError: disk full"),
    ("close", "OSError: disk full")])
def test_when_it_fails_training_goes_on(fails_at, reason, kind, fake, monkeypatch, capsys):
    """One line says so, and nothing is asked of it again; the log is whole."""
    main_here(monkeypatch, *RUN)
    expected, _ = logged()
    shutil.rmtree("run")
    fake.fails_at = fails_at
    capsys.readouterr()
    main_here(monkeypatch, *RUN, "--track", kind)
    said = [line for line in capsys.readouterr().out.splitlines() if "--track" in line]
    assert said == [f"--track {kind} failed ({reason}): the run continues without it"]
    assert logged()[0] == expected
    assert len(fake.values) == {"begin": 0, 3: 3, "close": 10}[fails_at]
    assert fake.closed == (fails_at == "close")


@pytest.mark.parametrize("kind", MISSING)
def test_a_package_that_is_missing_is_named_at_the_start(kind, tmp_path, monkeypatch, capsys):
    """Also where a folder of that name lies, as wandb leaves one, which Python would import."""
    find_spec = importlib.util.find_spec
    folder = types.SimpleNamespace(origin=None)
    monkeypatch.chdir(tmp_path)
    write_shards(tmp_path / "shards")
    for found in None, folder:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more, found=found:
                            found if name == kind else find_spec(name, *more))
        said = refusal(train_gpt2.main, *RUN, "--track", kind, monkeypatch=monkeypatch,
                       capsys=capsys)
        assert f"--track {kind} is not installed: run pip install {kind}" in said
        assert not (tmp_path / "run").exists()


def test_a_folder_without_a_package_has_no_origin(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UserError, match="pip install wandb"):
        Tracker("wandb")


def test_only_the_master_tracks(fake, tmp_path):
    assert Log(tmp_path / "log.txt", True, "wandb").tracker.kind == "wandb"
    log = Log(tmp_path / "log.txt", False, "wandb")
    log.value(0, "train", 1.0)
    assert log.tracker.kind == "none" and log.tracker.begin(None, None, "") == {}
    assert fake.begun == fake.values == []


def test_a_stream_is_flushed_after_somebody_replaced_its_write():
    """wandb does, to see what is printed, and its function takes a text and nothing else."""
    below = io.StringIO()
    stream = Stream(below)
    write = stream.write
    stream.write = lambda text: write(text)
    stream.write("a")
    stream.flush()
    assert below.getvalue() == "a"


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING["tensorboard"]), reason=MISSING["tensorboard"])
def test_tensorboard_itself(tmp_path, monkeypatch):
    """What it shows of a run that was killed after its checkpoint, and resumed."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr("threading.excepthook", sys.excepthook)
    monkeypatch.chdir(tmp_path)
    write_shards(tmp_path / "shards")
    main_here(monkeypatch, *RUN, "--track", "tensorboard")
    resume(monkeypatch, "--track", "tensorboard")
    shown = EventAccumulator("run/tensorboard").Reload()
    values, _ = logged()
    for kind in "train", "val":
        found = {(event.step, kind): event.value for event in shown.Scalars(kind)}
        assert found == pytest.approx(  # they are float32
            {(step, kind): value for step, k, value in values if k == kind}, rel=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING["wandb"]), reason=MISSING["wandb"])
def test_weights_and_biases_itself(tmp_path, monkeypatch):
    """Offline, in folders that `wandb sync` uploads to the same run."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    write_shards(tmp_path / "shards")
    main_here(monkeypatch, *RUN, "--track", "wandb")
    import wandb

    wandb.teardown()  # as at the end of a program: its process has written all
    run_id = logged()[1][0]["wandb"]
    [kept] = tmp_path.glob(f"run/wandb/offline-run-*-{run_id}/run-{run_id}.wandb")
    for _, _, value in logged()[0]:
        assert repr(value).encode() in kept.read_bytes()
    assert [path.name for path in tmp_path.iterdir()].count("wandb") == 0
