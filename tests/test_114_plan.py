"""--plan: memory by part for this run and for its variants; nothing is written."""

import pytest
import torch
from helpers import TINY, main_here, small_gpt, write_shards

import train_gpt2
from nanogpt.memory import Memory
from nanogpt.plan import VARIANTS, find_tokens


def plan_of(monkeypatch, capsys, *flags):
    """The rows that --plan prints: [(name, text)]."""
    main_here(monkeypatch, *flags, "--plan")
    lines = capsys.readouterr().out.splitlines()
    return [(name.strip(), text.removeprefix(" "))
            for name, _, text in (line.partition("|") for line in lines)]


def table(rows):
    """{variant: {part: number}} of the rows that begin with `memory`."""
    begin = [name for name, _ in rows].index("memory")
    parts = rows[begin + 1][1].replace("largest B", "largest_B").split()
    found = {}
    for _, text in rows[begin + 2 : begin + 2 + len(VARIANTS)]:
        cells = text.split()
        found[" ".join(cells[: -len(parts)])] = dict(zip(parts, map(float, cells[-len(parts) :]),
                                                         strict=True))
    return found


@pytest.mark.parametrize("ranks", [1, 4])
def test_every_variant_has_its_line(ranks, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    flags = [*TINY, "--data", write_shards(tmp_path / "shards"), "--out-dir", run, "--B", "2"]
    lines = table(plan_of(monkeypatch, capsys, *flags, "--ranks", ranks))
    assert list(lines) == list(VARIANTS)
    config = train_gpt2.parse_args(list(map(str, flags)))
    with torch.device("meta"):
        net = train_gpt2.init_model(config)
    for name, change in VARIANTS.items():
        expected = Memory(train_gpt2.replace(config, **change), net, ranks).parts()
        found = {part: 1e6 * lines[name][part] for part in expected}
        assert found == pytest.approx(expected, rel=0.006), name
        *parts, peak = expected.values()
        assert max(parts) < peak < 1.5 * sum(parts), name
    for saves in "--recompute", "--shard optimizer", "--shard model":
        less = lines[saves]["peak"] < lines["as given"]["peak"]
        assert less == (ranks > 1 or "shard" not in saves), saves
    assert not run.exists()


def test_without_data(tmp_path, monkeypatch, capsys):
    """The network has GPT-2's vocabulary. Four bytes for each weight and gradient, eight for its
    two moments."""
    monkeypatch.chdir(tmp_path)
    given = table(plan_of(monkeypatch, capsys, *TINY[2:], "--data", "nothing"))["as given"]
    n = train_gpt2.GPT(train_gpt2.GPTConfig(32, 50257, 2, 2, 32)).num_params()
    assert [given["weights"], given["gradients"], given["moments"]] == pytest.approx(
        [4e-6 * n, 4e-6 * n, 8e-6 * n], rel=0.01)
    assert list(tmp_path.iterdir()) == []


def test_a_text_has_the_vocabulary_of_its_tokenizer(tmp_path, monkeypatch, capsys):
    """Its shards are not made."""
    (tmp_path / "my.txt").write_text("Once upon a time\n" * 100)
    flags = [*TINY[2:], "--data", tmp_path / "my.txt", "--tokenizer"]
    wte = {name: table(plan_of(monkeypatch, capsys, *flags, name))["as given"]["weights"]
           for name in ("bytes", "gpt2")}
    assert wte["gpt2"] - wte["bytes"] == pytest.approx(4e-6 * 32 * (50257 - 257), rel=0.01)
    assert [path.name for path in tmp_path.iterdir()] == ["my.txt"]


def test_a_text_by_its_characters_and_by_the_tokenizer_of_weights(tmp_path):
    """As its run will find it, before there are shards."""
    text = "Once upon a time\n" * 100
    (tmp_path / "my.txt").write_text(text)
    config = train_gpt2.replace(train_gpt2.PRESETS["laptop"], data=str(tmp_path / "my.txt"))
    found = find_tokens(train_gpt2.replace(config, tokenizer="chars"))
    assert found.vocab_size == len(set(text))
    assert (found.n_tokens, found.validation) == (1530, 170) and "my.txt" in found.source
    small_gpt(vocab_size=257).save_pretrained(tmp_path / "net")
    config = train_gpt2.replace(config, tokenizer=None, init_from=str(tmp_path / "net"))
    assert find_tokens(config).vocab_size == 257
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my.txt", "net"]


@pytest.mark.parametrize("flags", [["--T", "0"], ["--n-head", "0"], ["--total-batch-size", "100"],
                                   ["--ranks", "0"], ["--ranks", "3"]], ids=str)
def test_bad_settings_are_refused_before_anything_is_planned(flags, monkeypatch, capsys):
    with pytest.raises(train_gpt2.UserError, match=flags[0].strip("-").replace("-", ".")):
        main_here(monkeypatch, *TINY, *flags, "--plan")
    assert not capsys.readouterr().out
