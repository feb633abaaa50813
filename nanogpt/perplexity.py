"""How well a network predicts text: LAMBADA's last words, and every token of a file."""

import itertools
import math
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

from nanogpt.common import hub_file, needs_network
from nanogpt.ranks import autocast, sum_over_ranks
from nanogpt.tokenizer import encode

LAMBADA = "EleutherAI/lambada_openai"


def last_words(source, enc, block_size):
    """LAMBADA's texts as rows for judge(): tokens, and how many of them are the last word's, as
    lm-eval's lambada_openai has them. source: LAMBADA (the hub's test split), a .jsonl file, or
    "none"."""
    import pyarrow.json
    import pyarrow.parquet

    rows = []
    if source == "none":
        return rows
    with needs_network(f"the texts of {source}", f"name {LAMBADA} (online once), or a .jsonl file "
                       'with a "text" of several words on each line'):
        table = pyarrow.json.read_json(source) if source != LAMBADA else pyarrow.parquet.read_table(
            hub_file(LAMBADA, "default/test/0000.parquet", repo_type="dataset",
                     revision="refs/convert/parquet"))
        for number, text in enumerate(table["text"].to_pylist(), 1):
            context = enc.encode_ordinary(text.rpartition(" ")[0].rstrip())
            if not context or text.endswith(" "):
                raise ValueError(f"text {number} does not end in a word after others")
            row = torch.tensor(enc.encode_ordinary(text))  # too long: its beginning is left out
            rows.append((row[-block_size - 1 :], min(len(row) - len(context), block_size)))
    return rows


def windows(path, enc, T):
    """A text file as rows for judge() in which every token is new once: in the first window of T,
    or in the last half of a later one. Also {"token", "word", "byte": how many there are}."""
    with needs_network(f"the text of {path}", "name a file in UTF-8"):
        text = Path(path).read_bytes().decode("utf-8-sig")
        # the first token is only context: an end-of-text, if the tokenizer has one
        tokens = torch.from_numpy(encode(enc, text).astype("int64"))
        n = len(tokens) - 1
        if n < 1:
            raise ValueError("it is empty")
    ends = [0, *range(min(T, n), n, max(1, T // 2)), n]
    rows = [(tokens[max(0, end - T) : end + 1], end - begin)
            for begin, end in zip(ends, ends[1:], strict=False)]
    return rows, {"token": n, "word": len(text.split()), "byte": len(text.encode())}


@torch.no_grad()
def judge(model, rows, ranks, what):
    """Of each (tokens, n): -log p of its last n tokens together, in nats, and how many of them are
    not the likeliest. float64 (rows, 2), the same on every rank."""
    def shape(i):
        return len(rows[i][0]), rows[i][1]

    found = torch.zeros(len(rows), 2)
    at_once = 1024 if ranks.device.type == "cpu" else 8192  # tokens
    mine = sorted(range(len(rows)), key=shape)[ranks.ddp_rank :: ranks.ddp_world_size]
    bar = tqdm(total=len(mine), desc=what, leave=False,
               disable=None if ranks.master_process else True)
    for (length, n), same in itertools.groupby(mine, shape):  # of one shape: no padding
        for batch in torch.tensor(list(same)).split(max(1, at_once // length)):
            idx = torch.stack([rows[i][0] for i in batch]).to(ranks.device)  # (B, length)
            with autocast(ranks.device, ranks.dtype):
                logits = model.lm_head(model.hidden(idx[:, :-1])[:, -n:]).float()  # (B, n, V)
            logits, targets = logits.flatten(0, 1), idx[:, -n:].flatten()
            wrong = logits.argmax(dim=1) != targets
            pairs = torch.stack((F.cross_entropy(logits, targets, reduction="none"), wrong), dim=1)
            found[batch] = pairs.view(len(batch), n, 2).sum(dim=1).cpu()
            bar.update(len(batch))
    bar.close()
    return sum_over_ranks(found, ranks).cpu().double()


def score_last_words(model, rows, ranks):
    """LAMBADA's accuracy (every token of the word the likeliest) and perplexity per word, with
    their standard errors."""
    losses, wrong = judge(model, rows, ranks, "LAMBADA").unbind(dim=1)
    share, ppl = (wrong == 0).double().mean().item(), losses.mean().exp().item()
    return {"lambada": share, "lambada_se": math.sqrt(share * (1 - share) / len(rows)),
            "lambada_ppl": ppl,
            "lambada_ppl_se": ppl * losses.std(correction=0).item() / math.sqrt(len(rows))}


def score_text(model, rows, units, ranks):
    """Perplexity per token, word and byte, None where it is too large for a number, and bits per
    byte, which networks of different vocabularies can be compared by."""
    nats = judge(model, rows, ranks, "text")[:, 0].sum().item()
    return {f"{unit}_ppl": math.exp(nats / n) if not nats >= 700 * n else None
            for unit, n in units.items()} | {"byte_bits": nats / units["byte"] / math.log(2)}
