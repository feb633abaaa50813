"""The benchmark runs, compares like with like, and leaves the program as it was."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers import (
    ROOT, four_endings, gpt2_vocabulary_missing, lively_gpt, make_documents, write_jsonl,
    write_parquet,
)
from torch.utils.flop_counter import FlopCounterMode

import hellaswag
import train_gpt2
from build_nanogpt.bench import growth, ladder
from build_nanogpt.bench import measure as measuring
from build_nanogpt.bench.apart import Apart
from build_nanogpt.bench.command import Config, check, main
from build_nanogpt.bench.errors import program_errors
from build_nanogpt.bench.measure import Clock, measure, seconds_of
from build_nanogpt.bench.serve import packed_flops
from build_nanogpt.bench.train import Variant, chosen
from build_nanogpt.bench.variants import as_in_a_run, variant, written_out_attention
from build_nanogpt.cli import UserError, parse
from nanogpt import common
from nanogpt.report import flops_per_token
from nanogpt.tokenizer import get_tokenizer

SMALL = ["--n-layer", "1", "--n-head", "2", "--n-embd", "32", "--vocab-size", "257", "--B", "2",
         "--T", "32", "--repeats", "3", "--device", "cpu"]


def bench(*args, cwd, **env):
    """In a process of its own, as it is called."""
    return subprocess.run([sys.executable, "-m", "build_nanogpt", *args], cwd=cwd,
                          env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1", **env},
                          capture_output=True, text=True)


@pytest.fixture(autouse=True)
def nobody_is_left_out(monkeypatch):
    """By chance, on a busy machine; how that is decided has a test of its own."""
    monkeypatch.setattr(measuring, "FAR_BEHIND", 1e9)


def configured(*args):
    return parse(Config(), [*SMALL, *map(str, args)], "bench", "")


def rows_of(what, *args, folder):
    """The record of a run in this process, the shortest that there is."""
    record = folder / "bench.json"
    main(configured("--repeats", 1, what, *args, "--json", record))  # prints it too, as a line
    return json.loads(record.read_text())["rows"]


def variants_in(rows, said):
    """The variants' names; each has a line of its own in what was printed."""
    names = [row["variant"] for row in rows]
    for name in names:
        assert sum(line.startswith(f"  {name} ") for line in said.splitlines()) == 1, name
    return names


