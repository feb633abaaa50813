"""Sampling and HellaSwag: the program and its relatives, on the same weights, in one run."""

import torch
from torch.nn import functional as F

import hellaswag as scoring
from build_nanogpt.bench.measure import (
    PEAK, measure_beside, named, product, reading, report, seconds_of,
)
from build_nanogpt.bench.relatives import find_relatives, relative, transformers_gpt2
from build_nanogpt.bench.variants import as_in_a_run, random_gpt
from nanogpt.cpu import keep_memory
from nanogpt.ranks import autocast
from nanogpt.tokenizer import get_tokenizer, tokenizer_name

PROMPT = 8  # tokens
VIDEO = "build-nanogpt"


def of_the_video(config, ours):
    """(name, network) of the clone's GPT, or of ours with all logits of a pass, which computes the
    same."""
    path = find_relatives(config.relatives).get(VIDEO)
    if path:
        model = relative(path, ours).eval()
        return VIDEO, lambda idx: model(idx)[0]
    return f"{VIDEO}'s way", lambda idx: ours.lm_head(ours.hidden(idx))


# -----------------------------------------------------------------------------
# sampling


def looped(last_logits, idx, n):
    """Continue idx (1, T) by the n likeliest tokens, one pass over the whole for each."""
    for _ in range(n):
        idx = torch.cat((idx, last_logits(idx).argmax(dim=-1, keepdim=True)), dim=1)
    return idx


def samplers(config, ours, idx):
    """{name: action of a number of new tokens}; each returns the prompt and its continuation."""
    theirs = transformers_gpt2(ours).eval()
    name, all_logits = of_the_video(config, ours)
    return {
        f"{name}: no cache, all logits": lambda n: looped(lambda i: all_logits(i)[:, -1], idx, n),
        "transformers, cache": lambda n: theirs.generate(
            idx, attention_mask=torch.ones_like(idx), max_new_tokens=n, do_sample=False,
            use_cache=True, pad_token_id=0),
        "ours, no cache": lambda n: looped(lambda i: ours.lm_head(ours.hidden(i)[:, -1]), idx, n),
        "ours, cache": lambda n: ours.generate(idx, n, temperature=0.0),
    }


@torch.no_grad()
def sampling(config, device, clock):
    """Greedy tokens, one sequence: without a cache, with one, and the weights' bytes over the
    memory's speed, below which no token can be had."""
    keep_memory()  # for all of them: they share a process
    ours = random_gpt(config, device, max(config.T, PROMPT + config.new_tokens)).eval()
    idx = torch.randint(config.vocab_size, (1, PROMPT), device=device)
    libraries = as_in_a_run(ours, device, idx.numel())
    ways = named(samplers(config, ours, idx), config.only)
    pieces = {name: lambda way=way: seconds_of(lambda: way(2), device)
              for name, way in ways.items()}
    actions = {name: lambda way=ways[name]: way(config.new_tokens)
               for name in clock.far_behind(pieces)}
    tokens = {name: action().tolist() for name, action in actions.items()}
    if any(row != next(iter(tokens.values())) for row in tokens.values()):
        raise RuntimeError(f"the variants disagree: {tokens}")

    medians, rates = measure_beside({"bytes of memory": reading(device)}, actions, config, device,
                                    clock, warm=True)
    weights = ours.num_params() - ours.transformer.wpe.weight.numel()
    medians["floor: weights read once a token"] = (
        1000 * config.new_tokens * 4 * weights / rates["bytes of memory"])
    print(f"products of ours: {libraries or 'as the GPU has them'}")
    return report(f"{config.new_tokens} new tokens after {PROMPT}, fp32, {config.n_layer} layers, "
                  f"{config.n_embd} channels", medians,
                  "transformers, cache" if "transformers, cache" in medians else "",
                  tokens=config.new_tokens)


# -----------------------------------------------------------------------------
# HellaSwag


def one_example(all_logits, example, device):
    """The number of the likeliest ending as the video's script finds it: four padded rows, and the
    losses of all their positions."""
    length = max(map(len, example.rows))
    tokens, ending = torch.zeros(2, 4, length, dtype=torch.long)
    for i, (row, n) in enumerate(zip(example.rows, example.n_ending, strict=True)):
        tokens[i, : len(row)] = torch.tensor(row)
        ending[i, len(row) - n : len(row)] = 1
    tokens, ending = tokens.to(device), ending[:, 1:].to(device)
    logits = all_logits(tokens[:, :-1])
    losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    losses = losses.view_as(ending) * ending
    return (losses.sum(dim=1) / ending.sum(dim=1)).argmin().item()


