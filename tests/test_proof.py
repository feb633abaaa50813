"""The proof runs all of its parts, names those that fail, and reports what it measured."""

import json
import os
import re
import subprocess
import sys
import time

import pytest
import torch
from helpers import ROOT, gpt2_vocabulary_missing

import train_gpt2
from build_nanogpt import cli
from build_nanogpt.__main__ import main as tools
from build_nanogpt.bench.measure import Clock
from build_nanogpt.proof import command, data, ladder, parts, run
from nanogpt.disk import save_file
from nanogpt.report import read_log

CPU = torch.device("cpu")


# -----------------------------------------------------------------------------
# the whole, as it is called


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """All parts on a CPU: (folder, record, what it printed)."""
    folder = tmp_path_factory.mktemp("proof")
    done = subprocess.run(
        [sys.executable, "-m", "build_nanogpt", "proof", "--device", "cpu", "--out", "made"],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    out = folder / "made"
    return out, json.loads((out / "proof.json").read_text()), done.stdout


def test_every_part_is_there(whole):
    out, record, said = whole
    states = {name: part["state"] for name, part in record["parts"].items()}
    assert list(states) == list(command.PARTS)
    assert states.pop("tests") == "skipped" and record["parts"]["tests"]["text"] == "no GPU"
    assert set(states.values()) == {"passed"}
    assert said.splitlines()[-2:] == [
        "passed: run, sampling, hellaswag, memory, muon, ladder", "skipped: tests"]
    for name in command.PARTS:
        assert (out / f"{name}.log").exists()
        assert re.search(rf"^{name} +(passed|skipped) ", said, re.MULTILINE)
    assert not list(out.glob("*.error.txt"))


def test_figures_are_of_this_machine_and_fit_together(whole):
    out, record, _ = whole
    assert record["command"] == "python -m build_nanogpt proof --device=cpu"
    assert record["torch"] == torch.__version__ and record["cores"] == os.cpu_count()
    rows = {name: part["rows"] for name, part in record["parts"].items()}
    assert len(rows["tests"]) >= 4
    [sampling] = rows["sampling"]
    model = train_gpt2.GPT(train_gpt2.GPTConfig(64, 257, 2, 2, 64))
    read = 4 * (model.num_params() - 64 * 64)  # bytes: all but the positions
    assert sampling["share of it"] * sampling["memory, GB/s"] * 1e9 == pytest.approx(
        read * sampling["tokens/s"])
    [hella] = rows["hellaswag"]
    assert hella["examples"] > 20 and hella["examples/s"] == pytest.approx(
        hella["examples"] / hella["s"])
    assert 0 <= hella["right, untrained"] <= 1
    plain, parts, again = rows["memory"]
    assert plain["saved"] == 0 < again["saved"] < 1 and 0.1 < parts["saved"] < 1
    # the logits, in the forward and in the backward pass: not for 1,024 positions, but for 512
    assert plain["MiB"] - parts["MiB"] > 0.9 * 4 * 512 * 8192 / 2**20
    adamw, muon = rows["muon"]
    assert adamw["what"] == "AdamW" and muon["what"].startswith("Muon")
    assert muon["ratio"] == pytest.approx(muon["ms"] / adamw["ms"])


def test_the_ladders_rungs(whole):
    out, record, _ = whole
    rows = record["parts"]["ladder"]["rows"]
    names = ["fp32", "+ TF32", "+ bfloat16", "+ torch.compile", "+ flash attention",
             "+ vocabulary of 320", "+ fused AdamW"]
    assert [row["what"] for row in rows[:7]] == names and rows[3]["note"].startswith("left out")
    rungs = [row for row in rows if "MFU" in row]
    assert len(rungs) == 7 and {row["B"] for row in rungs[:-1]} == {1} and rungs[-1]["B"] > 1
    for row in rungs:
        assert row["tokens/s"] == pytest.approx(1000 * row["B"] * 64 / row["ms"])
        assert row["ratio"] == pytest.approx(row["tokens/s"] / rows[0]["tokens/s"])
        assert row["MFU"] == pytest.approx(row["tokens/s"] / rows[-1]["tokens/s"])
    assert (out / "ladder.png").read_bytes().startswith(b"\x89PNG")


def test_the_run_is_resumed_to_the_bit(whole):
    out, record, _ = whole
    unbroken, resumed, *equal = record["parts"]["run"]["rows"]
    assert unbroken["validation"] < unbroken["validation at first"] - 1  # it learns
    assert resumed["validation"] == unbroken["validation"]
    assert [row["what"].rpartition(" ")[2] for row in equal] == list(run.FILES)
    assert [row["equal"] for row in equal] == ["to the bit", "to the bit"]
    assert f"resumed    | at step {data.SMALL['max_steps'] // 2}" in (
        out / "resumed.txt").read_text()
    said = (out / "run.txt").read_text()
    assert "sample 3:" in said and "hella" in said
    logs = [read_log(out / name / "log.txt") for name in ("run", "resumed")]
    assert all(logs[0][kind] == logs[1][kind] for kind in ("train", "val", "hella"))
    assert not list(out.glob("*/checkpoint_*"))


def test_the_table_holds_the_figures(whole):
    out, record, _ = whole
    text = (out / "README.md").read_text()
    assert record["machine"] in text and record["date"] in text and record["command"] in text
    assert "![ladder](ladder.png)" in text
    for name, part in record["parts"].items():
        assert f"| {name} | {part['state']} | {part['seconds']:,.1f} |" in text
        for row in part["rows"]:
            line = next(line for line in text.splitlines() if line.startswith(f"| {row['what']} |"))
            assert all(command.cell(kind, value) in line for kind, value in row.items())
    assert not re.search(r"\b(nan|inf)\b", text)


# -----------------------------------------------------------------------------
# parts that fail


def fine(config, clock):
    yield {"what": "fine", "ms": 1.5}
    return "well"


def broken(config, clock):
    yield {"what": "before", "ms": 2.5}
    raise ValueError("it does\nnot work")


def crashed(config, clock):
    os.write(1, b"last words")
    os._exit(3)
    yield


def not_finite(config, clock):
    yield {"what": "loss", "value": float("nan")}


def not_here(config, clock):
    raise parts.Skipped("no such thing here")
    yield


def hangs(config, clock):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield {"what": "begun", "ms": 0.5}
    time.sleep(60)


@pytest.fixture
def quick(monkeypatch):
    """Start parts by fork where the system can: no imports to wait for."""
    if hasattr(os, "fork"):
        monkeypatch.setattr(command, "METHOD", "fork")


def test_a_part_that_fails_stops_none_and_is_named(tmp_path, monkeypatch, capsys, quick):
    found = {"broken": broken, "crashed": crashed, "not_finite": not_finite, "not_here": not_here,
             "fine": fine}
    monkeypatch.setattr(command, "PARTS", found)
    with pytest.raises(SystemExit) as stop:
        command.main(command.Config(device="cpu", out=str(tmp_path / "out")))
    assert stop.value.code == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-3:] == ["passed: fine", "skipped: not_here",
                         "failed: broken, crashed, not_finite"]
    parts = json.loads((tmp_path / "out" / "proof.json").read_text())["parts"]
    assert {name: part["text"] for name, part in parts.items()} == {
        "broken": "ValueError: it does not work", "crashed": "its process ended with status 3",
        "not_finite": "RuntimeError: loss: value is nan", "not_here": "no such thing here",
        "fine": "well"}
    assert parts["broken"]["rows"] == [{"what": "before", "ms": 2.5}]
    assert parts["not_finite"]["rows"] == []
    errors = {path.name: path.read_text() for path in (tmp_path / "out").glob("*.error.txt")}
    assert sorted(errors) == [f"{name}.error.txt" for name in ("broken", "crashed", "not_finite")]
    assert "Traceback" in errors["broken.error.txt"] and "last words" in errors["crashed.error.txt"]
    table = (tmp_path / "out" / "README.md").read_text()
    assert "| broken | failed |" in table and "| before | 2.5 |" in table
    assert "## broken" in table and "## not_finite" not in table


