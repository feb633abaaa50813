"""What models score, as a table and as one line of JSON. Nothing is written."""

import functools
import json
import math
import os
import time
from dataclasses import replace

import torch.distributed as dist

import hellaswag
from nanogpt.common import UserError
from nanogpt.cpu import quicken
from nanogpt.manifest import find_tokenizer
from nanogpt.own_text import own_shards
from nanogpt.perplexity import last_words, score_last_words, score_text, windows
from nanogpt.ranks import autocast, on_master, one_rank_first, sum_over_ranks
from nanogpt.report import print_table
from nanogpt.sampling import newest
from nanogpt.settings import check_limits
from nanogpt.shards import load_data, validation_rows
from nanogpt.tokenizer import check_tokenizer, folder_key, get_tokenizer
from nanogpt.trial import try_out


def find_models(config):
    """The models that --init-from names, between commas, or the run in --out-dir; of each run its
    newest checkpoint."""
    one = os.path.exists(config.init_from)  # a folder's name may have a comma
    names = [config.init_from] if one else config.init_from.split(",")
    names = [name.strip() for name in names if name.strip()] or [config.out_dir]
    return [newest(name) for name in names]


def load_exams(config, names, init_model, ranks):
    """{name: what its network will be asked}, with "net" itself if there is only one. Raises
    UserError, before anything is scored, for whatever cannot be."""
    val, exams, first = None, {}, ranks.ddp_local_rank == 0
    if config.data == "none" and config.hellaswag == "heldout":
        raise UserError("--hellaswag heldout is cut from validation text: give --data, too")
    config = own_shards(replace(config, init_from=names[0]), ranks)
    with one_rank_first(ranks):
        if config.data != "none":
            val = load_data(replace(config, total_batch_size=1), verify=first)[1]
            if first:
                val.check(progress=ranks.master_process)
            key, n_ids, _ = find_tokenizer(config.data, config.vocab_size)
        else:  # the first network's own
            key, n_ids = folder_key(names[0]) if os.path.isdir(names[0]) else "gpt2", None
        enc = get_tokenizer(key)
        config = replace(config, vocab_size=n_ids or enc.n_vocab)
        text = windows(config.eval_text, enc, config.T) if config.eval_text else None
        for name in names:
            named = replace(config, init_from=name)
            net = init_model(named, ranks.master_process)
            check_tokenizer(enc, name)
            size = net.config.block_size
            exams[name] = {"net": net if len(names) == 1 else None, "config": named, "val": val,
                           "hella": hellaswag.load_run(config, enc, size, val), "text": text,
                           "lambada": last_words(config.lambada, enc, size)}
    return exams


def score(config, net, exam, ranks, validate):
    """All figures of a network by their names; _se is for the standard error."""
    scores = {}
    if val := exam["val"]:
        scores["val"] = validate(net, val, config.val_tokens, config.B, config.T, ranks)
    net.eval()
    if encoded := exam["hella"]:
        with autocast(ranks.device, ranks.dtype):
            counts = hellaswag.count_correct(net, encoded, ranks.device, ranks.ddp_rank,
                                             ranks.ddp_world_size, ranks.master_process)
        acc, acc_norm, n = sum_over_ranks(counts.float(), ranks).tolist()
        for name, share in ("hella", acc_norm / n), ("hella_acc", acc / n):
            scores |= {name: share, f"{name}_se": hellaswag.standard_error(share, n)}
    if exam["lambada"]:
        scores |= score_last_words(net, exam["lambada"], ranks)
    if exam["text"]:
        scores |= score_text(net, *exam["text"], ranks)
    return scores


def print_scores(name, scores, width, head):
    """A model's line of the table, and with `head` the names of the columns above it."""
    shown = {key: "-" if value is None else f"{value:.4f}" if value < 1e6 else f"{value:.3e}"
             for key, value in scores.items() if not key.endswith("_se")}
    if head:
        print("model".ljust(width), *(f"{key:>11s}" for key in shown))
    print(name.ljust(width), *(f"{text:>11s}" for text in shown.values()), flush=True)


def score_models(config, ranks, init_model, validate):
    """--eval-only: a line of the table for each model, then one line of JSON for all. init_model
    and validate are train_gpt2.py's. Raises UserError."""
    check_limits(config)
    names = on_master(ranks, lambda: find_models(config))
    exams = load_exams(config, names, init_model, ranks)
    val, examples = exams[names[0]]["val"], exams[names[0]]["hella"]
    n_val = validation_rows(val, config.val_tokens, config.T) * config.T if val else 0
    facts = dict(data=config.data, val_tokens=n_val, hellaswag=config.hellaswag,
                 examples=len(examples), device=str(ranks.device), dtype=str(ranks.dtype)[6:],
                 ranks=ranks.ddp_world_size)
    facts |= dict(lambada=config.lambada, texts=len(exams[names[0]]["lambada"]))
    if config.eval_text:
        units = {f"{unit}s": n for unit, n in exams[names[0]]["text"][1].items()}
        facts |= dict(text=config.eval_text, **units, window=config.T, stride=max(1, config.T // 2))
    models = []
    if ranks.master_process:
        print_table(facts.items())
    for name, exam in exams.items():
        began = time.perf_counter()
        net = (exam["net"] or init_model(exam["config"])).to(ranks.device)
        chosen = on_master(ranks, functools.partial(try_out, config, net, ranks.device, {}))
        if ranks.device.type == "cpu":
            quicken(net, chosen["products"])
        scores = score(config, net, exam, ranks, validate)
        for key, value in scores.items():
            if value is not None and not math.isfinite(value):
                raise UserError(f"{name}: {key} is {value}: take other weights")
        models.append({"model": name, "parameters": net.num_params(), **scores,
                       "seconds": round(time.perf_counter() - began, 1)})
        if ranks.master_process:
            print_scores(name, scores, max(5, *map(len, names)), head=len(models) == 1)
    if ranks.master_process:
        print(json.dumps({"models": models, **facts}))
    if ranks.ddp:
        dist.destroy_process_group()
