"""A checkpoint is complete or absent, and holds all that training needs to resume to the bit."""

import json
import time

import pytest
import torch
from helpers import (
    CPU,
    TINY,
    lively_gpt,
    main_here,
    start,
    stream_of,
    text_tokens,
    training,
    write_shards,
)
from safetensors.torch import load_file

import train_gpt2
from nanogpt.checkpoints import save_checkpoint
from nanogpt.disk import save_file, whole
from nanogpt.report import Log, read_log, save_curves
from train_gpt2 import GPT, DataLoader, configure_optimizer


def begun(model, scaler=None):
    """A Training of `model`, before its first step."""
    return training(model, DataLoader(stream_of(text_tokens(5000)), 4, 16), 2, scaler=scaler)


def take_steps(t, n):
    """What `n` updates of the weights return."""
    t.step += n
    return [train_gpt2.train_step(t, 1e-3) for _ in range(n)]


def read_state(folder):
    """What state.json and state.safetensors of a checkpoint hold."""
    facts = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return facts, load_file(folder / "state.safetensors")


def put_back(t, tensors):
    for name, p in t.net.named_parameters():
        t.optimizer.state[p] = {kind: tensors[f"{kind}.{name}"].clone()
                                for kind in ("step", "exp_avg", "exp_avg_sq")}


def test_state_holds_all_that_training_needs(tmp_path):
    """Rebuilt from the folder alone, a run takes the same next steps, to the bit."""
    t = begun(lively_gpt())
    take_steps(t, 3)
    save_checkpoint(tmp_path / "c", t, train_gpt2.parse_args(TINY))
    drawn = torch.rand(5)
    expected = take_steps(t, 3)

    facts, tensors = read_state(tmp_path / "c")
    assert facts["step"] == 3 and facts["config"]["n_embd"] == 32
    t = begun(GPT.from_pretrained(tmp_path / "c"))
    put_back(t, tensors)
    t.loader.position = facts["position"]
    assert take_steps(t, 3) == expected
    rng = next(tensors[name] for name in ("rng", "rng.cpu") if name in tensors)
    torch.set_rng_state(rng.flatten())
    assert torch.equal(torch.rand(5), drawn)