def test_a_part_that_hangs_is_cut_off(tmp_path, monkeypatch, quick):
    """Together with every process it has started."""
    monkeypatch.setattr(command, "LEAST", 0)
    monkeypatch.setattr(command, "PARTS", {"hangs": hangs})
    ended = []
    monkeypatch.setattr(command, "end",
                        lambda process, end=command.end: (end(process), ended.append(process)))
    seconds = 1 if hasattr(os, "fork") else 8
    monkeypatch.setattr(command, "MOST", {"hangs": seconds})
    result = command.try_part("hangs", command.Config(device="cpu", out=str(tmp_path)), Clock(1))
    assert (result.state, result.text) == ("failed", f"cut off after {seconds} s")
    assert result.rows == [{"what": "begun", "ms": 0.5}] and not ended[0].is_alive()
    if hasattr(os, "killpg"):
        wait_for_the_end_of_group(ended[0].pid)
    assert "cut off" in (tmp_path / "hangs.error.txt").read_text()


def wait_for_the_end_of_group(pid):
    """The system takes a moment to remove killed processes."""
    import psutil

    def group(process):
        try:
            return os.getpgid(process.pid) if process.status() != psutil.STATUS_ZOMBIE else 0
        except (psutil.Error, OSError):
            return 0

    began = time.monotonic()
    while any(group(process) == pid for process in psutil.process_iter()):
        assert time.monotonic() < began + 10


