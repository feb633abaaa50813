"""How long, and what it costs: two measurements or a data sheet, then closed forms."""

import re
import sys

import pytest
import torch
from helpers import CAN_MEASURE, TINY, main_here, start, write_shards
from test_114_plan import plan_of

import nanogpt.plan
import nanogpt.speed
import train_gpt2
from nanogpt.report import flops_per_token


def numbers(text, pattern):
    return [float(number.replace(",", "")) for number in re.search(pattern, text).groups()]


def test_a_plan_for_this_machine(tmp_path, monkeypatch, capsys):
    """Each figure says where it comes from, and nothing is written."""
    run = tmp_path / "run"
    rows = dict(plan_of(monkeypatch, capsys, *TINY, "--data", write_shards(tmp_path / "shards"),
                        "--out-dir", run, "--max-steps", 50, "--val-tokens", 512))
    for name, source in {"speed": "measured", "time": "calculated", "memory": "calculated",
                         "room": "measured", "disk": "measured"}.items():
        assert source in rows[name], rows[name]
    speed, seconds = numbers(rows["speed"], r"([\d,]+) tok/s, ([\d.e-]+) s")
    assert speed * seconds == pytest.approx(512, rel=0.02), "tokens of a batch"
    [hours] = numbers(rows["time"], r"([\d.e-]+) hours")
    # a validation before and one after, of a batch each, forward only: a third
    assert hours == pytest.approx(seconds / 3600 * (50 + 2 / 3), rel=0.02)
    assert rows["energy"].startswith("unknown") and rows["price"].startswith("unknown")
    assert not run.exists()


@pytest.mark.parametrize("B, ranks, seconds", [(2, 1, 18), (16, 1, 11), (2, 4, 12)])
def test_micro_steps_are_counted_by_two_measurements(B, ranks, seconds, monkeypatch, capsys):
    """A step of k micro-steps takes 10 + k seconds here, and 16 rows are 16 / B / ranks of them."""
    monkeypatch.setattr(nanogpt.speed, "time_steps", lambda *args: (11.0, 1.0))
    rows = dict(plan_of(monkeypatch, capsys, *TINY, "--data", "pydoc", "--B", B, "--ranks", ranks))
    assert f"{512 / seconds:.0f} tok/s, {seconds} s a step" in rows["speed"]
    assert ("is not measured" in rows["speed"]) == (ranks > 1)


def test_the_clock_is_read_around_the_programs_own_step(monkeypatch):
    """By a clock that runs 10 s for an update and 1 s for a micro-step."""
    now = [0.0]

    def step(t, lr):
        now[0] += 10 + t.grad_accum_steps

    monkeypatch.setattr(nanogpt.speed.time, "perf_counter", lambda: now[0])
    ranks = train_gpt2.Ranks(torch.device("cpu"))
    config = train_gpt2.parse_args(TINY)
    took = nanogpt.speed.time_steps(config, ranks, 3, train_gpt2.init_model,
                                    train_gpt2.prepare_training, step)
    assert took == (11.0, 1.0)


def test_memory_is_printed_before_anything_is_measured(monkeypatch, capsys):
    """The table and the room are there when the first step begins."""
    def look(*args):
        said.append(capsys.readouterr().out)
        return 11.0, 1.0

    said = []
    monkeypatch.setattr(nanogpt.speed, "time_steps", look)
    plan_of(monkeypatch, capsys, *TINY, "--data", "pydoc")
    assert "as given" in said[0] and said[0].splitlines()[-1].startswith("room ")


def test_what_does_not_fit_is_not_built(monkeypatch, capsys):
    """GPT-2 XL on a machine with 8 GB: memory, one line instead of speed and time, and disk."""
    monkeypatch.setattr(nanogpt.plan, "free_memory", lambda device: 8e9)
    monkeypatch.setattr(nanogpt.speed, "time_steps", None)  # a call would fail
    rows = plan_of(monkeypatch, capsys, "gpt2-1558M", "--data", "none-such", "--device", "cpu")
    assert [name for name, _ in rows if name] == ["memory", "room", "speed", "disk"]
    need = numbers(dict(rows)["speed"], r"not measured: 1 x \d+ tokens need ([\d.]+) GB here")
    assert need[0] > 16 * 1.557, "weights, gradients and two moments alone"


