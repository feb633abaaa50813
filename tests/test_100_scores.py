"""--eval-only: every score is the network's, as another program computes it; nothing is written."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from filelock import FileLock
from helpers import (
    TINY, four_endings, lively_gpt, main_here, one_row_at_a_time, refusal, start, write_jsonl,
    write_shards,
)
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import train_gpt2
from nanogpt.checkpoints import changed_settings
from nanogpt.exports import tokenizer_json
from nanogpt.report import read_log
from nanogpt.tokenizer import get_tokenizer

FLAGS = [*TINY, "--val-tokens", 512, "--hellaswag", "h.jsonl", "--data", "shards",
         "--out-dir", "run"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with shards, examples, a run with checkpoints after 2 and 3 steps, other weights."""
    folder = tmp_path_factory.mktemp("scores")
    write_shards(folder / "shards")
    write_jsonl(folder / "h.jsonl", four_endings())
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        main_here(monkeypatch, *FLAGS, "--max-steps", 3, "--eval-every", 3, "--checkpoint-every", 2,
                  "--sample-tokens", 0)
    lively_gpt(block_size=40).save_pretrained(folder / "lively")
    lively_gpt(vocab_size=500).save_pretrained(folder / "other")
    return folder


@pytest.fixture
def folder(trained, monkeypatch):
    monkeypatch.chdir(trained)
    return trained


@pytest.fixture
def scored(folder, monkeypatch, capsys):
    """A function: flags -> ({a line of the table by its model}, the line of JSON)."""
    def scored(*flags):
        capsys.readouterr()
        main_here(monkeypatch, *FLAGS, "--eval-only", *flags)
        lines = capsys.readouterr().out.splitlines()
        head = next(i for i, line in enumerate(lines) if line.startswith("model "))
        columns = lines[head].split()[1:]
        table = {name: dict(zip(columns, cells, strict=True))
                 for name, *cells in map(str.split, lines[head + 1 : -1])}
        return table, json.loads(lines[-1])
    return scored


def by_hand(path):
    """Validation loss in float64 by transformers, and its correct HellaSwag examples: of the sums,
    of the means."""
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(path).eval()
    scores = [one_row_at_a_time(model, example, model.config.n_positions)
              for example in four_endings()]
    hella = [sum(min(range(4), key=kind.__getitem__) == example["label"]
                 for kind, example in zip(kinds, four_endings(), strict=True))
             for kinds in zip(*scores, strict=True)]
    tokens = torch.from_numpy(np.load("shards/text_val_000000.npy")[:513].astype(np.int64))
    with torch.no_grad():
        logits = model.double()(tokens[:-1].view(-1, 32)).logits
    return F.cross_entropy(logits.flatten(0, 1), tokens[1:]).item(), *hella


def test_a_run_scores_what_it_logged(folder, scored):
    """Its newest checkpoint, without being named."""
    log = read_log("run/log.txt")
    table, facts = scored()
    [model] = facts["models"]
    assert model["model"] == "run/checkpoint_000003" and list(table) == [model["model"]]
    assert model["val"] == pytest.approx(log["val"][1][-1], rel=1e-6)
    assert model["hella"] == log["hella"][1][-1]
    assert model["parameters"] == 257 * 32 + 32 * 32 + 2 * (12 * 32 * 32 + 13 * 32) + 2 * 32
    assert (facts["val_tokens"], facts["examples"], facts["data"]) == (512, 30, "shards")
    assert (facts["hellaswag"], facts["device"], facts["ranks"]) == ("h.jsonl", "cpu", 1)


def test_several_models_are_scored_as_transformers_scores_them(folder, scored):
    """A checkpoint, another network, and a run, whose newest checkpoint it is: one line each."""
    names = ["run/checkpoint_000002", "lively", "run/checkpoint_000003"]
    table, facts = scored("--init-from", "run/checkpoint_000002, lively,run")
    assert list(table) == [model["model"] for model in facts["models"]] == names
    for model in facts["models"]:
        val, acc, acc_norm = by_hand(model["model"])
        assert model["val"] == pytest.approx(val, rel=1e-5)
        for name, correct in ("hella", acc_norm), ("hella_acc", acc):
            share = correct / 30
            assert model[name] == pytest.approx(share)
            assert model[f"{name}_se"] == pytest.approx(math.sqrt(share * (1 - share) / 30))
        assert table[model["model"]] == {name: f"{model[name]:.4f}"
                                         for name in ("val", "hella", "hella_acc")}
    assert len({model["val"] for model in facts["models"]}) == 3


def test_the_vocabulary_is_the_datas(folder, scored):
    """None was given; the second network is made after the first was scored."""
    table, _ = scored("--vocab-size", "None", "--data", "pydoc", "--init-from", "lively,run")
    assert len(table) == 2


