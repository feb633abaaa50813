"""A checkpoint that other tools and readers open, and what of it is ours: against transformers, and
against how huggingface_hub reads a model card."""

import json
import re
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from helpers import (
    TINY,
    contents,
    gpt2_vocabulary_missing,
    lively_gpt,
    main_here,
    small_gpt,
    stream_of,
    training,
    write_shards,
)

import train_gpt2
from nanogpt import card
from nanogpt.card import FOR_OTHERS
from nanogpt.checkpoints import Damaged, ours, read_facts, remove_old, save_checkpoint
from nanogpt.disk import discard
from nanogpt.report import Log
from nanogpt.tokenizer import get_tokenizer

needs_gpt2 = pytest.mark.skipif(bool(gpt2_vocabulary_missing()), reason=gpt2_vocabulary_missing())


def save(folder, key="bytes", step=3, **settings):
    """A checkpoint of a lively network that was never trained, as a run with a log saves it: the
    network, and its tokenizer."""
    enc = get_tokenizer(key)
    stream = stream_of([1, 2, 3] * 512, enc.n_vocab)
    stream.enc = enc
    model = lively_gpt(vocab_size=enc.n_vocab, block_size=64)
    config = replace(train_gpt2.parse_args([*TINY, "--keep", "1"]), **settings)
    t = training(model, train_gpt2.DataLoader(stream, 1, 16, position=3072), step=step)
    folder.parent.mkdir(exist_ok=True)
    log = Log(folder.parent / "log.txt", master_process=True)
    log.note(config={"vocab_size": enc.n_vocab, "hellaswag": "none"})
    for kind, value in ("val", 5.5), ("train", 4.25), ("val", 3.125), ("hella", 0.3):
        log.value(step, kind, value)
    size = log.size()
    log.value(step + 1, "val", 9.9)  # training has gone on in the meantime
    save_checkpoint(folder, t, config, log_size=size, shards=[])
    log.path.unlink()
    return model.eval(), enc


LETTERS = "chars:" + "".join(sorted(set(" abcdefghijklmnopqrstuvwxyzT.\n")))


@pytest.mark.parametrize("key", ["bytes", LETTERS, LETTERS.replace(":", "+eot:"), pytest.param(
    "gpt2", marks=needs_gpt2)], ids=["bytes", "characters", "with end", "gpt2"])
def test_a_pipeline_writes_what_generate_does(key, tmp_path, capfd):
    """At temperature 0; and by default it ends before the positions do, without a remark."""
    from transformers import AutoModelForCausalLM, pipeline

    model, enc = save(tmp_path / "c", key)
    idx = torch.tensor([enc.encode_ordinary("The cat")])
    new = model.generate(idx, 20, temperature=0)[0].tolist()
    write = pipeline("text-generation", model=str(tmp_path / "c"))
    [found] = write("The cat", max_new_tokens=20, do_sample=False)
    assert found["generated_text"] == enc.decode(new).partition("<|endoftext|>")[0]
    assert len(write.tokenizer(write("The cat")[0]["generated_text"])["input_ids"]) <= 64
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "c")
    for config in theirs.config, theirs.generation_config:
        assert (config.bos_token_id, config.eos_token_id) == (enc.eot_token, enc.eot_token)
    with torch.no_grad():
        torch.testing.assert_close(theirs(idx).logits, model(idx)[0], atol=1e-4, rtol=1e-4)
    assert "max_" not in capfd.readouterr().err


def test_the_manifest_lists_every_file(tmp_path):
    save(tmp_path / "c")
    listed = json.loads((tmp_path / "c" / "manifest.json").read_text())
    assert listed.keys() == {path.name for path in (tmp_path / "c").iterdir()} - {"manifest.json"}
    assert set(FOR_OTHERS) <= listed.keys()


def change_all(folder):
    for name in FOR_OTHERS:
        (folder / name).write_text("edited")


def lose_all(folder):
    for name in FOR_OTHERS:
        (folder / name).unlink()


def as_before(folder):
    """A checkpoint of an earlier version, which has none of these files."""
    lose_all(folder)
    path = folder / "manifest.json"
    listed = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in listed.items() if k not in FOR_OTHERS}))


@pytest.mark.parametrize("change", [change_all, lose_all, as_before])
def test_training_needs_none_of_them(change, tmp_path):
    """An edited or missing one is no damage, unlike weights."""
    save(tmp_path / "checkpoint_000003")
    change(tmp_path / "checkpoint_000003")
    assert read_facts(3, tmp_path / "checkpoint_000003")["step"] == 3
    (tmp_path / "checkpoint_000003" / "config.json").write_text("edited")
    with pytest.raises(Damaged, match="config.json is not the file that was written"):
        read_facts(3, tmp_path / "checkpoint_000003")


def two_checkpoints(folder):
    save(folder / "checkpoint_000003")
    shutil.copytree(folder / "checkpoint_000003", folder / "checkpoint_000004")
    return folder / "checkpoint_000003"


def test_a_checkpoint_goes_with_all_its_files(tmp_path):
    two_checkpoints(tmp_path)
    remove_old(tmp_path, 4, 1, None)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_000004"]


@pytest.mark.parametrize("name", FOR_OTHERS)
@pytest.mark.parametrize("old", [False, True])
def test_a_file_that_somebody_wrote_stays(name, old, tmp_path):
    """Put into an old checkpoint, which had none of that name, or written over ours."""
    folder = two_checkpoints(tmp_path)
    if old:
        as_before(folder)
    (folder / name).write_text("mine")
    remove_old(tmp_path, 4, 1, None)
    assert contents(tmp_path / "leftover_1") == {name: b"mine"}
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint_000004", "leftover_1"}


