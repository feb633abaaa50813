"""LAMBADA's last words and the perplexity of any text, against transformers in float64."""

import json
import math

import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
import torch
from helpers import (
    CPU, TINY, gpt2_vocabulary_missing, learn_by_heart, lively_gpt, main_here, offline, refusal,
    small_gpt, start, write_jsonl,
)
from hypothesis import given, settings, strategies as st

import train_gpt2
from nanogpt.perplexity import (
    LAMBADA, judge, last_words, score_last_words, score_text, windows,
)
from nanogpt.ranks import Ranks
from nanogpt.tokenizer import get_tokenizer

ENC = get_tokenizer("bytes")
KNOWN = "the cat sat on the mat and the dog ran to the sun "
TEXTS = [KNOWN[:n].strip() for n in (7, 11, 18, 22, 30, 39, 46, 50)] + [
    "no such words in it", "two  spaces", "a line\nthe end", "caf\u00e9 na\u00efve",
    "so " * 40 + "long"]
FLAGS = [*TINY, "--data", "none", "--eval-only"]


@pytest.fixture(scope="module")
def model():
    """A network of 48 positions that knows one sentence, so that it gets some words right."""
    model = small_gpt(block_size=48)
    learn_by_heart(model, list(KNOWN[:48].encode()), 1, 48, 60, 1e-2)
    return model.eval()


def in_float64(model, folder):
    """The same network in transformers."""
    from transformers import GPT2LMHeadModel

    model.save_pretrained(folder)
    return GPT2LMHeadModel.from_pretrained(folder).double().eval()


@torch.no_grad()
def log_p(network, tokens):
    """log p of every token but the first, and whether it is the likeliest."""
    found = network(torch.tensor([tokens[:-1]])).logits[0].log_softmax(dim=-1)
    wanted = torch.tensor(tokens[1:])
    return found.gather(1, wanted[:, None])[:, 0], found.argmax(dim=-1) == wanted


def lambada_by_definition(network, texts, encode, positions):
    """Accuracy and perplexity as in lm-eval 0.4: doc_to_text, doc_to_target, _encode_pair."""
    logs, greedy = [], []
    for text in texts:
        context, target = " ".join(text.split(" ")[:-1]), " " + text.split(" ")[-1]
        spaces = len(context) - len(context.rstrip())
        if spaces:
            context, target = context[:-spaces], context[-spaces:] + target
        whole, n = encode(context + target), len(encode(context))
        found, likeliest = log_p(network, whole[-(positions + 1) :])
        logs.append(found[-(len(whole) - n) :].sum().item())
        greedy.append(likeliest[-(len(whole) - n) :].all().item())
    return sum(greedy) / len(texts), math.exp(-sum(logs) / len(texts)), logs


def test_lambada_is_lm_evals(model, tmp_path):
    path = write_jsonl(tmp_path / "l.jsonl", [{"text": text, "id": 1} for text in TEXTS])
    found = score_last_words(model, last_words(str(path), ENC, 48), CPU)
    share, ppl, logs = lambada_by_definition(in_float64(model, tmp_path / "m"), TEXTS,
                                             ENC.encode_ordinary, 48)
    assert 0 < share < 1, "a test of accuracy has both"
    n = len(TEXTS)
    spread = torch.tensor(logs).double().std(correction=0).item() / math.sqrt(n)
    assert found == pytest.approx({
        "lambada": share, "lambada_se": math.sqrt(share * (1 - share) / n), "lambada_ppl": ppl,
        "lambada_ppl_se": ppl * spread}, rel=1e-4)


@pytest.mark.skipif(bool(gpt2_vocabulary_missing()), reason=gpt2_vocabulary_missing())
def test_lambada_with_gpt2s_tokens(hf_folder, tmp_path):
    """Words of several tokens, and a text longer than the network's 64 positions."""
    from transformers import GPT2LMHeadModel

    enc, texts = get_tokenizer("gpt2"), [*TEXTS, "antidisestablishmentarianism is a word, " * 12
                                         + "floccinaucinihilipilification"]
    path = write_jsonl(tmp_path / "l.jsonl", [{"text": text} for text in texts])
    rows = last_words(str(path), enc, 64)
    assert max(len(row) for row, _ in rows) == 65 and max(n for _, n in rows) > 5
    found = score_last_words(train_gpt2.GPT.from_pretrained(hf_folder).eval(), rows, CPU)
    network = GPT2LMHeadModel.from_pretrained(hf_folder).double().eval()
    share, ppl, _ = lambada_by_definition(network, texts, enc.encode_ordinary, 64)
    assert (found["lambada"], found["lambada_ppl"]) == (share, pytest.approx(ppl, rel=1e-5))


