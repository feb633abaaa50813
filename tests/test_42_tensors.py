"""Tensors of another kind are refused by name; every float type and a folder of parts are taken."""

import json

import pytest
import torch
from helpers import lively_gpt
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel

import hellaswag
from nanogpt.common import UserError
from train_gpt2 import GPT

NAME = "transformer.h.1.mlp.c_fc.weight"
CPU = torch.device("cpu")
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    lively_gpt().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(folder, name, new):
    """new(the tensor) takes the tensor's place in the file."""
    state = load_file(folder / "model.safetensors")
    save_file(state | {name: new(state[name])}, folder / "model.safetensors")


def in_parts(folder, place=""):
    """The same network in three files and an index. Returns {tensor: file}."""
    state, where = load_file(folder / "model.safetensors"), {}
    for i in range(3):
        file = f"model-{i + 1:05d}-of-00003.safetensors"
        part = {name: state[name] for name in sorted(state)[i::3]}
        save_file(part, folder / file)
        where |= dict.fromkeys(part, place + file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "model.safetensors").unlink()
    return where


def ruined(value):
    def new(t):
        t = t.clone()
        t.view(-1)[-1] = value
        return t

    return new


@pytest.mark.parametrize("new", [
    ruined(float("nan")), ruined(float("inf")), ruined(-float("inf")), lambda t: t.double() * 1e300,
    lambda t: t.half() * 65504 * 65504, lambda t: t.to(torch.int8), lambda t: t.int(),
    lambda t: t > 0, lambda t: ruined(float("nan"))(t.bfloat16()),
    lambda t: ruined(float("nan"))(t.to(torch.float8_e5m2).float()).to(torch.float8_e5m2)])
@pytest.mark.parametrize("name", [NAME, "transformer.h.1.mlp.c_fc.bias", "transformer.wte.weight"])
def test_what_is_no_finite_number_is_named(name, new, folder):
    """It would train, or be scored, and every result would be NaN or nonsense."""
    change(folder, name, new)
    with pytest.raises(UserError, match=name) as error:
        GPT.from_pretrained(folder)
    assert "\n" not in str(error.value) and "model" in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16,
                                   torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_float_is_taken(dtype, folder):
    """Rounded as the type rounds, and no further; transformers reads the same numbers."""
    exact = load_file(folder / "model.safetensors")
    save_file({name: t.to(dtype) for name, t in exact.items()}, folder / "model.safetensors")
    ours = GPT.from_pretrained(folder).state_dict()
    theirs = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).state_dict()
    for name, t in exact.items():
        assert torch.equal(theirs[name], t.to(dtype).float()), name
        assert torch.equal(ours[name], theirs[name] if ours[name].shape == t.shape
                           and not name.endswith("c_proj.weight") else theirs[name].t()), name


def test_a_folder_of_parts_is_taken(folder):
    whole, idx = GPT.from_pretrained(folder), torch.arange(32).view(2, 16)
    in_parts(folder)
    ours = GPT.from_pretrained(folder)
    assert all(torch.equal(t, ours.state_dict()[k]) for k, t in whole.state_dict().items())
    with torch.no_grad():
        theirs = hellaswag.load_model(folder, CPU)(idx).logits
        torch.testing.assert_close(theirs, whole(idx)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("load", [GPT.from_pretrained, lambda f: hellaswag.load_model(f, CPU)])
@pytest.mark.parametrize("damage, words", [
    (lambda f: in_parts(f, "../model/"), "index.json lists ../model/model-00001"),
    (lambda f: in_parts(f, str(f) + "/"), "index.json lists /"),
    (lambda f: (f / next(iter(in_parts(f).values()))).unlink(), "No such file"),
    (lambda f: (in_parts(f), (f / INDEX).write_text("{}")), "KeyError"),
    (lambda f: (in_parts(f), change_part(f)), "ln_f.bias twice"),
    (lambda f: change(f, NAME, lambda t: t.to(torch.int8)), f"{NAME} .*int8"),
    (lambda f: change(f, NAME, lambda t: t[:3]), NAME),
    (lambda f: change(f, NAME, lambda t: t.t().contiguous()), NAME)])
def test_both_programs_refuse_it(damage, words, load, folder):
    damage(folder)
    with pytest.raises(UserError, match=words) as error:
        load(folder)
    assert "\n" not in str(error.value)


def change_part(folder):
    """One tensor is in two of the files."""
    first, second, _ = sorted(folder.glob("model-*"))
    ours, theirs = load_file(first), load_file(second)
    name = "transformer.ln_f.bias"
    for file, part in (first, ours), (second, theirs):
        save_file(part | {name: torch.zeros(32)}, file)
