"""HellaSwag's scores equal each row scored alone, unpadded, in float64."""

import json

import pytest
import torch
from helpers import lively_gpt, start
from torch.nn import functional as F

import hellaswag
from common import UserError, get_tokenizer

ENC = get_tokenizer("bytes")


def examples(n=30):
    generator = torch.Generator().manual_seed(0)

    def text(low, high):
        length = torch.randint(low, high, (1,), generator=generator).item()
        return bytes(torch.randint(97, 123, (length,), generator=generator).tolist()).decode()

    return [{"ctx": text(1, 30), "endings": [text(1, 20) for _ in range(4)], "label": i % 4}
            for i in range(n)]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def one_row_at_a_time(model, example, block_size=64):
    """Sum and mean of -log p over the ending's tokens, by the definition."""
    model = model.double()
    sums, means = [], []
    for ending in example["endings"]:
        ctx, end = ENC.encode_ordinary(example["ctx"]), ENC.encode_ordinary(" " + ending)
        tokens = (ctx + end)[-(block_size + 1):]
        logits, _ = model(torch.tensor([tokens[:-1]]))
        log_p = F.log_softmax(logits[0], dim=-1)
        n = min(len(end), len(tokens) - 1)
        losses = [-log_p[i - 1, tokens[i]].item() for i in range(len(tokens) - n, len(tokens))]
        sums.append(sum(losses))
        means.append(sum(losses) / len(losses))
    model.float()
    return sums, means


@pytest.mark.parametrize("tokens_per_batch", [1, 500, 10**6])
def test_scores_equal_one_row_at_a_time(tokens_per_batch):
    model, rows = lively_gpt(block_size=64), examples()
    encoded = hellaswag.encode(rows, ENC, 64)
    by_id = {id(e): example for e, example in zip(encoded, rows, strict=True)}
    seen = 0
    for batch in hellaswag.batches(encoded, tokens_per_batch):
        sums, means = hellaswag.score(model, batch, torch.device("cpu"))
        for i, e in enumerate(batch):
            expected = one_row_at_a_time(model, by_id[id(e)])
            # sums of up to 21 losses of size 5, in fp32
            torch.testing.assert_close(sums[i].tolist(), expected[0], atol=1e-4, rtol=0)
            torch.testing.assert_close(means[i].tolist(), expected[1], atol=1e-5, rtol=0)
            seen += 1
    assert seen == 30


def test_counts_are_the_choices():
    model, rows = lively_gpt(block_size=64), examples()
    scores = [one_row_at_a_time(model, example) for example in rows]
    expected = [sum(min(range(4), key=kind.__getitem__) == example["label"]
                    for kind, example in zip(kinds, rows, strict=True))
                for kinds in zip(*scores, strict=True)]
    counts = hellaswag.count_correct(model, hellaswag.encode(rows, ENC, 64), torch.device("cpu"))
    assert counts.tolist() == [*expected, 30]
    assert 0 < expected[0] < 30  # neither all nor none: a mistake would show


def test_a_row_longer_than_the_network_loses_its_beginning():
    model, rows = lively_gpt(block_size=16), examples()
    for batch in hellaswag.batches(hellaswag.encode(rows, ENC, 16)):
        assert max(len(row) for e in batch for row in e.rows) == 17
        sums, _ = hellaswag.score(model, batch[:1], torch.device("cpu"))
        example = next(r for r in rows if hellaswag.encode([r], ENC, 16)[0] == batch[0])
        torch.testing.assert_close(sums[0].tolist(), one_row_at_a_time(model, example, 16)[0],
                                   atol=1e-4, rtol=0)


def test_any_model_that_returns_logits():
    model, encoded = lively_gpt(block_size=64), hellaswag.encode(examples(), ENC, 64)

    class Output:
        def __init__(self, idx):
            self.logits = model(idx)[0]

    counts = [hellaswag.count_correct(f, encoded, torch.device("cpu")).tolist()
              for f in (model, lambda idx: model(idx)[0], Output)]
    assert counts[0] == counts[1] == counts[2]


