"""The command line: presets, flags, and one line for what cannot be."""

import json
import shutil

import numpy as np
import pytest
import torch
from helpers import TINY, lively_gpt, start, text_tokens, write_shards

from common import UserError, run
from train_gpt2 import GPT, PRESETS, GPTConfig, check_config, parse_args, read_log


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
    config = PRESETS[name]
    with torch.device("meta"):
        model = GPT(GPTConfig(config.T, config.vocab_size, config.n_layer, config.n_head,
                              config.n_embd))
    assert model.num_params() == parameters
    for ranks in 1, 8:  # on one card and on eight the batch divides
        assert check_config(config, ranks) * ranks * config.B * config.T == config.total_batch_size


def test_flags():
    config = parse_args(["laptop", "--n-layer", "3", "--max_steps", "7", "--no-compile"])
    assert (config.n_layer, config.max_steps, config.compile) == (3, 7, False)
    assert parse_args(["--compile"]).compile is True
    assert parse_args([]).compile is None
    assert (config.data, config.out_dir) == ("pydoc", "log/laptop")


def test_help_lists_every_flag():
    done = start("train_gpt2.py", "--help")
    assert done.returncode == 0
    for flag in ("data out-dir init-from B T total-batch-size max-steps max-lr min-lr warmup-steps "
                 "weight-decay eval-every val-tokens checkpoint-every hellaswag seed device dtype "
                 "compile n-layer n-head n-embd vocab-size").split():
        assert f"--{flag} " in done.stdout, flag
    assert all(name in done.stdout for name in PRESETS)


@pytest.mark.parametrize("flag, value", [
    ("B", 0), ("B", -1), ("T", 0), ("n_layer", 0), ("n_head", 0), ("n_embd", 0), ("max_steps", 0),
    ("eval_every", 0), ("checkpoint_every", 0), ("val_tokens", 0), ("warmup_steps", -1),
    ("total_batch_size", 0), ("total_batch_size", 1000), ("weight_decay", -0.1),
    ("weight_decay", float("nan")), ("min_lr", 1.0), ("min_lr", -1.0), ("max_lr", float("nan")),
    ("max_lr", float("inf")), ("hellaswag_limit", 0), ("seed", -1), ("print_every", 0)])
def test_settings_that_cannot_be(flag, value):
    config = parse_args([f"--{flag.replace('_', '-')}={value}"])
    with pytest.raises(UserError, match=f"--{flag.replace('_', '-')} {value}"):
        check_config(config, 1)


def test_batch_that_does_not_divide_names_the_way_out():
    with pytest.raises(UserError, match="64 x 1024 x 3 = 196608: try 589824"):
        check_config(PRESETS["gpt2-124M"], 3)


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
    lively_gpt(vocab_size=300).save_pretrained(folder / "other")


def short_model(folder):
    lively_gpt(block_size=16).save_pretrained(folder / "short")