def test_the_scaler_is_saved_too(tmp_path):
    """float16's loss scale takes hundreds of steps to find: it must not start over."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**7)
    t = begun(lively_gpt(), scaler)
    take_steps(t, 1)
    save_checkpoint(tmp_path / "c", t, train_gpt2.parse_args(TINY))
    facts, _ = read_state(tmp_path / "c")
    assert facts["scaler"] == scaler.state_dict() and facts["scaler"]["scale"] == 2.0**7


@pytest.mark.slow
def test_a_run_goes_on_to_the_bit_from_its_folder(tmp_path, monkeypatch):
    """Three steps from checkpoint 2, made by hand, have the losses that the run itself logged."""
    data = write_shards(tmp_path / "shards")
    main_here(monkeypatch, *TINY, "--data", data, "--out-dir", tmp_path / "run", "--max-steps", 5,
              "--checkpoint-every", 2, "--val-tokens", 512, "--sample-tokens", 0)
    facts, tensors = read_state(tmp_path / "run" / "checkpoint_000002")
    model = GPT.from_pretrained(tmp_path / "run" / "checkpoint_000002")
    config = train_gpt2.parse_args([*TINY, "--data", str(data)])
    train, _ = train_gpt2.load_data(config)
    loader = DataLoader(train, config.B, config.T, position=facts["position"])
    t = training(model, loader, 2, configure_optimizer(model, config.weight_decay, config.max_lr))
    put_back(t, tensors)
    losses = [train_gpt2.train_step(t, train_gpt2.get_lr(
        step, config.max_lr, config.final_lr, config.warmup_steps, 5))[0] for step in (2, 3, 4)]
    log = read_log(tmp_path / "run" / "log.txt")
    assert log["train"][1][2:] == losses
    assert facts["step"] == 2 and facts["position"] == 2 * 512
    last = GPT.from_pretrained(tmp_path / "run" / "checkpoint_000005")
    for name, tensor in model.state_dict().items():
        assert torch.equal(last.state_dict()[name], tensor), name


@pytest.mark.slow
def test_compiled_or_wrapped_the_names_are_plain(tmp_path):
    """The module itself is saved: no `_orig_mod.` or `module.` in the names, under two ranks."""
    folder = write_shards(tmp_path / "shards")
    done = start("train_gpt2.py", *TINY, "--data", folder, "--out-dir", tmp_path / "run",
                 "--max-steps", 4, "--checkpoint-every", 2, "--eval-every", 4, "--sample-tokens",
                 0, ranks=2)
    assert done.returncode == 0, done.stderr
    folders = sorted(path.name for path in (tmp_path / "run").glob("[!.]*"))
    assert folders == ["checkpoint_000002", "checkpoint_000004", "config.toml", "curves.png",
                       "log.txt"]
    for name in folders[:2]:
        files = {path.name for path in (tmp_path / "run" / name).iterdir()}
        assert files >= {"config.json", "model.safetensors", "state.json", "state.safetensors"}
    model = GPT.from_pretrained(tmp_path / "run" / "checkpoint_000004")
    # the logged validation loss is this model's
    config = train_gpt2.parse_args([*TINY, "--data", str(folder)])
    _, val = train_gpt2.load_data(config)
    loss = train_gpt2.validate(model, val, config.val_tokens, 8, 32, CPU)
    log = read_log(tmp_path / "run" / "log.txt")
    assert log["val"][1][-1] == pytest.approx(loss, abs=1e-6)


def test_whole_or_absent(tmp_path):
    """A file or folder appears when the block ends; an error leaves what was there before."""
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "part").write_text("old")
    for error in True, False:
        for name in "file", "folder":
            try:
                with whole(tmp_path / name) as path:
                    if name == "folder":
                        path.mkdir()
                        path = path / "part"
                    path.write_text("new")
                    if error:
                        raise RuntimeError
            except RuntimeError:
                pass
        text = "old" if error else "new"
        assert (tmp_path / "file").read_text() == text
        assert (tmp_path / "folder" / "part").read_text() == text
        assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_folder_takes_the_place_of_a_file(tmp_path):
    (tmp_path / "name").write_text("a file")
    with whole(tmp_path / "name") as path:
        path.mkdir()
    assert (tmp_path / "name").is_dir() and len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    """A half-written folder of an earlier process does not mix with the new one's files."""
    (tmp_path / ".folder.tmp").mkdir()
    (tmp_path / ".folder.tmp" / "half").write_text("old")
    with whole(tmp_path / "folder") as path:
        path.mkdir()
        (path / "part").write_text("new")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["part"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("fails", ["weights", "state"])
def test_half_a_checkpoint_is_none(fails, tmp_path, monkeypatch):
    """The disk fills up while the weights or the state are written: no folder remains."""
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    real, number = save_file, {"weights": 1, "state": 2}[fails]
    calls = iter(range(1, 3))
    for room in "weights", "checkpoints":
        monkeypatch.setattr(f"nanogpt.{room}.save_file", lambda *args, **more: (
            full() if next(calls) == number else real(*args, **more)))
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path / "c", begun(lively_gpt()), train_gpt2.parse_args(TINY))
    assert list(tmp_path.iterdir()) == []


def test_the_picture_is_whole_or_absent(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    log = Log(tmp_path / "log.txt", master_process=True)
    log.note(config={"vocab_size": 257, "hellaswag": "none"})

    def half(figure, path, **kwargs):
        with open(path, "wb") as file:
            file.write(b"half a picture")
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OSError, match="No space"):
        save_curves(log.path, tmp_path / "curves.png")
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt"]


def test_dt_is_training_alone(tmp_path, monkeypatch, capsys):
    """The clock moves only by 1 s per training step, 1,000 s per evaluation, 500 s per save."""
    clock = [0.0]

    def advancing(function, seconds):
        def call(*args, **kwargs):
            clock[0] += seconds
            return function(*args, **kwargs)
        return call

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(train_gpt2, "train_step", advancing(train_gpt2.train_step, 1.0))
    monkeypatch.setattr(train_gpt2, "validate", advancing(train_gpt2.validate, 1000.0))
    monkeypatch.setattr("nanogpt.checkpoints.save_checkpoint",
                        advancing(lambda *args, **more: None, 500.0))
    main_here(monkeypatch, *TINY, "--data", write_shards(tmp_path / "shards"), "--out-dir",
              tmp_path / "run", "--max-steps", 4, "--eval-every", 2, "--checkpoint-every", 1,
              "--val-tokens", 512, "--sample-tokens", 0)
    said = capsys.readouterr().out
    assert said.count("| dt 1000 ms | 512 tok/sec") == 4
    assert said.count("evaluated in 1000.0 s") == 3
