"""HellaSwag: does the model give the true one of four endings the highest probability?

An example is a context and four endings, one of which is what really came next. The model never
writes anything: each ending is appended to the context and scored by the cross-entropy of its
tokens. The lowest sum is the model's choice for `acc`, the lowest mean per token for `acc_norm`,
which does not punish an ending for being long. Guessing gives 25%.

    python hellaswag.py --model gpt2                                    # from the hub
    python hellaswag.py --model log/gpt2-124M/checkpoint_018794         # a run of train_gpt2.py
    python hellaswag.py --model gpt2 --data hellaswag_val.jsonl --limit 1000 --device cpu

Scores of OpenAI's weights on all 10,042 validation examples:

    model     this method (acc / acc_norm)     Eleuther's harness (acc / acc_norm)
    gpt2      0.2859 / 0.2955                  0.2892 / 0.3114
    gpt2-xl   0.3842 / 0.4893                  0.4004 / 0.5089

The harness asks differently: it puts the activity's label before the context, capitalizes the
context's second part, removes WikiHow's marks ([header], [title], [step]), and for acc_norm divides
by the ending's characters where this method divides by its tokens. Compare within a column only.
The standard error at 10,042 examples is about 0.0046: smaller differences mean nothing.

Dataset: Zellers et al. 2019, "HellaSwag: Can a Machine Really Finish Your Sentence?"
"""

# imported first, so that Ctrl-C ends the program without a traceback from here on
from nanogpt.common import UserError, hub_file, needs_network, parse, run

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from nanogpt.cpu import using
from nanogpt.models import load_model
from nanogpt.ranks import find_device
from nanogpt.tokenizer import TOKENIZERS, get_tokenizer, tokenizer_name
from nanogpt.trial import try_products

HUB = "Rowan/hellaswag"


# -----------------------------------------------------------------------------
# examples


def load_examples(source=HUB, limit=None):
    """The examples of the hub's dataset or of a .jsonl file: dicts with ctx, endings, label.

    limit: read only this many. Raises UserError with the number of a line that cannot be read.
    """
    if str(source) == HUB:
        return download_examples()[:limit]
    if not Path(source).is_file():
        raise UserError(f"no HellaSwag file {source}: name a .jsonl file, or {HUB} for the hub's")
    examples = []
    with open(source, "rb") as file:
        for number, line in enumerate(file, start=1):
            if limit is not None and len(examples) >= limit:
                break
            if not (line := line.removeprefix(b"\xef\xbb\xbf")).strip():  # Windows marks UTF-8 so
                continue
            try:
                examples.append(check_example(json.loads(line.decode("utf-8"))))
            except (ValueError, TypeError, AttributeError, RecursionError) as error:
                raise UserError(f"{source} line {number} is not a HellaSwag example "
                                f"({what_it_is(line, error)}") from None
    if not examples:
        raise UserError(f"{source} holds no examples: name a .jsonl file with one per line")
    return examples


def what_it_is(line, error):
    """Why a line is not an example, and the way out, as the end of a message in brackets."""
    others = {b"[": "a JSON array", b"\x1f\x8b": "gzip", b"PAR1": "parquet", b"PK": "zip"}
    for kind in (others[begin] for begin in others if line.startswith(begin)):
        return f"this is {kind}): name a .jsonl file, one example on each line"
    if b"\0" in line or isinstance(error, UnicodeDecodeError):
        return "this is not UTF-8): save the file as UTF-8"
    reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
    return f"{reason}): fix or remove it"


def check_example(example):
    """A dict with a context, four endings and a label 0-3 (a string on the hub), or ValueError."""
    ctx, endings, label = (example.get(key) for key in ("ctx", "endings", "label"))
    if label in (None, ""):
        raise ValueError("no label: the test split has none, take validation")
    label = str(label).removesuffix(".0")  # pandas makes 3.0 of a 3
    if not isinstance(ctx, str) or not ctx:
        raise ValueError("ctx is not text")
    if not isinstance(endings, list) or len(endings) != 4 or not all(
            isinstance(ending, str) and ending for ending in endings):
        raise ValueError("endings are not four texts")
    if label not in ("0", "1", "2", "3"):
        raise ValueError(f"label {label} is not 0, 1, 2 or 3")
    return {"ctx": ctx, "endings": endings, "label": int(label)}


def download_examples():
    """All 10,042 validation examples from the hub, or from its cache."""
    import pyarrow.parquet

    with needs_network(HUB, "go online once, or name a .jsonl file with its examples"):
        # the hub keeps a parquet copy of every dataset on this branch
        path = hub_file(HUB, "default/validation/0000.parquet", repo_type="dataset",
                        revision="refs/convert/parquet")
        rows = pyarrow.parquet.read_table(path, columns=["ctx", "endings", "label"]).to_pylist()
        return [check_example(row) for row in rows]


