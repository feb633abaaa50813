"""Small batches first: the same tokens in more updates, a schedule by tokens, resumed anywhere."""

import json
import re
import shutil
import time
from fractions import Fraction

import pytest
import torch
from helpers import (
    TINY, main_here, refusal, start, stream_of, text_tokens, write_shards,
)
from safetensors.torch import load_file
from torch.nn import functional as F

import train_gpt2
from nanogpt.common import UserError
from nanogpt.ramp import Ramp, read_ramp
from nanogpt.report import read_log

# 20 batches of 512 tokens: 4 of 128, 8 of 256, 15 of 512
RUN = [*TINY, "--B", 4, "--batch-ramp", "0.25:0.05,0.5:0.25", "--max-steps", 20, "--val-tokens",
       512, "--sample-tokens", 0, "--eval-every", 7, "--warmup-steps", 3]
TAKEN = [128] * 4 + [256] * 8 + [512] * 15


def batches(ramp, whole, n):
    """What each update takes, one at a time: [(position, tokens)]."""
    parts = [tuple(map(Fraction, part.split(":"))) for part in ramp.split(",")]
    taken, position = [], 0
    while True:
        share = next((share for share, until in parts if position < until * n * whole
                      and position + share * whole <= n * whole), 1)
        if position + share * whole > n * whole:
            return taken
        taken.append((position, int(share * whole)))
        position += int(share * whole)


@pytest.mark.parametrize("ramp", ["0.25:0.05,0.5:0.25", "0.25:0.03,0.5:0.1", "1/3:0.5", "0.75:.99",
                                  "0.5:0.1,0.25:0.6"])