def perplexity_by_definition(network, tokens, T):
    """-log p of all tokens but the first: each in the window in which it is new."""
    total, end = 0.0, 0
    while end < len(tokens) - 1:
        begin, end = end, min(len(tokens) - 1, end + T // 2 if end else T)
        found, _ = log_p(network, tokens[max(0, end - T) : end + 1])
        total -= found[-(end - begin) :].sum().item()
    return total


@pytest.mark.parametrize("text", [KNOWN * 5, "caf\u00e9\r\n\u2192 the cat  sat", "x"],
                         ids=["many windows", "hard characters", "one token"])
def test_perplexity_per_token_word_and_byte(text, model, tmp_path):
    (tmp_path / "t.txt").write_bytes(text.encode())
    rows, units = windows(tmp_path / "t.txt", ENC, 48)
    tokens = [256, *text.encode()]  # an end-of-text comes first
    nats = perplexity_by_definition(in_float64(model, tmp_path / "m"), tokens, 48)
    assert units == {"token": len(tokens) - 1, "word": len(text.split()),
                     "byte": (tmp_path / "t.txt").stat().st_size}
    assert score_text(model, rows, units, CPU) == pytest.approx({
        "token_ppl": math.exp(nats / units["token"]), "word_ppl": math.exp(nats / units["word"]),
        "byte_ppl": math.exp(nats / units["byte"]),
        "byte_bits": nats / units["byte"] / math.log(2)}, rel=1e-4)


def test_one_window_is_transformers_own_loss(model, tmp_path):
    (tmp_path / "t.txt").write_text(KNOWN[:40])
    found = score_text(model, *windows(tmp_path / "t.txt", ENC, 48), CPU)
    idx = torch.tensor([[256, *KNOWN[:40].encode()]])
    loss = in_float64(model, tmp_path / "m")(idx, labels=idx).loss.item()
    assert found["token_ppl"] == pytest.approx(math.exp(loss), rel=1e-5)


@settings(deadline=None, max_examples=100)
@given(length=st.integers(1, 60), T=st.integers(1, 13))
def test_every_token_is_new_once(length, T, tmp_path_factory):
    """And no window is longer than T, and from the second on half of it is context."""
    path = tmp_path_factory.getbasetemp() / "t.txt"
    path.write_bytes(bytes(97 + i % 26 for i in range(length)))
    rows, units = windows(path, ENC, T)
    assert [token for row, n in rows for token in row[-n:].tolist()] == list(path.read_bytes())
    assert all(n < len(row) <= T + 1 for row, n in rows) and units["token"] == length
    assert all(len(row) == T + 1 and len(row) - n >= (T + 1) / 2 for row, n in rows[1:])


def test_rows_of_all_shapes_are_judged_as_each_alone(model):
    """Batches are made of rows of the same shape, on any number of ranks."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 1), (48, 3), (5, 2), (5, 1), (2, 1), (48, 3), (9, 8), (5, 1)]
    rows = [(torch.randint(257, (length,), generator=generator), n) for length, n in shapes]
    alone = torch.cat([judge(model, [row], CPU, "") for row in rows])
    assert judge(model, rows, CPU, "") == pytest.approx(alone, rel=1e-5)
    shares = [judge(model, rows, Ranks(torch.device("cpu"), False, rank, rank, 3), "")
              for rank in range(3)]
    assert sum(shares) == pytest.approx(alone, rel=1e-5)
    assert all((share == 0).all(dim=1).sum() >= 5 for share in shares)


def last_line(monkeypatch, capsys, *flags):
    capsys.readouterr()
    main_here(monkeypatch, *FLAGS, *flags)
    *_, table, facts = capsys.readouterr().out.splitlines()
    return table, json.loads(facts)


@pytest.fixture
def folder(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("m")
    write_jsonl(tmp_path / "l.jsonl", [{"text": text} for text in TEXTS])
    (tmp_path / "t.txt").write_text(KNOWN * 3)
    return tmp_path


def test_the_command_reports_both(folder, model, monkeypatch, capsys):
    table, facts = last_line(monkeypatch, capsys, "--init-from", "m,m/", "--lambada", "l.jsonl",
                             "--eval-text", "t.txt", "--T", 20)
    assert [facts[key] for key in ("texts", "tokens", "words", "bytes", "window", "stride")] == [
        len(TEXTS), 150, 39, 150, 20, 10]
    expected = (score_last_words(model, last_words("l.jsonl", ENC, 48), CPU)
                | score_text(model, *windows("t.txt", ENC, 20), CPU))
    for scores in facts["models"]:
        assert {key: scores[key] for key in expected} == pytest.approx(expected, rel=1e-5)
    shown = [f"{value:.4f}" if value < 1e6 else f"{value:.3e}" for key, value in expected.items()
             if not key.endswith("_se")]
    assert table.split()[1:] == shown


@pytest.mark.slow
def test_ranks_share_texts_and_windows(folder, monkeypatch, capsys):
    flags = ["--init-from", "m", "--lambada", "l.jsonl", "--eval-text", "t.txt"]
    _, alone = last_line(monkeypatch, capsys, *flags)
    done = start("train_gpt2.py", *FLAGS, *flags, ranks=2)
    assert done.returncode == 0, done.stderr
    [a], [b] = alone["models"], json.loads(done.stdout.splitlines()[-1])["models"]
    del a["seconds"], b["seconds"]
    assert a.pop("model") == b.pop("model")
    assert b == pytest.approx(a, rel=1e-5)


@pytest.mark.parametrize("text", ["x" * 2000, " \n"], ids=["a word of 2000", "no word"])
def test_a_perplexity_beyond_all_numbers_is_left_out(text, folder, monkeypatch, capsys):
    """Chinese has no spaces: a whole text may count as one word."""
    (folder / "t.txt").write_text(text)
    table, facts = last_line(monkeypatch, capsys, "--init-from", "m", "--eval-text", "t.txt")
    assert facts["models"][0]["word_ppl"] is None and table.split()[2] == "-"
    assert math.isfinite(facts["models"][0]["byte_bits"])


def test_a_loss_that_is_not_finite_is_not_reported(folder, monkeypatch, capsys):
    lively = lively_gpt(block_size=48)
    with torch.no_grad():
        lively.lm_head.weight.mul_(1e38)
    lively.save_pretrained("huge")
    for flags in ["--eval-text", "t.txt"], ["--lambada", "l.jsonl"]:
        said = refusal(train_gpt2.main, *FLAGS, "--init-from", "huge", *flags,
                       monkeypatch=monkeypatch, capsys=capsys)
        assert "error: huge: " in said and "take other weights" in said


@pytest.mark.parametrize("flags, words", [
    (["--eval-text", "no.txt"], "cannot get the text of no.txt (FileNotFoundError"),
    (["--eval-text", "latin1.txt"], "(UnicodeDecodeError"),
    (["--eval-text", "empty.txt"], "it is empty): name a file in UTF-8"),
    (["--lambada", "no.jsonl"], "cannot get the texts of no.jsonl (FileNotFoundError"),
    (["--lambada", "t.txt"], "(ArrowInvalid: JSON parse error"),
    (["--lambada", "other.jsonl"], "(KeyError"),
    (["--lambada", "word.jsonl"], "text 2 does not end in a word after others"),
    (["--lambada", "space.jsonl"], "text 1 does not end in a word after others"),
    (["--lambada", LAMBADA], f"cannot get the texts of {LAMBADA}"),
    (["--lambada", "l.jsonl", "--no-eval-only"], "need --eval-only: give it, too"),
    (["--eval-text", "t.txt", "--no-eval-only"], "need --eval-only: give it, too"),
], ids=lambda value: "" if isinstance(value, str) else " ".join(value))
def test_bad_texts_are_one_line(flags, words, folder, monkeypatch, capsys):
    offline(monkeypatch, folder / "cache")
    (folder / "latin1.txt").write_bytes(b"caf\xe9")
    (folder / "empty.txt").write_bytes(b"")
    write_jsonl(folder / "other.jsonl", [{"story": "a b"}])
    write_jsonl(folder / "word.jsonl", [{"text": "a b"}, {"text": "word"}])
    write_jsonl(folder / "space.jsonl", [{"text": "a b "}])
    assert words in refusal(train_gpt2.main, *FLAGS, "--init-from", "m", *flags,
                            monkeypatch=monkeypatch, capsys=capsys)


def test_the_hubs_test_split(tmp_path, monkeypatch):
    """The parquet copy that the hub keeps of every dataset."""
    asked = []
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / "0000.parquet")

    def download(repo_id, filename, **asked_for):
        asked.append({"repo_id": repo_id, "filename": filename, **asked_for})
        return str(tmp_path / "0000.parquet")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr("nanogpt.common.hub_offline", lambda repo_id, repo_type="model": False)
    path = write_jsonl(tmp_path / "l.jsonl", [{"text": text} for text in TEXTS])
    for (a, n), (b, m) in zip(last_words(LAMBADA, ENC, 48), last_words(str(path), ENC, 48),
                              strict=True):
        assert torch.equal(a, b) and n == m
    assert asked == [dict(repo_id="EleutherAI/lambada_openai",
                          filename="default/test/0000.parquet", repo_type="dataset",
                          revision="refs/convert/parquet", local_files_only=False)]