def test_deleting_that_was_interrupted_is_finished(tmp_path, monkeypatch):
    """The manifest, which says what is ours, goes last."""
    save(tmp_path / "saved")
    for n in range(11):
        old = tmp_path / "run" / ".checkpoint_000003.old"
        shutil.copytree(tmp_path / "saved", old)
        left, unlink = [n], type(old).unlink

        def killed(path, left=left, unlink=unlink, **more):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            unlink(path, **more)

        with monkeypatch.context() as patch:
            patch.setattr(type(old), "unlink", killed)
            try:
                discard(old, ours)
            except KeyboardInterrupt:
                pass
        discard(old, ours)
        assert list(old.parent.iterdir()) == []


def test_half_a_checkpoint_is_cleared_away(tmp_path, monkeypatch):
    """The run was killed, or the disk filled up, after the files for others were written."""
    def full(tensors, path, *args, **more):
        assert set(FOR_OTHERS) <= {each.name for each in path.parent.iterdir()}
        (path.parent / ".curves.png.tmp").touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nanogpt.checkpoints.save_file", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path / "run" / "c")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["log.txt"]


@pytest.mark.parametrize("broken, left", [
    ("tokenizer_files", {"README.md", "curves.png"}),
    ("model_card", {"generation_config.json", "tokenizer.json", "tokenizer_config.json"})])
def test_what_cannot_be_made_costs_no_checkpoint(broken, left, tmp_path, monkeypatch, capsys):
    """A line says why."""
    def fails(*args):
        raise RuntimeError("no merges")

    monkeypatch.setattr(card, broken, fails)
    save(tmp_path / "checkpoint_000003")
    assert read_facts(3, tmp_path / "checkpoint_000003")
    assert contents(tmp_path / "checkpoint_000003").keys() & set(FOR_OTHERS) == left
    said = capsys.readouterr().out
    assert said == "files for other tools are left out (RuntimeError: no merges)\n"


def test_tokens_of_no_text_have_no_tokenizer(tmp_path, capsys):
    t = training(small_gpt(), train_gpt2.DataLoader(stream_of([1, 2, 3]), 1, 2))
    save_checkpoint(tmp_path / "c", t, train_gpt2.parse_args(TINY))
    assert not contents(tmp_path / "c").keys() & set(FOR_OTHERS) and not capsys.readouterr().out


def read_card(folder):
    """The text of a README.md, and its head as the hub reads it."""
    from huggingface_hub import ModelCard

    found = ModelCard.load(folder / "README.md")
    return found.text, found.data.to_dict()


def test_the_model_card(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/a/train_gpt2.py", "laptop", "--prompt", "a b"])
    model, _ = save(tmp_path / "c", out_dir="log/mine", data="my|shards", prompt="It's {so}")
    text, head = read_card(tmp_path / "c")
    assert head == {"library_name": "transformers", "pipeline_tag": "text-generation",
                    "tags": ["gpt2"]}
    assert re.search(r"^# mine, step 3$", text, re.MULTILINE)
    for row in ("| text | my\\|shards; tokenizer: bytes, 257 ids |",
                "| network | 2 layers, 2 heads, 32 channels: "
                f"{model.num_params():,} parameters |",
                "| training | 3 steps, 3,072 tokens, 64 at a time: 2.00 epochs |",
                "| training loss | 4.2500 at step 3 |", "| validation loss | 3.1250 at step 3 |",
                "| endings right | 0.3000 at step 3 |"):
        assert f"\n{row}\n" in text, row
    assert "\n    python train_gpt2.py laptop --prompt 'a b'\n" in text
    assert '("It\'s {so}")' in text and "MIT" in text and "9.9" not in text
    assert (tmp_path / "c" / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_hub_is_told_of_its_own(tmp_path):
    """A data set and a network of the hub, which it then links."""
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "manifest.json").write_text('{"source": "HuggingFaceFW/fineweb-edu"}')
    save(tmp_path / "c", data=str(tmp_path / "shards"), init_from="gpt2-medium")
    text, head = read_card(tmp_path / "c")
    assert head["base_model"] == "openai-community/gpt2-medium"
    assert head["datasets"] == ["HuggingFaceFW/fineweb-edu"] and "| HuggingFaceFW/fineweb" in text
    save(tmp_path / "d", init_from="log/mine/checkpoint_000003")
    assert "base_model" not in read_card(tmp_path / "d")[1]


@pytest.mark.slow
def test_a_run_writes_them(tmp_path, monkeypatch):
    """In the background; after a resume too."""
    from transformers import AutoTokenizer

    args = [*TINY, "--data", write_shards(tmp_path / "shards"), "--out-dir", tmp_path / "run",
            "--val-tokens", 512, "--sample-tokens", 0, "--checkpoint-every", 2]
    main_here(monkeypatch, *args, "--max-steps", 2)
    main_here(monkeypatch, *args, "--max-steps", 4, "--resume")
    first, second = (contents(tmp_path / "run" / f"checkpoint_00000{n}") for n in (2, 4))
    for name in "tokenizer.json", "tokenizer_config.json", "generation_config.json":
        assert first[name] == second[name]
    assert b"at step 2 |" in first["README.md"] and b"at step 4 |" in second["README.md"]
    theirs = AutoTokenizer.from_pretrained(tmp_path / "run" / "checkpoint_000004")
    assert theirs("é")["input_ids"] == [0xC3, 0xA9]