def cut_examples(text, n, chars=(64, 32), seed=0):
    """`n` examples from any text: contexts, their true continuation, three cut from elsewhere.

    chars: characters of context and of each ending; both end or begin at a space. Stands in for
    HellaSwag where nothing can be downloaded. Raises UserError if the text is too short.
    """
    rng = np.random.default_rng(seed)
    spaces = np.flatnonzero(np.array(list(text)) == " ")
    spaces = spaces[(spaces >= chars[0]) & (spaces < len(text) - chars[1])]
    if len(spaces) < 4:
        raise UserError(f"{len(text)} characters of held-out text are too few to cut endings from")
    examples = []
    for _ in range(n):
        cuts = rng.choice(spaces, size=4, replace=False)
        label = int(rng.integers(4))
        examples.append({
            "ctx": text[cuts[label] - chars[0] : cuts[label]],
            "endings": [text[cut + 1 : cut + chars[1]] for cut in cuts],
            "label": label,
        })
    return examples


# -----------------------------------------------------------------------------
# tokens


@dataclass
class Encoded:
    """One example as tokens: four rows (context + ending), the endings' lengths, the true one."""

    rows: list[list[int]]
    n_ending: list[int]
    label: int
    number: int  # in its file, from 1


def encode(examples, enc, block_size):
    """Tokenize once. A row too long for the network loses the beginning of its context.

    enc: a tiktoken.Encoding. block_size: the longest input; rows keep one token more, since the
    last one is only ever a target. Returns a list of Encoded.
    """
    encoded = []
    for number, example in enumerate(examples, start=1):
        ctx = enc.encode_ordinary(example["ctx"])
        # GPT-2's tokens carry the space before the word, so an ending is encoded with its own
        endings = [enc.encode_ordinary(" " + ending) for ending in example["endings"]]
        rows = [(ctx + ending)[-(block_size + 1) :] for ending in endings]
        n_ending = [min(len(end), len(row) - 1) for end, row in zip(endings, rows, strict=True)]
        encoded.append(Encoded(rows, n_ending, example["label"], number))
    return encoded


def load_run(config, enc, block_size, val):
    """A training run's examples as tokens: --hellaswag's, [] for "none", and for "heldout" endings
    cut from `val`, the validation tokens."""
    if config.hellaswag == "none":
        return []
    if config.hellaswag == "heldout":
        ids = val.read(0, min(val.n_tokens, 10**6))  # more than enough for any number of endings
        text = enc.decode(ids[ids != val.end_of_text].tolist())
        examples = cut_examples(text, config.hellaswag_limit or 1000, seed=config.seed)
    else:
        examples = load_examples(config.hellaswag, config.hellaswag_limit)
    return encode(examples, enc, block_size)


def in_rows(example):
    """How many tokens an example takes as four rows, padded to the longest of them."""
    return 4 * max(map(len, example.rows))


def batches(encoded, tokens_per_batch=4096, size=in_rows):
    """Lists of examples of similar size: sorted, and as many together as fit when padded.

    The batches depend on nothing but the examples, so that every run scores the same ones.
    """
    batch = []
    for example in sorted(encoded, key=size):
        if batch and (len(batch) + 1) * size(example) > tokens_per_batch:
            yield batch
            batch = []
        batch.append(example)
    if batch:
        yield batch


def pack(example):
    """An example as a row of (token, position in its own text, part, target): the context once, as
    part 0, then the endings, as parts 1 to 4. The context's last token predicts the first token of
    every ending, so it is in all four parts.

    Returns [row], or four rows where long endings have cut the contexts to different lengths.
    """
    rows, contexts = [], [row[:-n] for row, n in zip(example.rows, example.n_ending, strict=True)]
    for part, (row, context) in enumerate(zip(example.rows, contexts, strict=True), start=1):
        last = len(context) - 1
        if not rows or contexts.count(context) < 4:
            rows.append([(token, at, 0, 0) for at, token in enumerate(context[:last])])
        rows[-1] += [(row[at], at, part, row[at + 1]) for at in range(last, len(row) - 1)]
    return rows


def in_packs(example):
    """How many tokens an example takes when packed (into one row, mostly), padding included."""
    rows = pack(example)
    return len(rows) * max(map(len, rows))


# -----------------------------------------------------------------------------
# scores


@torch.no_grad()
def score(model, batch, device):
    """Cross-entropy of every ending. Returns sums and means over its tokens, each (examples, 4).

    model(idx) may return logits, a tuple that begins with them, or an object that has them.
    """
    rows = [row for example in batch for row in example.rows]
    n_ending = torch.tensor([n for example in batch for n in example.n_ending])
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)  # padded on the right
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    idx, targets = tokens[:, :-1], tokens[:, 1:]
    # position p of the targets is token p + 1 of the row: an ending's targets are its last n
    position = torch.arange(idx.size(1))
    mask = (position >= (lengths - 1 - n_ending)[:, None]) & (position < (lengths - 1)[:, None])
    idx, targets, mask = idx.to(device), targets.to(device), mask.to(device)

    out = model(idx)
    logits = out[0] if isinstance(out, tuple) else getattr(out, "logits", out)  # (rows, T, V)
    losses = F.cross_entropy(logits[mask].float(), targets[mask], reduction="none")
    of_row = mask.nonzero()[:, 0]
    sums = torch.zeros(len(rows), device=device).index_add_(0, of_row, losses).cpu()
    return sums.view(-1, 4), (sums / n_ending).view(-1, 4)