def test_tables_and_record(tmp_path):
    done = bench("bench", *SMALL, "--json", tmp_path / "bench.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "bench.json").read_text())
    rows, left_out = record["rows"], record["left_out"]
    if left_out:
        pytest.skip(f"a busy machine: {left_out}")
    assert json.loads(done.stdout.splitlines()[-1]) == record
    assert record["machine"] in done.stdout and record["cores"] == os.cpu_count()
    assert record["torch"] == torch.__version__ and record["taken_away_by"] == {}
    assert [row["variant"] for row in rows] == [
        "written-out attention", "flash attention", "a loop over the parameters", "foreach",
        "fused"]
    for row in rows:
        assert row["ms"] > 0 and f"{row['variant']:34s} {row['ms']:10.1f} ms" in done.stdout
    assert rows[0]["ratio"] == rows[2]["ratio"] == 1
    assert rows[1]["ratio"] == pytest.approx(rows[0]["ms"] / rows[1]["ms"])


def choices_now():
    return {"loss_rows": train_gpt2.GPT.loss_rows, "recompute": train_gpt2.GPT.recompute,
            "flash": train_gpt2.CausalSelfAttention.forward is not written_out_attention,
            "tf32": torch.get_float32_matmul_precision() == "high"}


def test_variants_compute_the_same_and_are_taken_back():
    model = lively_gpt().double()
    idx = torch.randint(257, (2, 16))
    before, (_, expected) = choices_now(), model(idx, idx)
    for choice, value in {"flash": False, "tf32": True, "loss_rows": 8, "recompute": True}.items():
        with variant(**{choice: value}):
            standard = {"loss_rows": 0, "recompute": False, "flash": True,
                        "tf32": torch.cuda.is_available()}
            assert choices_now() == standard | {choice: value}
            torch.testing.assert_close(model(idx, idx)[1], expected, atol=1e-12, rtol=0)
        assert choices_now() == before


def test_a_network_is_as_a_run_has_it(monkeypatch):
    """On a CPU with its libraries, on a GPU padded."""
    onednn = {"forward": "onednn", "backward": "plain", "few rows": "inner"}
    monkeypatch.setattr("build_nanogpt.bench.variants.try_products", lambda model, rows: onednn)
    model = lively_gpt()
    assert as_in_a_run(model, torch.device("cpu"), 64) == onednn
    assert model.lm_head.products == onednn and model.vocab_multiple == 1
    model = lively_gpt()
    assert set(as_in_a_run(model, torch.device("cpu"), 64, "plain").values()) == {"plain"}
    assert as_in_a_run(model, torch.device("cuda"), 64) == {} and model.vocab_multiple == 64


@pytest.mark.parametrize("error, kind, words", [
    (common.UserError("give more"), UserError, "^give more$"),
    (torch.OutOfMemoryError("CUDA out of memory"), UserError, "choose smaller sizes"),
    (RuntimeError("shapes differ"), RuntimeError, "^shapes differ$")])
def test_the_programs_errors(error, kind, words):
    """What leaves a command is the tools' UserError, or a fault with its traceback."""
    with pytest.raises(kind, match=words), program_errors():
        raise error


# -----------------------------------------------------------------------------
# a benchmark ends


def test_what_is_far_behind_is_left_out_by_name(monkeypatch, capsys):
    monkeypatch.setattr(measuring, "FAR_BEHIND", 10)
    clock = Clock(1)
    seconds = {"a": [1.0], "b": [10.0], "c": [25.0, 26.0], "busy": [30.0, 2.0],
               "ours": [99.0, 98.0]}
    pieces = {name: lambda name=name: seconds[name].pop(0) for name in seconds}
    assert clock.far_behind(pieces) == ["a", "b", "busy", "ours"]
    assert clock.left_out == {"c": "a small piece took 25 times as long as with 'a'"}
    assert capsys.readouterr().out == f"left out: c: {clock.left_out['c']}\n"


def test_a_small_piece_is_small():
    """Also of a network for which a whole step would take minutes."""
    config = check(Config("train", vocab_size=50257, n_layer=48, n_embd=64, n_head=2, T=4096))
    assert 0 < Variant(config, "cpu", "ours", {}).piece() < 10


class Time:
    """A clock that moves when something is said to take time."""

    now = 0.0

    def perf_counter(self):
        return self.now

    def spend(self, seconds):
        self.now += seconds


@pytest.fixture
def time(monkeypatch):
    monkeypatch.setattr(measuring, "time", Time())
    return measuring.time


@pytest.mark.parametrize("first, later, calls", [
    (0.3, 0.0625, 13), (0.3, 0.015625, 31), (0.6, 0.6, 2), (2.5, 0.1, 1)])
def test_seconds_of_a_piece(first, later, calls, time):
    """The least after the first call, which allocates: a second of calls, thirty, or one."""
    seconds = [first, *[later] * 40]
    found = seconds_of(lambda: time.spend(seconds.pop(0)), torch.device("cpu"))
    assert found == pytest.approx(later if calls > 1 else first) and len(seconds) == 41 - calls


def test_repeats_stop_when_the_time_is_over(time, capsys):
    """Before a round that would not fit into what is left."""
    calls, config = [], check(configured("--repeats", 50, "--minutes", 0.01))
    medians = measure({"a": lambda: (calls.append(1), time.spend(0.25))}, config,
                      torch.device("cpu"), Clock(0.01), warm=True)
    assert len(calls) == 2 and medians == {"a": 250}
    assert "2 of 50 repeats: --minutes 0.01 are over" in capsys.readouterr().out


def test_points_that_do_not_fit_are_left_out(tmp_path, capsys):
    rows = rows_of("growth", "--try-T", 16, "--try-vocab-size", "--try-n-layer", 10**6, "--try-B",
                   folder=tmp_path)
    assert [row["variant"] for row in rows] == ["T=16"]
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(record["left_out"]) == ["n_layer=1000000"]
    assert "--minutes 9.0 leave" in record["left_out"]["n_layer=1000000"]


@pytest.mark.parametrize("args, words", [
    (["dance"], "no command 'dance': choose"), (["bnech"], "(did you mean bench?)")])
def test_bad_input_is_one_line(args, words, tmp_path):
    done = bench(*args, cwd=tmp_path)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1


def test_alone_it_says_what_there_is(tmp_path):
    done = bench(cwd=tmp_path)
    assert done.returncode == 2 and "  bench     measure" in done.stdout and not done.stderr


def test_nobody_reads_the_rest(tmp_path):
    """`| head -1` closes the pipe: no error, no traceback."""
    done = subprocess.run(f"{sys.executable} -m build_nanogpt --help | head -1", shell=True,
                          cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.startswith("usage:")


def test_help(tmp_path):
    assert "bench" in bench("--help", cwd=tmp_path).stdout
    assert "--repeats" in bench("bench", "--help", cwd=tmp_path).stdout


def test_what_saving_costs(tmp_path):
    """The stall is a part of the whole; in the background it is the copy alone."""
    none, at_once, background = rows_of("choices", "--saving", "--steps", 20, "--folder", tmp_path,
                                        folder=tmp_path)
    assert none["stall_ms"] == 0 == none["extra_ms"]
    assert at_once["stall_ms"] > 0 and background["stall_ms"] > 0
    for row in at_once, background:
        assert row["stall_ms"] < row["ms"]
        assert row["extra_ms"] == pytest.approx(row["ms"] - none["ms"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json"]


# -----------------------------------------------------------------------------
# beside the relatives

CLONE = """
from dataclasses import dataclass

import torch

print("of no interest")


@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    MORE


class GPT(__import__("train_gpt2").GPT):
    def __init__(self, config):
        print("of no interest")
        super().__init__(__import__("train_gpt2").GPTConfig(
            config.block_size, config.vocab_size, config.n_layer, config.n_head, config.n_embd))
        assert getattr(config, "dropout", 0.0) == 0.0 and getattr(config, "bias", True)

    def forward(self, idx, targets=None):
        logits, loss = super().forward(idx, targets)
        return logits, loss if targets is None else loss + WRONG

    def configure_optimizers(self, weight_decay, learning_rate, BETAS device_type):
        fused = device_type == "cuda"
        return torch.optim.AdamW(self.parameters(), lr=learning_rate, fused=fused)
"""


def clones(folder, wrong=0.0):
    """A stand-in for both repositories: the second's script trains when it is imported."""
    for name in "nanoGPT", "build-nanogpt":
        (folder / name).mkdir(parents=True)
    text = CLONE.replace("WRONG", str(wrong))
    (folder / "nanoGPT" / "model.py").write_text(
        text.replace("MORE", "dropout: float = 0.1; bias: bool = False").replace("BETAS", "betas,"))
    script = text.replace("MORE", "").replace("BETAS", "").replace(
        "import torch", "import torch\nfrom hellaswag import render_example")
    (folder / "build-nanogpt" / "train_gpt2.py").write_text(script + "\nraise RuntimeError\n")
    (folder / "build-nanogpt" / "hellaswag.py").write_text("raise RuntimeError")
    return folder


class Here:
    """A variant in this process, for speed."""

    def __init__(self, module, name, *args):
        self.variant = Variant(*args)

    def __call__(self, method="whole"):
        return getattr(self.variant, method)()

    def end(self):
        pass


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr("build_nanogpt.bench.train.Apart", Here)


def test_a_process_apart():
    """Answers, and what it raises, cross over; that it was killed is said."""
    actions = [Apart("fractions", "Fraction", 2, 8),
               Apart("build_nanogpt.lecture.series", "read_series", "nowhere"),
               Apart("json", "loads", "{"), Apart("os", "_exit", 3)]
    try:
        assert str(actions[0]("conjugate")) == str(actions[0]("__pos__")) == "1/4"
        for action, kind, words in zip(actions[1:], (UserError, RuntimeError, UserError), (
                "no steps in nowhere", "Expecting property name", "was killed"), strict=True):
            with pytest.raises(kind, match=words):
                action()
    finally:
        for action in actions:
            action.end()


def test_a_whole_step_beside_the_relatives(here, tmp_path, capsys):
    rows = rows_of("train", "--relatives", clones(tmp_path / "clones"), "--grad-accum", 2,
                   "--no-compile", folder=tmp_path)
    said = capsys.readouterr().out
    assert "interest" not in said
    assert variants_in(rows, said) == [
        "transformers", "nanoGPT", "nanoGPT, fused AdamW", "build-nanogpt",
        "build-nanogpt, fused AdamW",
        "ours, plain products, memory handed back", "ours, plain products", "ours",
        "ours, 512 positions' logits at a time", "ours, blocks computed again", "ours, Muon",
        "ours, products in bfloat16"]
    best = min(rows[:5], key=lambda row: row["ms"])
    assert f"ratios to {best['variant']}" in said
    for row in rows:
        assert row["ratio"] == pytest.approx(best["ms"] / row["ms"])
        assert row["tokens_per_second"] == pytest.approx(1000 * 2 * 2 * 32 / row["ms"])
        assert 0 < row["mfu"] < 1 and row["first_call_s"] > 0
        assert ("products" in row) == (row["variant"] == "ours")


def test_chosen_variants():
    variants = {"transformers": ("transformers", {}), "ours": ("ours", {}), "x": ("ours", {})}
    assert list(chosen(variants, ())) == ["transformers", "ours", "x"]
    assert list(chosen(variants, ("transformers",))) == ["transformers", "ours"]
    with pytest.raises(UserError, match="--only 'y': choose from 'transformers', 'ours', 'x'"):
        chosen(variants, ("y",))
    with pytest.raises(UserError, match="--only without a relative"):
        chosen(variants, ("x",))


def test_variants_that_compute_something_else_are_not_compared(here, tmp_path):
    folder = clones(tmp_path / "clones", wrong=1e-3)
    with pytest.raises(RuntimeError, match="the variants disagree"):
        rows_of("train", "--relatives", folder, "--no-compile", folder=tmp_path)


def test_sampling(tmp_path, capsys):
    folder = clones(tmp_path / "clones")
    for args, name in ([], "build-nanogpt's way"), (["--relatives", folder], "build-nanogpt"):
        rows = rows_of("sampling", "--new-tokens", 30, *args, folder=tmp_path)
        assert variants_in(rows, capsys.readouterr().out) == [
            f"{name}: no cache, all logits", "transformers, cache", "ours, no cache",
            "ours, cache", "floor: weights read once a token"]
        assert rows[3]["tokens_per_second"] == pytest.approx(30_000 / rows[3]["ms"])


def test_hellaswag(tmp_path, capsys):
    data = write_jsonl(tmp_path / "examples.jsonl", four_endings(5))
    rows = rows_of("hellaswag", "--data", data, "--limit", 4, "--T", 128, folder=tmp_path)
    ways = "build-nanogpt's way: one at a time", "ours, in rows", "ours, packed"
    names = [*ways, "floor: packed FLOPs"]
    names = [f"{name}, {dtype}" for name in names for dtype in ("float32", "bfloat16")]
    assert sorted(variants_in(rows, capsys.readouterr().out)) == sorted(names)
    assert rows[0]["examples/s"] == pytest.approx(4000 / rows[0]["ms"])
    rows = rows_of("hellaswag", "--data", data, "--T", 128, "--only", names[4], folder=tmp_path)
    assert [row["variant"] for row in rows] == [names[4], "floor: packed FLOPs, float32"]
    with pytest.raises(UserError, match="--only 'x': choose from \"build-nanogpt's way"):
        rows_of("hellaswag", "--data", data, "--T", 128, "--only", "x", folder=tmp_path)


def test_the_floor_of_packed_examples():
    """Products as torch counts them on the packed rows, and what each position must see."""
    model, [example] = lively_gpt(block_size=128), hellaswag.encode(
        [{"ctx": "a context", "endings": ["one", "two", "three", "four"], "label": 0}],
        get_tokenizer("bytes"), 128)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        hellaswag.score_packed(model, [example], torch.device("cpu"))
    counts = counter.get_flop_counts()["Global"]
    products = counts[torch.ops.aten.addmm] + counts[torch.ops.aten.mm]
    c, C, n_layer = len("a context"), 32, 2
    sees = sum(range(1, c)) + sum(sum(range(c, c + n)) for n in example.n_ending)
    assert packed_flops(model, [example]) == products + 4 * C * n_layer * sees


# -----------------------------------------------------------------------------
# ladder and growth


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")


def test_ladder(tmp_path, capsys, monkeypatch):
    """The first step that prints times, and one that wants shards, on the same sizes."""
    monkeypatch.setattr(ladder, "LADDER", ("timing",))
    rows = rows_of("ladder", "--steps-of", "restarts", "--folder", tmp_path, "--png",
                   tmp_path / "ladder.png", folder=tmp_path)
    assert variants_in(rows, capsys.readouterr().out) == [
        "step-12 Timing, and TF32", "step-71 Restarted by torchrun"]
    assert is_png(tmp_path / "ladder.png")
    assert {path.name for path in tmp_path.iterdir()} == {"bench.json", "ladder.png"}


def test_a_step_is_read_and_ended(tmp_path):
    step, config = SimpleNamespace(tag="step-12"), check(configured("--repeats", 2))
    (tmp_path / "train_gpt2.py").write_text("""
import time
for i in range(9):
    print(f"step {i} | dt {i} ms | {64_000 // (i + 1):,} tok/sec")
    if i == 5:
        time.sleep(1000)
""")
    times = ladder.run_step(step, tmp_path, [], config)
    assert times == pytest.approx([4, 5], rel=1e-3)
    assert ladder.milliseconds("dt 10210 ms | 100 tok/sec", 1024) == 10210
    (tmp_path / "train_gpt2.py").write_text("raise SystemExit('error: no room')")
    with pytest.raises(UserError, match="step-12 ended after 0 training steps: no room"):
        ladder.run_step(step, tmp_path, [], config)


@pytest.mark.parametrize("name, words", [
    ("7", "step-07 prints no times"), ("9999", "no step 9999"), ("dance", "no step dance")])
def test_steps_that_no_ladder_has(name, words, monkeypatch):
    monkeypatch.setattr(ladder, "LADDER", ())
    monkeypatch.setattr(ladder, "load_trees", lambda steps: (
        [{"train_gpt2.py": ("100644", b"")}] * len(steps), None))
    with pytest.raises(UserError, match=words):
        main(configured("ladder", "--steps-of", name))


def test_growth(tmp_path, capsys):
    [row] = rows_of("growth", "--try-T", 16, "--try-vocab-size", "--try-n-layer", "--try-B",
                    "--png", tmp_path / "growth.png", folder=tmp_path)
    assert variants_in([row], capsys.readouterr().out) == ["T=16"]
    assert row["tokens_per_second"] == pytest.approx(1000 * 2 * 16 / row["ms"])
    network = train_gpt2.GPT(train_gpt2.GPTConfig(16, 257, 1, 2, 32))
    assert row["flops_per_token"] == flops_per_token(network, 16)
    assert row["peak_share"] == pytest.approx(
        row["tokens_per_second"] / row["roof_tokens_per_second"])
    assert is_png(tmp_path / "growth.png")


def test_growth_tries_one_value_at_a_time():
    config = check(Config("growth"))
    found = [(name, getattr(point, name)) for name, point in growth.points(config)]
    assert found == [(name, value) for name in ("T", "vocab_size", "n_layer", "B")
                     for value in getattr(config, f"try_{name}")]
    assert check(Config()).T == 1024 and config.T == 512  # what the others take, and growth


def test_growth_without_room():
    config = configured("growth", "--B", 10**13)
    with pytest.raises(UserError, match=f"no room for --B {10**13}: give --try-B without it"):
        growth.in_fresh_process(check(config), torch.device("cpu"), "B", 1)


@pytest.mark.parametrize("args, words", [
    (["waltz"], "'waltz': choose choices, train, sampling"),
    (["--B", "0"], "--B 0: give 1 or more"), (["--minutes", "0"], "--minutes 0.0: give more"),
    (["--minutes", "nan"], "--minutes nan: give more"), (["--device", "tpu"], "--device tpu"),
    (["train", "--relatives", "nowhere"], "--relatives nowhere: no such folder"),
    (["sampling", "--relatives", "."], "neither nanoGPT/model.py nor build-nanogpt/train_gpt2.py"),
    (["hellaswag", "--data", "nowhere"], "no HellaSwag file nowhere"),
    (["hellaswag", "--vocab-size", "99"], "a vocabulary of 99 ids"),
    (["growth", "--try-T", "8", "0"], "--try-T 0: give 1 or more"),
    (["growth", "--png", "nowhere/growth.png"], "--png nowhere/growth.png: no such folder")])
def test_bad_input_of_each(args, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        main(configured(*args))


def test_a_clone_that_cannot_be_used(here, tmp_path):
    (tmp_path / "nanoGPT").mkdir()
    (tmp_path / "nanoGPT" / "model.py").write_text("class GPT: oh = 1 / 0")
    with pytest.raises(UserError, match="nanoGPT/model.py cannot be used .ZeroDivisionError"):
        main(configured("train", "--relatives", tmp_path, "--no-compile"))


@pytest.mark.skipif(bool(gpt2_vocabulary_missing()), reason=gpt2_vocabulary_missing())
def test_data(tmp_path, capsys):
    source = tmp_path / "source"
    write_parquet(source, make_documents(30))
    rows = rows_of("data", "--data", source, "--times", 2, folder=tmp_path)
    assert {"the original's method", "fineweb.py, tiktoken"} <= {row["variant"] for row in rows}
    assert all(row["tokens_per_second"] > 0 for row in rows)