def test_a_folder_with_a_comma_is_one_model(folder, scored, tmp_path):
    shutil.copytree("lively", tmp_path / "a,b")
    table, facts = scored("--init-from", tmp_path / "a,b")
    assert list(table) == [str(tmp_path / "a,b")]


def test_without_data_only_the_rest_is_scored(folder, scored):
    _, facts = scored("--data", "none", "--init-from", "lively", "--vocab-size", "None")
    assert facts["models"][0].keys() == {"model", "parameters", "hella", "hella_se", "hella_acc",
                                         "hella_acc_se", "seconds"}
    assert facts["val_tokens"] == 0


def test_data_too_small_to_train_on_will_do(folder, scored, tmp_path):
    """Less than a batch, and not a multiple of it: nothing is trained."""
    write_shards(tmp_path / "small", n_train=50)
    _, facts = scored("--data", tmp_path / "small", "--total-batch-size", 1000)
    assert facts["models"][0]["val"] > 0


def everything(folder):
    return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes())
            for path in folder.rglob("*")}


def test_nothing_is_written_and_no_lock_is_taken(folder, scored):
    """Another run is at work in the folder, and stays undisturbed."""
    before = everything(folder)
    with FileLock("run/.lock"):
        scored()
    assert everything(folder) == before


@pytest.mark.slow
def test_ranks_share_the_work(folder, scored):
    """Three processes, which share 16 rows and 30 examples unevenly, find what one finds."""
    _, alone = scored("--init-from", "lively,run")
    done = start("train_gpt2.py", *FLAGS, "--eval-only", "--init-from", "lively,run", ranks=3)
    assert done.returncode == 0, done.stderr
    together = json.loads(done.stdout.splitlines()[-1])
    assert together["ranks"] == 3 and done.stdout.count('{"models"') == 1
    for a, b in zip(alone["models"], together["models"], strict=True):
        del a["seconds"], b["seconds"]
        assert a.pop("model") == b.pop("model")
        assert b == pytest.approx(a, rel=1e-6)


@pytest.mark.parametrize("flags, words", [
    (["--init-from", "lively,other"], "--init-from other has 500 ids, the run 257"),
    (["--init-from", "lively,missing"], "no model missing: choose gpt2"),
    (["--init-from", "lively", "--T", 64], "longer than the 40 positions"),
    (["--out-dir", "nothing"], "no model nothing: choose gpt2"),
    (["--data", "none", "--hellaswag", "heldout"], "heldout is cut from validation text"),
    (["--data", "nowhere"], "no train shards in nowhere"),
    (["--hellaswag", "h.json"], "no HellaSwag file h.json"),
    (["--B", 0], "--B 0: give 1 or more"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_refused_before_anything_is_scored(flags, words, folder, monkeypatch, capsys):
    """The second model, too: scoring the first may take hours."""
    monkeypatch.setattr(train_gpt2, "validate", lambda *args: pytest.fail("it was scored"))
    before = everything(folder)
    assert words in refusal(train_gpt2.main, *FLAGS, "--eval-only", *flags,
                            monkeypatch=monkeypatch, capsys=capsys)
    assert everything(folder) == before


def test_a_loss_that_is_not_finite_is_not_reported(folder, monkeypatch, capsys, tmp_path):
    """Finite weights whose logits are not."""
    shutil.copytree("lively", tmp_path / "huge")
    weights = load_file("lively/model.safetensors")
    weights["transformer.wte.weight"] *= 1e38
    save_file(weights, tmp_path / "huge" / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr("sys.argv", ["train_gpt2.py", *map(str, FLAGS), "--eval-only",
                                     "--hellaswag", "none", "--init-from", str(tmp_path / "huge")])
    with pytest.raises(ValueError, match="huge: val is (nan|inf): take other weights"):
        train_gpt2.main()
    assert "models" not in capsys.readouterr().out


def test_settings_that_a_checkpoint_lacks_have_not_changed():
    """They were added after it was written: a resumed run does not call that a change."""
    config = train_gpt2.TrainConfig()
    facts = {"config": train_gpt2.asdict(config), "shards": []}
    del facts["config"]["eval_only"]
    assert changed_settings(config, facts, []) == {}


def test_a_network_with_another_tokenizer_is_refused(folder, tmp_path, monkeypatch, capsys):
    """Its ids are as many, and mean something else."""
    lively_gpt(block_size=40).save_pretrained(tmp_path / "other")
    facts = json.loads(tokenizer_json(get_tokenizer("bytes")))
    vocab = facts["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(facts))
    said = refusal(train_gpt2.main, *FLAGS, "--eval-only", "--init-from", tmp_path / "other",
                   monkeypatch=monkeypatch, capsys=capsys)
    assert "id 97 is b'b' to --init-from" in said and ", b'a' to the data's" in said