# name -> (what to break, flags besides TINY and the data, words of the one line)
REFUSED = {
    "unknown preset": (None, ["gpt5"], "no preset gpt5: choose one of gpt2-124M"),
    "unknown flag": (None, ["--rate", "1"], "Unrecognized options: --rate"),
    "not a number": (None, ["--B", "many"], "Error parsing --B: invalid literal"),
    "unknown dtype": (None, ["--dtype", "int8"], "invalid choice 'int8' for argument '--dtype'"),
    "missing data": (None, ["--data", "nowhere"], "no train shards in nowhere: run"),
    "cut shard": (damage_shard(lambda p: p.write_bytes(p.read_bytes()[:-9])), [], "_000001.npy"),
    "random shard": (damage_shard(lambda p: p.write_bytes(bytes(range(256)))), [], "_000001.npy"),
    "wrong dtype": (damage_shard(lambda p: np.save(p, np.zeros(9, np.int32))), [], "int32"),
    "past the vocabulary": (damage_shard(past_the_vocabulary), [], "holds the id 257"),
    "other tokenizer": (None, ["--vocab-size", "50257"], "of the tokenizer bytes"),
    "no tokenizer": (None, ["--vocab-size", "1000"], "1000 ids belongs to no known tokenizer"),
    "fewer tokens than a batch": (None, ["--total-batch-size", "65536"],
                               "holds 40000 training tokens, less than one batch of 65536"),
    "batch does not divide": (None, ["--B", "7"], "does not divide by B x T x ranks = 7 x 32 x 1"),
    "B of 0": (None, ["--B", "0"], "--B 0: give 1 or more"),
    "T of 0": (None, ["--T", "0"], "--T 0: give 1 or more"),
    "heads do not divide": (None, ["--n-head", "5"], "--n-embd 32 does not divide by --n-head 5"),
    "missing init": (None, ["--init-from", "nothing"], "no model nothing: choose gpt2"),
    "foreign init": (None, ["--init-from", "shards"], "config.json"),
    "init of other ids": (other_model, ["--init-from", "other"], "has 300 ids, the run 257"),
    "init too short": (short_model, ["--init-from", "short"], "longer than the 16 positions"),
    "hellaswag missing": (None, ["--hellaswag", "h.json"], "no HellaSwag file h.json"),
    "hellaswag broken": (broken_line, ["--hellaswag", "h.jsonl"], "h.jsonl line 5 is no HellaSwag"),
    "no network for HellaSwag": (None, ["--hellaswag", "Rowan/hellaswag"], "go online once"),
    "no network for weights": (None, ["--init-from", "gpt2"], "cannot get the weights of gpt2"),
    "folder is a file": (lambda f: (f / "file").write_text(""), ["--out-dir", "file/run"],
                         "cannot write to file/run"),
    "no such device": (None, ["--device", "tpu"], "--device tpu"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_one_line_status_2_nothing_written(name, tmp_path, monkeypatch, capsys):
    """In this process, for speed; `run` is what stands under `if __name__ == "__main__"`."""
    import sys

    import huggingface_hub.constants

    import common
    import train_gpt2

    damage, flags, words = REFUSED[name]
    write_shards(tmp_path / "shards")
    np.save(tmp_path / "shards" / "extra.npy", text_tokens(9))
    if damage:
        damage(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    preset = [flag for flag in flags[:1] if not flag.startswith("-")] or ["gpt2-124M"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(sys, "argv", ["train_gpt2.py", *preset, *TINY, "--data", "shards",
                                      "--out-dir", "run", "--max-steps", "1",
                                      *(flag for flag in flags if [flag] != preset)])
    with pytest.raises(SystemExit) as stop:
        common.run(train_gpt2.main)
    said = capsys.readouterr()
    assert stop.value.code == 2
    assert said.err.startswith("error: ") and said.err.count("\n") == 1, said.err
    assert words in said.err
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()
             and "empty" not in path.parts}
    assert after == before


def test_status_of_the_real_process(tmp_path):
    done = start("train_gpt2.py", "gpt5")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: no preset gpt5") and done.stderr.count("\n") == 1


def test_gpt2s_vocabulary_without_network(tmp_path):
    folder = write_shards(tmp_path / "shards", manifest=False)
    done = start("train_gpt2.py", *TINY, "--data", folder, "--vocab-size", 50257, "--out-dir",
                 tmp_path / "run", env={"TIKTOKEN_CACHE_DIR": str(tmp_path / "empty"),
                                        "HTTPS_PROXY": "http://127.0.0.1:9"})
    assert done.returncode == 2 and "cannot get GPT-2's vocabulary" in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("error, shown", [
    (torch.OutOfMemoryError("CUDA out of memory. Tried"), "error: out of memory: halve --B"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
     "error: out of memory: halve --B"),
    (OSError(28, "No space left on device", "log.txt"), "error: [Errno 28] No space left"),
    (UserError("two\nlines"), "error: two lines")])
def test_what_the_user_can_mend_is_one_line(error, shown, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        run(main)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith(shown) and said.count("\n") == 1


def test_a_mistake_of_ours_keeps_its_traceback():
    def main():
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        run(main)


def test_refused_under_torchrun_too(tmp_path):
    done = start("train_gpt2.py", *TINY, "--data", "nowhere", "--out-dir", tmp_path / "run",
                 ranks=2)
    assert done.returncode != 0
    assert "error: no train shards in nowhere" in done.stderr
    assert not (tmp_path / "run").exists()


def test_sizes_in_the_log_are_the_networks(tmp_path):
    lively_gpt(block_size=32, n_layer=1, n_head=4, n_embd=64).save_pretrained(tmp_path / "model")
    done = start("train_gpt2.py", *TINY, "--data", write_shards(tmp_path / "shards"), "--out-dir",
                 tmp_path / "run", "--max-steps", 1, "--init-from", tmp_path / "model")
    assert done.returncode == 0, done.stderr
    config = read_log(tmp_path / "run" / "log.txt")["run"]["config"]
    assert (config["n_layer"], config["n_head"], config["n_embd"]) == (1, 4, 64)


def test_laptop_is_the_whole_job(tmp_path):
    """A few steps of it: data, training, evaluation, samples, log, picture, weights, advice."""
    done = start("train_gpt2.py", "laptop", "--max-steps", 30, "--eval-every", 30, "--warmup-steps",
                 5, "--sample-tokens", 20, "--hellaswag-limit", 40, "--out-dir", tmp_path / "run",
                 "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "validation" in done.stdout and "40 examples of heldout" in done.stdout
    assert done.stdout.count("sample 3: 'The ") + done.stdout.count('sample 3: "The ') == 2
    files = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert files == ["checkpoint_000030", "curves.png", "log.txt"]
    for name in files:
        assert str(tmp_path / "run" / name) in done.stdout
    shutil.rmtree(tmp_path / "run")