@pytest.mark.parametrize("n", [1, 2, 7, 100, 750])
def test_the_updates_are_those_of_a_loop(ramp, n):
    """All that a resumed run knows is its position: from each one, the same end."""
    config = train_gpt2.parse_args(["--batch-ramp", ramp, "--total-batch-size", "1200",
                                    "--max-steps", str(n)])
    expected, found = batches(ramp, 1200, n), Ramp(config, None)
    assert [tokens for n, tokens in found.updates() for _ in range(n)] == [x for _, x in expected]
    for step, (position, _) in enumerate(expected[:: 1 + len(expected) // 50]):
        step *= 1 + len(expected) // 50
        assert found.last_step({"step": step, "position": position}) == len(expected)
    assert sum(x for _, x in expected) > (n - 1) * 1200, "no more than a batch is left over"


def test_shares_are_exact():
    """0.07 * 100 is more than 7 in floating point, which would be an update more."""
    config = train_gpt2.parse_args(["--batch-ramp", "0.25:0.07", "--max-steps", "100"])
    assert Ramp(config, None).updates() == [(28, 2**17), (93, 2**19)]
    assert read_ramp("0.25:0.03, 1/3:0.1") == [(Fraction(1, 4), Fraction(3, 100)),
                                               (Fraction(1, 3), Fraction(1, 10))]
    assert read_ramp("") == []


@pytest.mark.parametrize("ramp", ["0.25", "0.25:", ":0.1", "0.25:0.03,", "2:0.1", "1:0.1", "0:0.1",
                                  "0.5:1", "0.5:0", "0.5:3%", "0.25:0.1,0.5:0.1", "1/0:0.5",
                                  "0.25:0.03;0.5:0.1", "nan:0.1", "-0.5:0.1", "1e-9999999:0.5"])
def test_bad_ramps_are_refused(ramp, monkeypatch, capsys):
    said = refusal(train_gpt2.main, *TINY, f"--batch-ramp={ramp}", "--data", "nowhere",
                   monkeypatch=monkeypatch, capsys=capsys)
    assert said.startswith(f"error: --batch-ramp {ramp}: ") and "try 0.25:0.03,0.5:0.1" in said


def test_each_part_must_be_a_multiple_for_all_ranks():
    config = train_gpt2.parse_args([*map(str, RUN)])
    assert train_gpt2.check_config(config, 1) == 4
    with pytest.raises(UserError, match="--batch-ramp 0.25:0.05,0.5:0.25: 0.25 of the batch is 128 "
                                        "tokens, not a multiple of B x T x ranks = 256: choose a"):
        train_gpt2.check_config(config, 2)


def flags(tmp_path, *more):
    """RUN's flags, on shards that are made the first time."""
    data = tmp_path / "shards"
    return [*RUN, "--data", data if data.exists() else write_shards(data, n_train=8000), *more]


def test_a_run_equals_a_loop_written_out(tmp_path, monkeypatch):
    """Each batch in one piece, PyTorch's own AdamW, the rate from the tokens before the batch."""
    main_here(monkeypatch, *flags(tmp_path, "--out-dir", tmp_path / "run"))
    torch.manual_seed(1337)
    config = train_gpt2.GPTConfig(32, 257, 2, 2, 32)
    net, tokens = train_gpt2.GPT(config), torch.from_numpy(text_tokens(8000, seed=2).astype("i8"))
    tokens, losses = torch.cat([tokens] * 2), []
    optimizer = train_gpt2.configure_optimizer(net, 0.1, 3e-3)
    position = 0
    for n in TAKEN:
        done = position / 512
        lr = 3e-3 * min(1, (done + 1) / 3) if done < 3 else 3e-4 + 2.7e-3 / 2 * (
            1 + torch.tensor((done - 3) / 17 * torch.pi).cos().item())
        for group in optimizer.param_groups:
            group["lr"] = lr
        x, y = (tokens[position + i : position + n + i].view(-1, 32) for i in (0, 1))
        loss = F.cross_entropy(net(x)[0].flatten(0, 1), y.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        position += n
    steps, found = read_log(tmp_path / "run" / "log.txt")["train"]
    assert steps == list(range(27)) and position == 20 * 512
    assert found == pytest.approx(losses, abs=1e-4)  # of sums in another order, over 27 updates
    state = json.loads((tmp_path / "run" / "checkpoint_000027" / "state.json").read_text())
    assert (state["step"], state["position"]) == (27, position)


def notes(folder):
    lines = (folder / "log.txt").read_text().splitlines()
    return [facts for facts in (json.loads(line[2:]) for line in lines if line[0] == "#")
            if "batch" in facts]


@pytest.mark.parametrize("optimizer, places", [("adamw", (2, 4, 9)), ("muon", (12,))])
def test_it_resumes_to_the_bit_anywhere_in_the_ramp(optimizer, places, tmp_path, monkeypatch,
                                                    capsys):
    """Within the parts, and where the next one begins."""
    folder = tmp_path / "run"
    args = flags(tmp_path, "--checkpoint-every", 1, "--optimizer", optimizer)
    main_here(monkeypatch, *args, "--out-dir", folder)
    assert notes(folder) == [{"step": 0, "batch": 128, "position": 0},
                             {"step": 4, "batch": 256, "position": 512},
                             {"step": 12, "batch": 512, "position": 2560}]
    capsys.readouterr()
    for step in places:
        shutil.copytree(folder, again := tmp_path / str(step))
        for checkpoint in again.glob("checkpoint_*"):
            if int(checkpoint.name[-6:]) > step:
                shutil.rmtree(checkpoint)
        main_here(monkeypatch, *args, "--out-dir", again, "--resume")
        assert f"at step {step} of" in capsys.readouterr().out
        a, b = (read_log(x / "log.txt") for x in (folder, again))
        assert all(a[kind] == b[kind] for kind in ("train", "val"))
        a, b = (load_file(x / "checkpoint_000027" / "model.safetensors") for x in (folder, again))
        assert all(torch.equal(a[name], b[name]) for name in a)
        assert {note["position"] for note in notes(folder)} <= {
            note["position"] for note in notes(again)}


def test_two_ranks_and_one_train_on_the_same_tokens(tmp_path):
    """Also when the second one goes on where the first was stopped, in the middle of the ramp."""
    found = []
    for n, ranks in enumerate([None, 2]):
        done = start("train_gpt2.py", *flags(tmp_path, "--B", 2, "--checkpoint-every", 6,
                                             "--out-dir", tmp_path / str(n)), ranks=ranks)
        assert done.returncode == 0, done.stderr
        found.append(read_log(tmp_path / str(n) / "log.txt"))
    for checkpoint in (tmp_path / "0").glob("checkpoint_*"):
        if checkpoint.name != "checkpoint_000006":
            shutil.rmtree(checkpoint)
    done = start("train_gpt2.py", *flags(tmp_path, "--B", 2, "--resume", "--out-dir",
                                         tmp_path / "0"), ranks=2)
    assert done.returncode == 0 and "at step 6 of" in done.stdout, done.stderr
    found.append(read_log(tmp_path / "0" / "log.txt"))
    for log in found[1:]:
        for kind in "train", "val":
            assert log[kind][0] == found[0][kind][0]
            assert log[kind][1] == pytest.approx(found[0][kind][1], abs=1e-4)


def test_a_resumed_run_may_become_longer_but_not_too_short(tmp_path, monkeypatch, capsys):
    """--max-steps counts whole batches; the ramp's ends move with it."""
    main_here(monkeypatch, *flags(tmp_path, "--out-dir", tmp_path / "run", "--checkpoint-every", 9))
    args = flags(tmp_path, "--out-dir", tmp_path / "run", "--resume", "--max-steps")
    said = refusal(train_gpt2.main, *args, 19, monkeypatch=monkeypatch, capsys=capsys)
    assert "--max-steps 19: " in said and "has had the tokens of 20: give more" in said
    main_here(monkeypatch, *args, 25)
    assert read_log(tmp_path / "run" / "log.txt")["train"][0] == list(range(32))


def test_the_table_and_the_lines_of_a_run(tmp_path, monkeypatch, capsys):
    """A clock on which 128 tokens take a second: the time left goes by tokens, as they do."""
    clock, train_step = [0.0], train_gpt2.train_step

    def slow_step(t, lr):
        clock[0] += t.grad_accum_steps
        return train_step(t, lr)

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(train_gpt2, "train_step", slow_step)
    main_here(monkeypatch, *flags(tmp_path, "--out-dir", tmp_path / "run"))
    said = capsys.readouterr().out
    assert re.search(r"^steps +\| 27 on the tokens of 20 = 1.28 epochs, 3 of warm-up$", said, re.M)
    assert re.search(r"^ramp +\| 128 tokens for 4 steps, 256 tokens for 8 steps, 512 tokens for "
                     r"15 steps$", said, re.M)
    lines = re.findall(r"\| ([\d,]+) tok/sec \| .* ETA (?:0:(\d\d):(\d\d)|unknown)$", said, re.M)
    assert len(lines) == 27 and {speed for speed, _, _ in lines} == {"128"}
    left = [60 * int(minutes) + int(seconds) for _, minutes, seconds in lines[1:]]
    assert left == [80 - sum(TAKEN[: i + 1]) // 128 for i in range(1, 27)]


def test_without_a_ramp_nothing_is_asked_of_the_position(tmp_path):
    """--total-batch-size may change in the middle of such a run, whose end goes by updates."""
    config = train_gpt2.parse_args(["--max-steps", "9"])
    ramp = Ramp(config, stream_of(text_tokens(100)))
    assert ramp.last_step({"step": 3, "position": 10**9}) == 9 and ramp.describe() == []
    assert ramp.done(3, 10**9) == 3