def in_batches(score, size, model, encoded, device, tokens=4096):
    """The numbers of the likeliest endings by one of hellaswag.py's two ways."""
    chosen = {}
    for batch in scoring.batches(encoded, tokens, size):
        _, means = score(model, batch, device)
        chosen |= zip(map(id, batch), means.argmin(dim=1).tolist(), strict=True)
    return [chosen[id(example)] for example in encoded]


def scorers(config, ours, device, dtype):
    """{name: action of examples}; each returns the numbers of the likeliest endings."""
    name, all_logits = of_the_video(config, ours)
    packs = 1024 if device.type == "cpu" else 4096  # as count_correct() has it
    ways = {
        f"{name}: one at a time": lambda encoded: [one_example(all_logits, example, device)
                                                   for example in encoded],
        "ours, in rows": lambda encoded: in_batches(scoring.score, scoring.in_rows, ours, encoded,
                                                    device),
        "ours, packed": lambda encoded: in_batches(scoring.score_packed, scoring.in_packs, ours,
                                                   encoded, device, packs)}

    def cast(way, encoded):
        with torch.no_grad(), autocast(device, dtype):
            return way(encoded)

    return {f"{name}, {str(dtype)[6:]}": lambda encoded, way=way: cast(way, encoded)
            for name, way in ways.items()}


def packed_flops(model, encoded):
    """FLOPs that packed examples cannot do without: 2 a weight of the blocks and a token, 4 C a
    layer for each position that it sees, and 2 C a vocabulary's id where an ending is predicted."""
    tokens = [token for example in encoded for row in scoring.pack(example) for token in row]
    C, sees = model.config.n_embd, sum(at + 1 for _, at, _, _ in tokens)
    ending = sum(part > 0 for _, _, part, _ in tokens)
    weights = sum(p.numel() for p in model.transformer.h.parameters() if p.dim() == 2)
    return (2 * weights * len(tokens) + 4 * C * model.config.n_layer * sees
            + 2 * C * model.config.vocab_size * ending)


def hellaswag(config, device, clock):
    """Examples a second, in fp32 and in bfloat16: one at a time, in rows, packed, and the floor of
    the packed tokens' FLOPs."""
    keep_memory()  # for all of them: they share a process
    enc = get_tokenizer(tokenizer_name(config.vocab_size))
    examples = scoring.load_examples(config.data, config.limit)
    encoded, ours = scoring.encode(examples, enc, config.T), random_gpt(config, device).eval()
    libraries = as_in_a_run(ours, device, 1024)
    short = min(encoded, key=lambda example: sum(map(len, example.rows)))
    ways = named(scorers(config, ours, device, torch.float32)
                 | scorers(config, ours, device, torch.bfloat16), config.only)
    pieces = {name: lambda way=way: seconds_of(lambda: way([short]), device)
              for name, way in ways.items()}
    actions = {name: lambda way=ways[name]: way(encoded) for name in clock.far_behind(pieces)}
    chosen = {name: action() for name, action in actions.items() if name.endswith("float32")}
    if any(other != next(iter(chosen.values())) for other in chosen.values()):
        raise RuntimeError(f"the variants disagree: {chosen}")

    dtypes = sorted({name.rpartition(", ")[2] for name in actions}, reverse=True)
    peaks = {f"{PEAK}, {dtype}": product(device, getattr(torch, dtype)) for dtype in dtypes}
    medians, rates = measure_beside(peaks, actions, config, device, clock, warm=True)
    flops = packed_flops(ours, encoded)
    medians |= {name.replace(PEAK, "floor: packed FLOPs"): 1000 * flops / rate
                for name, rate in rates.items()}
    print(f"products of ours: {libraries or 'as the GPU has them'}")
    return report(f"{len(encoded)} examples of HellaSwag, {config.n_layer} layers, {config.n_embd} "
                  "channels", medians, tokens=len(encoded), unit="examples/s")
