"""Every block in six numbers: by their definitions, and without any effect on training."""

import json

import numpy as np
import pytest
import torch
from helpers import TINY, lively_gpt, main_here, start, write_shards
from safetensors.torch import load_file

import train_gpt2
from nanogpt import health
from nanogpt.common import UserError
from nanogpt.health import entropy, look_into
from nanogpt.report import read_log

KINDS = ["activations", "weights", "gradients", "updates", "dead", "entropy"]


def by_definition(net, rows):
    """In float64, row by row, head by head, position by position: what look_into() reports."""
    net, found = net.double(), []
    streams = [net.transformer.wte(row) + net.transformer.wpe.weight[: len(row)] for row in rows]
    for block in net.transformer.h:
        entropies, inputs = [], []
        for number, x in enumerate(streams):  # (T, C)
            q, k, v = block.attn.c_attn(block.ln_1(x)).chunk(3, dim=1)
            size, y = q.size(1) // block.attn.n_head, torch.zeros_like(q)
            for head in range(block.attn.n_head):
                part = slice(head * size, (head + 1) * size)
                for i in range(len(x)):
                    weights = (k[: i + 1, part] @ q[i, part] / size**0.5).exp()
                    weights /= weights.sum()
                    entropies.append(-sum(float(w) * float(w.log()) for w in weights))
                    y[i, part] = weights @ v[: i + 1, part]
            x = x + block.attn.c_proj(y)
            inputs.append(block.mlp.c_fc(block.ln_2(x)))
            streams[number] = x + block.mlp.c_proj(block.mlp.gelu(inputs[-1]))
        dead = sum(all(value < -3 for value in neuron)
                   for neuron in torch.cat(inputs).t().tolist())
        outputs = torch.cat(streams).numpy()
        found.append({"activations": float(np.sqrt(np.mean(outputs**2))),
                      "entropy": float(np.mean(entropies)), "dead": dead / inputs[0].size(1)})
    return found


@torch.no_grad()
def test_what_blocks_compute_is_as_defined():
    net = lively_gpt(n_layer=2, n_head=4)
    net.transformer.h[1].mlp.c_fc.bias[:20] = -40.0  # neurons that are dead
    net.transformer.h[1].mlp.c_fc.bias[20] = -3.0  # and one nearly so
    idx = torch.randint(257, (3, 12), generator=torch.Generator().manual_seed(0))
    found = look_into(net, idx)
    assert net.training and not any(module._forward_hooks for module in net.modules())
    expected = by_definition(net, idx)
    assert expected[1]["dead"] >= 20 / 128 > expected[0]["dead"]
    for block in 0, 1:
        for kind, right in expected[block].items():
            assert found[kind][block] == pytest.approx(right, rel=1e-4), (kind, block)


@torch.no_grad()
def test_entropy_has_two_ends():
    """Keys of zeros: the mean of log(1) ... log(T). Keys that shout: 0."""
    net = lively_gpt(n_layer=1, n_head=2, n_embd=32)
    idx = torch.arange(16)[None]
    c_attn = net.transformer.h[0].attn.c_attn
    c_attn.weight[32:64], c_attn.bias[32:64] = 0, 0  # keys
    [everywhere] = look_into(net, idx)["entropy"]
    c_attn.weight.normal_(0, 100, generator=torch.Generator().manual_seed(0))
    [nowhere] = look_into(net, idx)["entropy"]
    assert everywhere == pytest.approx(np.log(np.arange(1, 17)).mean(), rel=1e-5)
    assert 0 <= nowhere < 0.01


def notes_of(folder):
    lines = (folder / "log.txt").read_text().splitlines()
    notes = [json.loads(line[2:]) for line in lines if line.startswith("# ")]
    return {note["step"]: note["health"] for note in notes if type(note.get("health")) is dict}


def flags(tmp_path, *more):
    data = tmp_path / "shards"
    return [*TINY, "--data", data if data.exists() else write_shards(data), "--val-tokens", 512,
            "--sample-tokens", 0, "--max-steps", 5, "--checkpoint-every", 1, "--dropout", 0.1,
            *more, "--out-dir"]


def weights_of(folder, step):
    return load_file(folder / f"checkpoint_{step:06d}" / "model.safetensors")


