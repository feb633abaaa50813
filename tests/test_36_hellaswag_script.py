"""The script's scores are those of its network, counted one row at a time; errors are one line."""

import shutil

import pytest
import torch
from helpers import bytes_encoded, count_by_hand, four_endings, offline, refusal, write_jsonl
from safetensors.torch import load_file, save_file

import hellaswag
from nanogpt.common import UserError


@pytest.fixture
def folder(tmp_path):
    """A network in transformers' layout, as transformers writes it, that chooses by its letters."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=257, n_positions=64, n_layer=2, n_head=2, n_embd=32,
                        bos_token_id=256, eos_token_id=256)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0, 0.1)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def scores(folder, *args, monkeypatch, capsys):
    """What main() prints, as [(name, share, standard error, correct, of)]."""
    import re
    import sys

    monkeypatch.setattr(sys, "argv", ["hellaswag.py", "--model", str(folder), "--device", "cpu",
                                      *map(str, args)])
    hellaswag.main()
    return re.findall(r"^(\S+) +(\S+) \+- (\S+)  \((\d+) of (\d+)\)$", capsys.readouterr().out,
                      re.MULTILINE)


@pytest.mark.parametrize("limit", [None, 7])
def test_scores_of_a_folder(limit, folder, tmp_path, monkeypatch, capsys):
    """acc and acc_norm, their standard errors, and the counts behind them; in evaluation mode:
    transformers' network has dropout."""
    path = write_jsonl(tmp_path / "h.jsonl", four_endings())
    examples = four_endings()[:limit]
    model = hellaswag.load_model(folder, torch.device("cpu"))
    expected = count_by_hand(model, examples)
    assert not model.training and model.dtype == torch.float32
    flags = ["--limit", limit] if limit else []
    n = len(examples)
    assert scores(folder, "--data", path, *flags, monkeypatch=monkeypatch, capsys=capsys) == [
        (name, f"{count / n:.4f}", f"{(count / n * (1 - count / n) / n) ** 0.5:.4f}",
         str(count), str(n))
        for name, count in zip(("acc", "acc_norm"), expected, strict=True)]


def test_absent_weights_are_refused(folder, tmp_path):
    """transformers goes on with random numbers in their place, and the score would be theirs."""
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    state = load_file(damaged / "model.safetensors")
    del state[next(name for name in state if name.endswith("h.1.mlp.c_fc.weight"))]
    save_file(state, damaged / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks weights of its config.json.*c_fc.weight"):
        hellaswag.load_model(damaged, torch.device("cpu"))


def test_a_network_of_nan_has_no_score(folder, tmp_path, monkeypatch, capsys):
    state = load_file(folder / "model.safetensors")
    name = next(name for name in state if name.endswith("h.1.mlp.c_fc.bias"))
    save_file(state | {name: state[name] * torch.nan}, folder / "model.safetensors")
    path = write_jsonl(tmp_path / "h.jsonl", four_endings(1))
    said = refusal(hellaswag.main, "--model", folder, "--data", path, "--device", "cpu",
                   monkeypatch=monkeypatch, capsys=capsys)
    assert "example 1 scores [nan, nan, nan, nan]" in said


def test_long_rows_are_cut_to_the_networks_positions(folder, tmp_path, monkeypatch, capsys):
    examples = [row | {"ctx": 5 * row["ctx"] + "a" * 64} for row in four_endings(8)]
    path = write_jsonl(tmp_path / "h.jsonl", examples)
    model = hellaswag.load_model(folder, torch.device("cpu"))
    expected = hellaswag.count_correct(model, bytes_encoded(examples), torch.device("cpu"))
    printed = scores(folder, "--data", path, monkeypatch=monkeypatch, capsys=capsys)
    assert [int(row[3]) for row in printed] == expected[:2].tolist()


@pytest.mark.parametrize("kind", ["Bloom", "Mamba"])
def test_a_network_without_positions_is_scored(kind, tmp_path, monkeypatch, capsys):
    """It has no max_position_embeddings, so no row is cut."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(vocab_size=257, hidden_size=32, n_head=2,
                                                    num_hidden_layers=2)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    model.save_pretrained(tmp_path / "model")
    examples = [row | {"ctx": row["ctx"] + "a" * 64} for row in four_endings(8)]
    path = write_jsonl(tmp_path / "h.jsonl", examples)
    expected = hellaswag.count_correct(model, bytes_encoded(examples, 1024), torch.device("cpu"))
    printed = scores(tmp_path / "model", "--data", path, monkeypatch=monkeypatch, capsys=capsys)
    assert [int(row[3]) for row in printed] == expected[:2].tolist()


@pytest.mark.parametrize("args, words", [
    (["--data", "nowhere.jsonl"], "no HellaSwag file nowhere.jsonl"),
    (["--limit", "0"], "--limit 0"),
    (["--device", "tpu"], "--device tpu"),
    (["--model", "{tmp}/nothing", "--data", "{file}"], "nothing"),
    (["--model", "{tmp}", "--data", "{file}"], "cannot get the model"),
])
def test_bad_input_is_one_line(args, words, tmp_path, monkeypatch, capsys):
    path = write_jsonl(tmp_path / "h.jsonl", four_endings(3))
    offline(monkeypatch, tmp_path / "empty")
    args = [arg.format(tmp=tmp_path, file=path) for arg in args]
    assert words in refusal(hellaswag.main, *args, monkeypatch=monkeypatch, capsys=capsys)


def test_pickled_weights_are_not_opened(folder, tmp_path, monkeypatch, capsys):
    """A pickle can run any code: a folder with nothing but one is refused, even a harmless one."""
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    path = write_jsonl(tmp_path / "h.jsonl", four_endings(3))
    said = refusal(hellaswag.main, "--model", folder, "--data", path, "--device", "cpu",
                   monkeypatch=monkeypatch, capsys=capsys)
    assert "cannot get the model" in said
