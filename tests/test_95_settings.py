"""Settings from a TOML file: preset, file, flags; a run's own config.toml gives it again."""

from dataclasses import replace

import pytest
from helpers import TINY, main_here, refusal, write_shards

import train_gpt2
from nanogpt.common import UserError
from nanogpt.report import read_log
from nanogpt.presets import OWN_TEXT, to_toml
from train_gpt2 import PRESETS, parse_args


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_preset_then_file_then_flags(tmp_path):
    file = write(tmp_path / "my.toml", 'max_lr = 3e-3\nB = 4\nshuffle = false\ncompile = true\n')
    config = parse_args(["laptop", file, "--B", "8"])
    assert config == replace(PRESETS["laptop"], max_lr=3e-3, B=8, shuffle=False, compile=True)
    assert parse_args([file]) == replace(PRESETS["gpt2-124M"], max_lr=3e-3, B=4, compile=True)
    assert parse_args([file, "laptop"]).n_layer == 2


def test_the_file_may_name_the_preset(tmp_path):
    file = write(tmp_path / "my.toml", 'preset = "laptop"\nseed = 5\n')
    assert parse_args([file]) == replace(PRESETS["laptop"], seed=5)
    assert parse_args(["gpt2-350M", file]).n_layer == 24  # the command line is stronger


@pytest.mark.parametrize("text, words", [
    ("max_lrr = 1", "max_lrr is not a setting (did you mean max_lr?)"),
    ("nonsense = 1", "nonsense is not a setting: --help has them all"),
    ("B = [1, 2]", "B is not a setting"), ("[B]\nx = 1", "B is not a setting"),
    ("B = ", "give a TOML file"), ('preset = "laptp"', "no preset laptp (did you mean laptop?)"),
    ("preset = 5", "no preset 5"), ("shuffle = 3", "shuffle = 3: give true or false"),
    ('resume = "yes"', "resume = yes: give true or false")])
def test_what_a_file_cannot_say(text, words, tmp_path):
    with pytest.raises(UserError) as error:
        parse_args([write(tmp_path / "my.toml", text)])
    assert words in str(error.value)


@pytest.mark.parametrize("text", ['B = "x"', "B = 1.5", 'compile = "perhaps"',
                                  "B = true", 'optimizer = "sgd"'])