def test_examples_from_a_file(tmp_path):
    rows = examples(5)
    rows[2]["label"] = str(rows[2]["label"])  # the hub's labels are strings
    path = write_jsonl(tmp_path / "h.jsonl", [row | {"ind": i} for i, row in enumerate(rows)])
    loaded = hellaswag.load_examples(path)
    assert loaded == examples(5)
    assert hellaswag.load_examples(path, limit=3) == loaded[:3]


@pytest.mark.parametrize("broken", [
    '{"ctx": "a", "endings": ["b", "c", "d", "e"]', "", "[]", '{"ctx": "a", "label": 0}',
    '{"ctx": "a", "endings": ["b", "c", "d"], "label": 0}',
    '{"ctx": "a", "endings": ["b", "c", "d", 5], "label": 0}',
    '{"ctx": "a", "endings": ["b", "c", "d", "e"], "label": 4}',
    '{"ctx": "a", "endings": ["b", "c", "d", "e"], "label": ""}',
    '{"ctx": "a", "endings": ["b", "c", "d", "e"], "label": 1.5}',
    '{"ctx": "a", "endings": ["b", "c", "d", "e"], "label": Infinity}',
    '{"ctx": "a", "endings": {"b": 1, "c": 2, "d": 3, "e": 4}, "label": 1}', "[" * 100_000,
    '{"ctx": "", "endings": ["b", "c", "d", "e"], "label": 1}',
    '{"ctx": null, "endings": ["b", "c", "d", "e"], "label": 1}', "\0\1\2 binary"])
def test_broken_line_is_named_by_its_number(broken, tmp_path):
    path = write_jsonl(tmp_path / "h.jsonl", examples(3))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], broken, lines[2]]), encoding="utf-8")
    with pytest.raises(UserError, match="h.jsonl line 3 is no HellaSwag example") as error:
        hellaswag.load_examples(path)
    assert "\n" not in str(error.value)
    assert len(hellaswag.load_examples(path, limit=2)) == 2


def test_endings_cut_from_any_text():
    text = " ".join(f"word{i}" for i in range(2000))
    made = hellaswag.cut_examples(text, 200, chars=(64, 32), seed=1)
    for example in made:
        true = example["endings"][example["label"]]
        assert f"{example['ctx']} {true}" in text
        assert len(example["ctx"]) == 64 and {len(e) for e in example["endings"]} == {31}
        others = [e for i, e in enumerate(example["endings"]) if i != example["label"]]
        assert not any(f"{example['ctx']} {other}" in text for other in others)
    labels = [example["label"] for example in made]
    assert all(30 < labels.count(label) < 70 for label in range(4))  # 50 expected, sd 6
    assert made == hellaswag.cut_examples(text, 200, chars=(64, 32), seed=1)
    with pytest.raises(UserError, match="too few"):
        hellaswag.cut_examples("a b c", 10)


def test_standard_error():
    assert hellaswag.standard_error(0.2955, 10042) == pytest.approx(0.00455, abs=5e-6)


def test_script_scores_our_folder(tmp_path):
    model = lively_gpt(block_size=64)
    model.save_pretrained(tmp_path / "model")
    path = write_jsonl(tmp_path / "h.jsonl", examples())
    counts = hellaswag.count_correct(model, hellaswag.encode(examples(), ENC, 64),
                                     torch.device("cpu"))
    done = start("hellaswag.py", "--model", tmp_path / "model", "--data", path, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    for name, count in zip(("acc", "acc_norm"), counts.tolist(), strict=False):
        p = count / 30
        assert (f"{name:8s} {p:.4f} +- {hellaswag.standard_error(p, 30):.4f}  ({count:.0f} of 30)"
                in done.stdout)


@pytest.mark.parametrize("args, words", [
    (["--data", "nowhere.jsonl"], "no HellaSwag file nowhere.jsonl"),
    (["--limit", "0"], "--limit 0"),
    (["--device", "tpu"], "--device tpu"),
    (["--model", "{tmp}/nothing", "--data", "{file}"], "nothing"),
    (["--model", "{tmp}", "--data", "{file}"], "cannot get the model"),
])
def test_bad_input_is_one_line(args, words, tmp_path):
    path = write_jsonl(tmp_path / "h.jsonl", examples(3))
    args = [arg.format(tmp=tmp_path, file=path) for arg in args]
    done = start("hellaswag.py", *args, env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 2 and words in done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