def test_no_part_begins_when_the_time_is_over(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "work", None)
    command.main(command.Config(device="cpu", out=str(tmp_path / "out"), minutes=0.01))
    assert capsys.readouterr().out.splitlines()[-1] == f"skipped: {', '.join(command.PARTS)}"
    parts = json.loads((tmp_path / "out" / "proof.json").read_text())["parts"]
    assert {part["text"] for part in parts.values()} == {"--minutes 0.01 are over"}


# -----------------------------------------------------------------------------
# what is asked for


def refusal(args, monkeypatch, capsys):
    """The one line with which `python -m build_nanogpt ARGS` is refused; its status is 2."""
    monkeypatch.setattr(sys, "argv", ["build_nanogpt", *map(str, args)])
    with pytest.raises(SystemExit) as stop:
        cli.run(tools)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1, said
    return said


@pytest.mark.parametrize("flags, words", [
    (["--only", "ladders"], "--only ladders: choose from tests, run, "),
    (["--minutes", "0"], "--minutes 0.0: give more than 0"),
    (["--minutes", "nan"], "--minutes nan: give more than 0"),
    (["--device", "tpu"], "--device tpu"),
    (["--data", "nowhere"], "no train shards in nowhere"),
    (["--hellaswag", "nowhere.jsonl"], "no HellaSwag file nowhere.jsonl"),
])
def test_refused_in_one_line(flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert words in refusal(["proof", *flags], monkeypatch, capsys)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_left_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept.txt").write_text("mine")
    line = refusal(["proof", "--out", tmp_path], monkeypatch, capsys)
    assert f"--out {tmp_path} is not empty" in line
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_without_out_each_proof_has_a_name_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "proof-nvidia-h100-80gb", "proof-nvidia-h100-80gb-2", "proof-nvidia-h100-80gb-3":
        folder = command.new_folder(command.Config(), "NVIDIA H100 (80GB)")
        assert folder == tmp_path / "runs" / name
        folder.mkdir(parents=True)
        assert command.new_folder(command.Config(), "NVIDIA H100 (80GB)") == folder  # empty: free
        (folder / "README.md").touch()


def test_the_command_gives_the_figures_again():
    config = command.Config(device="cpu", minutes=3, small=True, only=("muon", "run"),
                            compile=False, out="elsewhere")
    assert command.command_of(config) == ("python -m build_nanogpt proof --device=cpu --minutes=3 "
                                          "--small --compile=False --only muon run")


# -----------------------------------------------------------------------------
# a batch that fits, and the rungs


class Card:
    """A training step on a card with room for `room` sequences."""

    def __init__(self, room, message="CUDA out of memory. Tried to allocate 2 GiB"):
        self.device, self.optimizer, self.room, self.message = CPU, self, room, message
        self.tried = []

    def zero_grad(self):
        pass

    def __call__(self):
        self.tried.append(len(self.x))
        if len(self.x) > self.room:
            raise (torch.OutOfMemoryError if "memory" in self.message else RuntimeError)(
                self.message)
        return 1.0


@pytest.mark.parametrize("room, most, B", [(1, 128, 1), (5, 128, 4), (64, 128, 64), (999, 16, 16)])
def test_the_largest_batch(room, most, B):
    card = Card(room)
    assert parts.largest_B(card, parts.SMALL, most) == B
    assert card.x.shape == card.y.shape == (B, 64) and max(card.tried) <= max(2 * B, 2)
    assert torch.equal(card.x[:, 1:], card.y[:, :-1])


def test_other_errors_are_no_lack_of_memory():
    assert parts.largest_B(Card(3, "CUBLAS_STATUS_ALLOC_FAILED"), parts.SMALL, 8) == 2
    with pytest.raises(RuntimeError, match="no room for a training step of one sequence"):
        parts.largest_B(Card(0), parts.SMALL, 8)
    with pytest.raises(RuntimeError, match="illegal access"):
        parts.largest_B(Card(3, "illegal access"), parts.SMALL, 8)


def test_a_rung_that_fails_leaves_the_others(monkeypatch):
    """A rung whose loss differs from the first rung's fails as well."""
    config = command.Config(device="cpu", small=True)
    original = ladder.rung_step

    def other_numbers(config, choices):
        if "padded" in choices and "fused" not in choices:
            raise RuntimeError("no kernel")
        step = original(config, choices)
        if choices == {"tf32": True}:
            with torch.no_grad():
                step.raw_model.transformer.wte.weight.mul_(3)
        return step

    monkeypatch.setattr(ladder, "rung_step", other_numbers)
    rows, part = [], ladder.ladder(config, Clock(1))
    with pytest.raises(RuntimeError, match=r"failed: \+ TF32, \+ vocabulary of 320$"):
        while True:
            rows.append(next(part))
    notes = {row["what"]: row.get("note", "") for row in rows}
    assert "on the first rung" in notes["+ TF32"] and "no kernel" in notes["+ vocabulary of 320"]
    assert notes["+ fused AdamW"] == "" and "ms" in rows[-1]


# -----------------------------------------------------------------------------
# equal to the bit, or not


def write_run(folder, change=0.0, losses=(3.0, 2.0)):
    """A run's folder with a log and a last checkpoint."""
    checkpoint = folder / "checkpoint_000002"
    checkpoint.mkdir(parents=True)
    save_file({"wte": torch.ones(4, 4) + change}, checkpoint / "model.safetensors")
    save_file({"exp_avg.wte": torch.zeros(4, 4)}, checkpoint / "state.safetensors")
    (folder / "log.txt").write_text("".join(f"{i} train {loss}\n" for i, loss in enumerate(losses)))
    return folder


@pytest.mark.parametrize("change, again, words", [
    (0.0, 0.0, None),
    (2**-20, 2**-19, "two resumed runs differ by 9.54e-07 too: the device is not deterministic"),
    (2**-20, 2**-20, "two resumed runs are equal: resuming is at fault"),
])
def test_a_difference_of_one_bit_is_found(change, again, words, tmp_path, monkeypatch):
    config = command.Config(out=str(tmp_path))
    write_run(tmp_path / "run")
    resumed = write_run(tmp_path / "resumed", change, (3.0, 2.0 + change))
    monkeypatch.setattr(run, "resume", lambda config, flags, name: (
        write_run(tmp_path / name, again), ""))
    rows, compared = [], run.compare(config, [], resumed, Clock(2))
    if not words:
        assert [row["equal"] for row in compared] == ["to the bit", "to the bit"]
        return
    with pytest.raises(RuntimeError) as error:
        while True:
            rows.append(next(compared))
    assert [row.get("equal") for row in rows[:2]] == ["no", "to the bit"]
    assert rows[2] == {"what": "largest difference, in wte", "difference": pytest.approx(2**-20)}
    assert "training losses from step 1 on" in str(error.value) and words in str(error.value)


def test_a_run_that_fails_gives_its_last_line(tmp_path):
    config = command.Config(device="cpu", out=str(tmp_path), small=True)
    flags = [*data.flags_of(config, 4, tmp_path / "run"), "--n-head=3"]
    with pytest.raises(RuntimeError, match=r"status 2: error: n_embd 64 is not a multiple .*run.t"):
        run.train(config, flags, tmp_path / "run.txt")


# -----------------------------------------------------------------------------
# text


def test_ids_of_its_own(tmp_path):
    """Decoding gives the text back, a frequent word is one id, and n is kept to."""
    texts = ["the cat and the dog\n\n  sat", "the end, äöü → the end"]
    pieces = data.own_pieces(texts, n=40)
    assert len(pieces) == len(set(pieces)) == 40 and set(pieces[:2]) == {b"the", b" the"}
    file = tmp_path / "vocabulary.json"
    file.write_text(json.dumps([data.b64encode(piece).decode() for piece in pieces]))
    enc = data.own_tokenizer(file)
    assert enc.n_vocab == 256 + 40 + 1 and enc.eot_token == 296
    for text in [*texts, "unseen: \0 \U0001f600 <|endoftext|>"]:
        assert enc.decode(enc.encode_ordinary(text)) == text
    assert enc.encode_ordinary("so the") == [ord("s"), ord("o"), 256 + pieces.index(b" the")]


def test_gpt2_is_not_asked_of_the_network():
    assert data.gpt2_is_cached() == (not gpt2_vocabulary_missing())


@pytest.mark.parametrize("text, words", [
    ("{", "is not a manifest"), ('{"tokenizer": "own"}', "tokenizer own: name others")])
def test_shards_of_an_unknown_tokenizer(text, words, tmp_path):
    assert data.named_tokenizer(tmp_path) == "gpt2"
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(cli.UserError, match=words):
        data.named_tokenizer(tmp_path)