def test_values_of_the_wrong_kind_end_with_status_2(text, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_args([write(tmp_path / "my.toml", text)])
    assert stop.value.code == 2
    assert f"--{text.split()[0]}" in capsys.readouterr().err


def test_other_words_are_refused(tmp_path):
    file = write(tmp_path / "my.toml", "")
    for args, words in ([["laptop", "gpt2-350M"], "gpt2-350M: give one preset"],
                        [[file, file], "my.toml: give one preset"],
                        [[str(tmp_path / "no.toml")], "No such file"]):
        with pytest.raises(UserError, match=words):
            parse_args(args)
    (tmp_path / "mark.toml").write_bytes("seed = 7".encode("utf-8-sig"))  # Windows' editors
    assert parse_args([str(tmp_path / "mark.toml")]).seed == 7
    (tmp_path / "latin.toml").write_bytes(b'prompt = "\xe9"')
    with pytest.raises(UserError, match="give a TOML file"):
        parse_args([str(tmp_path / "latin.toml")])


@pytest.mark.parametrize("config", [
    *(preset for name, preset in PRESETS.items() if name != "shakespeare-char"),
    replace(PRESETS["laptop"], prompt='a "b" \\ \n\t\x7f\0 \u00e9 \U0001f600', min_lr=None,
            max_lr=1e-30, compile=False, keep=2, hellaswag="")], ids=lambda c: c.out_dir)
def test_every_configuration_comes_back(config, tmp_path):
    assert parse_args([write(tmp_path / "c.toml", to_toml(config))]) == config


@pytest.mark.slow
def test_a_runs_own_file_gives_the_same_run(tmp_path, monkeypatch):
    flags = [*TINY, "--data", write_shards(tmp_path / "data"), "--out-dir", tmp_path / "one",
             "--max-steps", 4, "--val-tokens", 512, "--dropout", 0.1, "--shuffle-rows"]
    main_here(monkeypatch, *flags)
    main_here(monkeypatch, tmp_path / "one" / "config.toml", "--out-dir", tmp_path / "two")
    logs = [read_log(tmp_path / name / "log.txt") for name in ("one", "two")]
    assert logs[0]["train"] == logs[1]["train"] and logs[0]["val"] == logs[1]["val"]
    weights = [(tmp_path / name / "checkpoint_000004" / "model.safetensors").read_bytes()
               for name in ("one", "two")]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_somebody_elses_file_stays(tmp_path, monkeypatch, capsys):
    (tmp_path / "run").mkdir()
    file = write(tmp_path / "run" / "config.toml", "# mine\nseed = 3\n")
    flags = [*TINY, "--data", write_shards(tmp_path / "data"), "--out-dir", tmp_path / "run",
             "--max-steps", 1, "--val-tokens", 64]
    main_here(monkeypatch, file, *flags)
    assert open(file).read() == "# mine\nseed = 3\n"
    assert "config.toml is not this program's, and stays" in capsys.readouterr().out
    (tmp_path / "run" / "config.toml").unlink()
    for seed in 4, 5:  # its own is written anew
        main_here(monkeypatch, *flags, "--seed", seed)
        assert parse_args([file]).seed == seed


@pytest.mark.slow
def test_a_resumed_run_says_what_changed(tmp_path, monkeypatch, capsys):
    """Its file has the settings it goes on with, and until when it had others."""
    file, flags = tmp_path / "run" / "config.toml", [
        *TINY, "--data", write_shards(tmp_path / "data"), "--out-dir", tmp_path / "run",
        "--val-tokens", 64, "--checkpoint-every", 1, "--resume"]
    main_here(monkeypatch, *flags, "--max-steps", 2)
    first = file.read_text()
    assert first.startswith(f"# written by: python train_gpt2.py {file}   (which gives the same")
    main_here(monkeypatch, *flags, "--max-steps", 2)
    refusal(train_gpt2.main, *flags, "--max-steps", 1, monkeypatch=monkeypatch, capsys=capsys)
    assert file.read_text() == first
    main_here(monkeypatch, *flags, "--max-steps", 3, "--prompt", "a\nb")
    assert file.read_text().splitlines()[:3] == [
        f"# written by: python train_gpt2.py {file}   (it had other settings before:)",
        "# until step 2: max_steps = 2", '# until step 2: prompt = "Hello, I\'m a language model,"']
    main_here(monkeypatch, *flags, "--max-steps", 4, "--prompt", "a\nb")
    assert [line for line in file.read_text().splitlines() if line[0] == "#"][1:] == [
        "# until step 2: max_steps = 2", '# until step 2: prompt = "Hello, I\'m a language model,"',
        "# until step 3: max_steps = 3"]
    config = parse_args([str(file)])
    assert (config.max_steps, config.prompt, config.resume) == (4, "a\nb", False)
    main_here(monkeypatch, *flags[:-1], "--max-steps", 2)  # a new run
    assert file.read_text() == first


def test_presets_for_ones_own_text():
    """nanoGPT's: config/train_shakespeare_char.py, its README, config/finetune_shakespeare.py."""
    c = PRESETS["shakespeare-char"]
    assert (c.n_layer, c.n_head, c.n_embd, c.T, c.dropout, c.B, c.total_batch_size, c.max_steps,
            c.max_lr, c.min_lr, c.warmup_steps) == (6, 6, 384, 256, 0.2, 64, 64 * 256, 5000, 1e-3,
                                                    1e-4, 100)
    c = PRESETS["shakespeare-char-cpu"]
    assert (c.n_layer, c.n_head, c.n_embd, c.T, c.dropout, c.total_batch_size, c.max_steps) == (
        4, 4, 128, 64, 0.0, 12 * 64, 2000)
    c = PRESETS["finetune"]
    assert (c.init_from, c.max_lr, c.final_lr, c.total_batch_size, c.keep_best) == (
        "gpt2", 3e-5, 3e-5, 32 * 1024, True)
    assert train_gpt2.get_lr(0, c.max_lr, c.final_lr, c.warmup_steps, 20) == 3e-5
    for name in OWN_TEXT:
        assert PRESETS[name].out_dir == f"log/{name}"
        assert train_gpt2.check_config(PRESETS[name], 1) >= 1


@pytest.mark.parametrize("gpu", [True, False])
def test_without_a_gpu_the_preset_is_smaller(gpu, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    config = parse_args(["shakespeare-char", "--seed", "7"])
    assert (config.n_embd, config.out_dir, config.seed) == (
        384 if gpu else 128, "log/shakespeare-char", 7)
    assert ("is shakespeare-char-cpu here" in capsys.readouterr().out) is not gpu


def test_dropout_has_limits(monkeypatch, capsys):
    for value in "-0.1", "1", "nan":
        said = refusal(train_gpt2.main, *TINY, "--dropout", value, monkeypatch=monkeypatch,
                       capsys=capsys)
        assert f"--dropout {float(value)}: give" in said