def size(tensors):
    return torch.cat([x.double().flatten() for x in tensors]).square().mean().sqrt().item()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_sizes_are_the_checkpoints_and_training_is_the_same(optimizer, tmp_path, monkeypatch):
    """Losses and weights to the bit, with dropout's random numbers. Updates: the difference of two
    checkpoints. Gradients: by a backward pass of the batch in one piece."""
    args = flags(tmp_path, "--optimizer", optimizer)
    step, gradients = train_gpt2.nn.utils.clip_grad_norm_, []

    def clip(parameters, most):
        parameters = list(parameters)
        norm = step(parameters, most)
        gradients.append([p.grad.double().clone() for p in parameters])
        return norm

    main_here(monkeypatch, *args, tmp_path / "without")
    monkeypatch.setattr(train_gpt2.nn.utils, "clip_grad_norm_", clip)
    rows = []
    monkeypatch.setattr(health, "look_into", lambda net, x: rows.append(x) or look_into(net, x))
    main_here(monkeypatch, *args, tmp_path / "with", "--health", 2)
    logs = [read_log(tmp_path / name / "log.txt") for name in ("with", "without")]
    assert all(logs[0][kind] == logs[1][kind] for kind in ("train", "val"))
    for a, b in zip(weights_of(tmp_path / "with", 5).items(),
                    weights_of(tmp_path / "without", 5).items(), strict=True):
        assert a[0] == b[0] and torch.equal(a[1], b[1])
    notes = notes_of(tmp_path / "with")
    assert list(notes) == [0, 2, 4] and not notes_of(tmp_path / "without")
    tokens = np.concatenate([np.load(file) for file in sorted(tmp_path.glob("shards/*train*.npy"))])
    last = 4 * 512 + 256  # of step 4, the second micro-batch of two
    assert rows[2].flatten().tolist() == tokens[last : last + 256].tolist()
    old, new = weights_of(tmp_path / "with", 4), weights_of(tmp_path / "with", 5)
    names = [name for name, _ in train_gpt2.GPT(train_gpt2.GPTConfig(
        32, 257, 2, 2, 32)).named_parameters()]
    gradient = dict(zip(names, gradients[4], strict=True))
    assert list(notes[4]) == KINDS
    for block in 0, 1:
        of = [name for name in names if f".h.{block}." in name]
        kept = [name for name in new if f"h.{block}." in name]  # as transformers names them
        expected = {"weights": size(old[name] for name in kept),
                    "gradients": size(gradient[name] for name in of),
                    "updates": size(new[name] - old[name] for name in kept)}
        for kind, right in expected.items():
            assert notes[4][kind][block] == pytest.approx(right, rel=1e-4), (kind, block)


@pytest.mark.parametrize("shard, optimizer", [("none", "adamw"), ("optimizer", "adamw"),
                                              ("model", "muon")])
def test_ranks_note_what_one_process_notes(shard, optimizer, tmp_path):
    """Also of divided tensors. The last micro-batch begins elsewhere in the batch, so numbers that
    are computed from its rows are only similar."""
    args = flags(tmp_path, "--optimizer", optimizer, "--dropout", 0, "--health", 2)
    for name, ranks, more in (("one", None, []), ("two", 2, ["--shard", shard])):
        done = start("train_gpt2.py", *args, tmp_path / name, *more, ranks=ranks)
        assert done.returncode == 0, done.stderr
    one, two = notes_of(tmp_path / "one"), notes_of(tmp_path / "two")
    assert list(one) == list(two) == [0, 2, 4]
    for step, note in one.items():
        for kind in KINDS:
            near = 2e-3 if kind in ("weights", "gradients", "updates") else 0.2
            assert two[step][kind] == pytest.approx(note[kind], rel=near, abs=1e-9), (step, kind)


def test_in_float16_what_is_not_finite_is_null(tmp_path, monkeypatch):
    """Numbers above 65504, as when the loss's scale is too large at first."""
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *args, **more: scaler(
        *args, init_scale=2.0**40, **more))
    main_here(monkeypatch, *flags(tmp_path, "--health", 1), tmp_path / "run", "--dtype", "float16",
              "--device", "cpu")
    text = (tmp_path / "run" / "log.txt").read_text()
    assert "NaN" not in text and "Infinity" not in text
    notes = notes_of(tmp_path / "run")
    assert notes[0]["gradients"] == [None, None] and notes[0]["updates"] == [0, 0]
    assert all(0 < x < np.log(32) for x in notes[4]["entropy"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_entropy_is_computed_in_float32(dtype):
    qkv = torch.randn(2, 12, 3 * 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = entropy(qkv.float(), 4)
    with torch.autocast("cpu", dtype):
        assert entropy(qkv, 4) == expected


def test_a_negative_number_of_steps_is_refused():
    with pytest.raises(UserError, match="--health -1: give 0 or more"):
        train_gpt2.check_config(train_gpt2.parse_args(["--health", "-1"]), 1)