@torch.no_grad()
def score_packed(model, batch, device):
    """Like score(), for a model with hidden(idx, pos=, mask=) and lm_head: each context is computed
    once for its four endings, and logits only where a token of an ending is predicted."""
    rows = [(i, row) for i, example in enumerate(batch) for row in pack(example)]
    table = torch.zeros(len(rows), max(len(row) for _, row in rows), 4, dtype=torch.long)
    table[:, :, 2] = -1  # padding is a separate part, which no ending sees
    for line, (_, row) in zip(table, rows, strict=True):
        line[: len(row)] = torch.tensor(row)
    idx, pos, part, targets = table.to(device).unbind(dim=2)  # (rows, T) each
    # a token sees the context and its own ending, up to its position
    mask = (part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None])
    mask &= pos[:, None, :] <= pos[:, :, None]
    x = model.hidden(idx, pos=pos, mask=mask[:, None])

    ending = part > 0
    first = 4 * torch.tensor([i for i, _ in rows], device=device)[:, None]
    of = (first + part - 1)[ending]  # 4 * example + ending, for each predicted token
    losses = F.cross_entropy(model.lm_head(x[ending]).float(), targets[ending], reduction="none")
    sums = torch.zeros(4 * len(batch), device=device).index_add_(0, of, losses)
    return sums.cpu().view(-1, 4), (sums / of.bincount()).cpu().view(-1, 4)


def count_correct(model, encoded, device, ddp_rank=0, ddp_world_size=1, progress=False, stop=None):
    """How many of this rank's examples the model gets right, and how many there are.

    Batches go to the ranks in turn. Returns a float64 tensor (acc, acc_norm, n): add those of
    all ranks, then divide. stop: an object; no batch is started once its `asked` is true.
    """
    counts = torch.zeros(3, dtype=torch.float64)
    fast = hasattr(model, "hidden")
    tokens = 1024 if fast and device.type == "cpu" else 4096  # 1024 fit into a CPU's caches
    found = batches(encoded, tokens, in_packs if fast else in_rows)
    mine = list(found)[ddp_rank::ddp_world_size]
    for batch in tqdm(mine, desc="HellaSwag", leave=False, disable=None if progress else True):
        if stop and stop.asked:
            break
        labels = torch.tensor([example.label for example in batch])
        sums, means = (score_packed if fast else score)(model, batch, device)
        for example, row in zip(batch, sums.tolist(), strict=True):
            if not all(map(math.isfinite, row)):  # argmin would choose a NaN
                raise UserError(f"example {example.number} scores {row}: take other weights")
        counts[0] += (sums.argmin(dim=1) == labels).sum()
        counts[1] += (means.argmin(dim=1) == labels).sum()
        counts[2] += len(batch)
    return counts


def standard_error(p, n):
    """The standard error of a share p of n examples: sqrt(p (1 - p) / n)."""
    return math.sqrt(p * (1 - p) / n)


# -----------------------------------------------------------------------------
# the command line


@dataclass
class Config:
    model: str = "gpt2"
    """a name on the hub, or a folder in transformers' layout (train_gpt2.py's checkpoints are)"""
    data: str = HUB
    """the hub's dataset, or a .jsonl file with ctx, endings and label on every line"""
    limit: int | None = None
    """score only the first N examples; None: all of them"""
    device: str = "auto"
    """cuda, mps, cpu, or auto: the first of them that is available"""


def main():
    config = parse(Config(), sys.argv[1:], "hellaswag.py", __doc__)
    if config.limit is not None and config.limit < 1:
        raise UserError(f"--limit {config.limit}: give 1 or more, or leave it out for all")
    device = find_device(config.device)
    examples = load_examples(config.data, config.limit)
    model = load_model(config.model, device)
    for ids in TOKENIZERS.values():  # some pad GPT-2's vocabulary for speed
        if model.config.model_type == "gpt2" and 0 < (more := model.config.vocab_size - ids) < 128:
            print(f"{config.model}: left out {more} of {ids + more} ids, which no token has")
            model.resize_token_embeddings(ids)
    enc = get_tokenizer(tokenizer_name(model.config.vocab_size))
    encoded = encode(examples, enc, getattr(model.config, "max_position_embeddings", None) or 1024)

    library = try_products(model, 1024)["forward"] if device.type == "cpu" else "plain"
    with using(library):
        acc, acc_norm, n = count_correct(model, encoded, device, progress=True).tolist()
    for name, correct in ("acc", acc), ("acc_norm", acc_norm):
        print(f"{name:8s} {correct / n:.4f} +- {standard_error(correct / n, n):.4f}"
              f"  ({correct:.0f} of {n:.0f})")


if __name__ == "__main__":
    run(main)