def test_a_long_row_is_measured_in_part(monkeypatch, capsys):
    """Where one row takes minutes, a shorter one is timed: with 10 s for an update and 1 s for
    each 1e12 FLOPs, all of a batch's FLOPs are counted."""
    seen = []

    def time_steps(config, ranks, most, *training):
        seen.append((config.B, config.T))
        return 11.0, 1.0

    monkeypatch.setattr(nanogpt.plan, "free_memory", lambda device: 1e12)
    monkeypatch.setattr(nanogpt.speed, "time_steps", time_steps)
    rows = dict(plan_of(monkeypatch, capsys, "gpt2-350M", "--data", "none-such", "--device", "cpu",
                        "--total-batch-size", 2**14))
    with torch.device("meta"):
        net = train_gpt2.GPT(train_gpt2.GPTConfig(n_layer=24, n_head=16, n_embd=1024))
    [(B, T)] = seen
    assert B == 1 and 0.8e12 < flops_per_token(net, T) * T < 1e12
    micro_steps = 2**14 * flops_per_token(net, 1024) / (T * flops_per_token(net, T))
    assert numbers(rows["speed"], r"([\d.]+) s a step") == [pytest.approx(10 + micro_steps, 0.01)]


def test_a_plan_for_a_card_without_data(tmp_path, monkeypatch, capsys):
    """Eight H100: by the published peak, and the share of it that the video's A100 reached."""
    monkeypatch.chdir(tmp_path)
    rows = dict(plan_of(monkeypatch, capsys, "--card", "H100", "--ranks", 8, "--price", 2.5))
    with torch.device("meta"):
        net = train_gpt2.GPT(train_gpt2.GPTConfig())
    rate = 8 * 0.48 * 989e12 / flops_per_token(net, 1024)
    assert f"{rate:,.0f} tok/s" in rows["speed"] and "published" in rows["speed"]
    assert "for 18,795 steps and 77 validations" in rows["time"], "one epoch of sample-10BT"
    hours = (18_795 * 2**19 + 77 * 20 * 2**19 / 3) / rate / 3600
    assert numbers(rows["time"], r"([\d.]+) hours") == [pytest.approx(hours, rel=0.005)]
    assert numbers(rows["energy"], r"([\d.]+) kWh") == [pytest.approx(8 * 0.7 * hours, rel=0.005)]
    assert f"${8 * 2.5 * hours:.2f}" in rows["price"]
    on_the_video = 16 * 1024 * flops_per_token(net, 1024) / 0.093 / 312e12
    assert on_the_video == pytest.approx(nanogpt.speed.SHARE_OF_PEAK, abs=0.005)


def test_a_ramp_has_more_steps_on_the_same_tokens(tmp_path, monkeypatch, capsys):
    """Evaluations and checkpoints count steps; the network's work and the shards are the same."""
    monkeypatch.chdir(tmp_path)
    flags = ["--card", "H100", "--ranks", 8, "--B", 16, "--checkpoint-every", 1000]
    plain = dict(plan_of(monkeypatch, capsys, *flags))
    ramp = dict(plan_of(monkeypatch, capsys, *flags, "--batch-ramp", "0.25:0.5"))
    # half of 18,795 batches in four steps each, the other half in one
    assert "for 46,987 steps and 189 validations" in ramp["time"]
    assert "checkpoints: 19 x" in plain["disk"] and "checkpoints: 47 x" in ramp["disk"]
    assert ramp["speed"] == plain["speed"]


@pytest.mark.parametrize("price", ["-1", "nan"])
def test_a_price_is_positive(price, monkeypatch):
    with pytest.raises(train_gpt2.UserError, match="--price"):
        main_here(monkeypatch, *TINY, "--plan", "--price", price)


@pytest.mark.skipif(not CAN_MEASURE or sys.platform != "linux", reason="needs Linux's /proc")
def test_memory_of_the_process_against_a_run(tmp_path):
    """A network of 1.6M parameters: what was planned, and what the run then had at most."""
    flags = [*TINY, "--data", write_shards(tmp_path / "shards"), "--n-embd", 128, "--n-layer", 8,
             "--val-tokens", 512, "--sample-tokens", 0, "--max-steps", 4]
    script = tmp_path / "peak.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(nanogpt.plan.__file__).removesuffix("nanogpt/plan.py")!r})
import train_gpt2
from nanogpt.common import run
from nanogpt.memory import linux_bytes
try:
    run(train_gpt2.main)
finally:
    print("peak", linux_bytes("self/status", "VmHWM"))
""")
    planned = start(script, *flags, "--out-dir", tmp_path / "run", "--plan")
    done = start(script, *flags, "--out-dir", tmp_path / "run")
    assert (planned.returncode, done.returncode) == (0, 0), planned.stderr + done.stderr
    planned = 1e9 * float(re.search(r"process +\| ([\d.]+) GB", planned.stdout)[1])
    assert planned == pytest.approx(float(re.search(r"peak (\d+)", done.stdout)[1]), rel=0.1)
