"""The command line: presets, flags, and one line for each kind of bad input."""

import json

import numpy as np
import pytest
import torch
from helpers import (
    TINY,
    lively_gpt,
    offline,
    refusal,
    start,
    text_tokens,
    write_shards,
)

import train_gpt2
from train_gpt2 import GPT, PRESETS, GPTConfig, check_config, parse_args


def test_no_preset_is_the_videos_run():
    assert parse_args([]) == parse_args(["gpt2-124M"]) == PRESETS["gpt2-124M"]
    config = parse_args([])
    assert (config.B, config.T, config.total_batch_size, config.max_lr, config.final_lr,
            config.warmup_steps, config.weight_decay, config.val_tokens, config.max_steps) == (
        64, 1024, 524_288, 6e-4, pytest.approx(6e-5), 715, 0.1, 10_485_760, None)


@pytest.mark.parametrize("name, parameters", [
    ("gpt2-124M", 124_439_808), ("gpt2-350M", 354_823_168), ("gpt2-774M", 774_030_080),
    ("gpt2-1558M", 1_557_611_200), ("gpt3-125M", 125_226_240)])
def test_sizes_of_the_presets(name, parameters):
    """The published numbers of parameters; batches that divide on one card and on eight."""
    config = PRESETS[name]
    with torch.device("meta"):
        model = GPT(GPTConfig(config.T, 50257, config.n_layer, config.n_head,
                              config.n_embd))
    assert model.num_params() == parameters
    for ranks in 1, 8:  # on one card and on eight the batch divides
        assert check_config(config, ranks) * ranks * config.B * config.T == config.total_batch_size


def test_presets_follow_gpt3():
    """GPT-3 paper, table 2.1; the decay ends at a tenth."""
    assert [PRESETS[name].max_lr for name in ("gpt2-124M", "gpt2-350M", "gpt2-774M", "gpt2-1558M")
            ] == [6e-4, 3e-4, 2.5e-4, 2e-4]
    for name in PRESETS:
        if name.startswith("gpt"):  # 375M tokens of warm-up, whatever the batch
            tokens = PRESETS[name].warmup_steps * PRESETS[name].total_batch_size
            assert tokens == pytest.approx(375e6, rel=2e-3)
    assert parse_args(["--max-lr", "1e-3"]).final_lr == pytest.approx(1e-4)
    assert parse_args(["--min-lr", "0"]).final_lr == 0


def test_flags():
    config = parse_args(["laptop", "--n-layer", "3", "--max_steps", "7", "--no-compile"])
    assert (config.n_layer, config.max_steps, config.compile) == (3, 7, False)
    assert parse_args(["--compile"]).compile is True
    assert parse_args([]).compile is None
    assert (config.data, config.out_dir) == ("pydoc", "log/laptop")


def test_every_preset_has_a_folder_of_its_own():
    assert {name: preset.out_dir for name, preset in PRESETS.items()} == {
        name: f"log/{name}" for name in PRESETS}


def test_help_lists_every_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_args(["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    for flag in ("data out-dir init-from B T total-batch-size max-steps max-lr min-lr warmup-steps "
                 "weight-decay eval-every val-tokens checkpoint-every hellaswag seed device dtype "
                 "compile n-layer n-head n-embd vocab-size").split():
        assert f"--{flag} " in said, flag
    assert all(name in said for name in PRESETS)


@pytest.mark.parametrize("flag, value, words", [
    ("--rate", "1", "Unrecognized options: --rate"), ("--T", "many", "Error parsing --T: invalid"),
    ("--dtype", "int8", "invalid choice 'int8'")])
def test_flags_that_cannot_be_read(flag, value, words, capsys):
    """tyro names them in a few lines; the status is 2, as for all that the user can fix."""
    with pytest.raises(SystemExit) as stop:
        parse_args(["laptop", flag, value])
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.out == ""
    assert words in " ".join(said.err.split())


def damage_shard(change):
    def damage(folder):
        path = folder / "shards" / "text_train_000001.npy"
        change(path)
    return damage


def past_the_vocabulary(path):
    path = path.with_name("text_train_000002.npy")  # not the first, and at its very end
    tokens = np.load(path)
    tokens[-1] = 257
    np.save(path, tokens)


def broken_line(folder):
    example = {"ctx": "a b", "endings": ["c", "d", "e", "f"], "label": 0}
    (folder / "h.jsonl").write_text(f"{json.dumps(example)}\n" * 4 + "{broken\n")


def other_model(folder):
    lively_gpt(vocab_size=500).save_pretrained(folder / "other")


def short_model(folder):
    lively_gpt(block_size=16).save_pretrained(folder / "short")


# name -> (what to break, flags besides TINY and the data, words of the one line)
REFUSED = {
    "unknown preset": (None, ["gpt5"], "no preset gpt5: choose one of gpt2-124M"),
    "mistyped preset": (None, ["laptp"], "no preset laptp (did you mean laptop?)"),
    "missing data": (None, ["--data", "nowhere"], "no train shards in nowhere: run"),
    "cut shard": (damage_shard(lambda p: p.write_bytes(p.read_bytes()[:-9])), [], "_000001.npy"),
    "random shard": (damage_shard(lambda p: p.write_bytes(bytes(range(256)))), [], "_000001.npy"),
    "wrong dtype": (damage_shard(lambda p: np.save(p, np.zeros(9, np.int32))), [], "int32"),
    "past the vocabulary": (damage_shard(past_the_vocabulary), [], "holds the id 257"),
    "other tokenizer": (None, ["--vocab-size", "50257"], "with tokenizer bytes"),
    "no tokenizer": (None, ["--vocab-size", "1000"], "1000 ids belongs to no known tokenizer"),
    "fewer tokens than a batch": (None, ["--total-batch-size", "65536"],
                               "holds 40000 training tokens, less than one batch of 65536"),
    "batch does not divide": (None, ["--B", "7"], "a multiple of B x T x ranks = 7 x 32 x 1"),
    "B of 0": (None, ["--B", "0"], "--B 0: give 1 or more"),
    "T of 0": (None, ["--T", "0"], "--T 0: give 1 or more"),
    "heads do not divide": (None, ["--n-head", "5"], "n_embd 32 is not a multiple of n_head 5"),
    "missing init": (None, ["--init-from", "nothing"], "no model nothing: choose gpt2"),
    "foreign init": (None, ["--init-from", "shards"], "config.json"),
    "init of other ids": (other_model, ["--init-from", "other"], "has 500 ids, the run 257"),
    "init too short": (short_model, ["--init-from", "short"], "longer than the 16 positions"),
    "hellaswag missing": (None, ["--hellaswag", "h.json"], "no HellaSwag file h.json"),
    "hellaswag broken": (broken_line, ["--hellaswag", "h.jsonl"], "line 5 is not a HellaSwag"),
    "no network for HellaSwag": (None, ["--hellaswag", "Rowan/hellaswag"], "go online once"),
    "no network for weights": (None, ["--init-from", "gpt2"], "cannot get the weights of gpt2"),
    "folder is a file": (lambda f: (f / "file").write_text(""), ["--out-dir", "file/run"],
                         "cannot write to file/run"),
    "no such device": (None, ["--device", "tpu"], "--device tpu"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_one_line_status_2_nothing_written(name, tmp_path, monkeypatch, capsys):
    """In this process, for speed; `run` is what `if __name__ == "__main__"` calls."""
    damage, flags, words = REFUSED[name]
    write_shards(tmp_path / "shards")
    np.save(tmp_path / "shards" / "extra.npy", text_tokens(9))
    if damage:
        damage(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    preset = [flag for flag in flags[:1] if not flag.startswith("-")] or ["gpt2-124M"]
    monkeypatch.chdir(tmp_path)
    offline(monkeypatch, tmp_path / "empty")
    said = refusal(train_gpt2.main, *preset, *TINY, "--data", "shards", "--out-dir", "run",
                   "--max-steps", 1, *(flag for flag in flags if [flag] != preset),
                   monkeypatch=monkeypatch, capsys=capsys)
    assert words in said
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()
             and "empty" not in path.parts}
    assert after == before


def test_status_of_the_real_process():
    done = start("train_gpt2.py", "gpt5")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: no preset gpt5") and done.stderr.count("\n") == 1


def test_gpt2s_vocabulary_without_network(tmp_path, monkeypatch, capsys):
    """The tokenizer is loaded before anything is written; if it is missing, the run says so."""
    import tiktoken.registry

    folder = write_shards(tmp_path / "shards", manifest=False)
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})  # another test may have loaded it
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    said = refusal(train_gpt2.main, *TINY, "--data", folder, "--vocab-size", 50257, "--out-dir",
                   tmp_path / "run", monkeypatch=monkeypatch, capsys=capsys)
    assert "cannot get GPT-2's vocabulary" in said and not (tmp_path / "run").exists()


def test_refused_under_torchrun_too(tmp_path):
    done = start("train_gpt2.py", *TINY, "--data", "nowhere", "--out-dir", tmp_path / "run",
                 ranks=2)
    assert done.returncode != 0
    assert "error: no train shards in nowhere" in done.stderr
    assert not (tmp_path / "run").exists()


def test_help_shows_the_prompt_as_it_is(capsys):
    """Not as a shell would quote it."""
    for preset in [], ["laptop"]:
        with pytest.raises(SystemExit):
            parse_args([*preset, "--help"])
    said = " ".join(capsys.readouterr().out.replace("│", "").split())
    assert "(default: Hello, I'm a language model,)" in said and "(default: The )" in said
