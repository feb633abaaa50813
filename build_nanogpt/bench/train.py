"""A whole training step of the program and of its relatives, on the same weights, in one run."""

import functools
from dataclasses import replace

import torch

import train_gpt2
from build_nanogpt.bench.apart import Apart
from build_nanogpt.bench.measure import (
    PEAK, first_calls, measure_beside, named, product, report, seconds_of,
)
from build_nanogpt.bench.relatives import (
    find_relatives, relative, relatives_optimizer, transformers_gpt2,
)
from build_nanogpt.bench.variants import as_in_a_run, can_compile, random_gpt, sizes, variant
from build_nanogpt.cli import UserError
from nanogpt.cpu import keep_memory
from nanogpt.ranks import autocast, compile_model
from nanogpt.report import flops_per_token
from nanogpt.trial import quicker_dtype

BF16 = "ours, products in bfloat16"


def random_batches(config, device):
    """[(x, y)] of the micro-steps of one step, (B, T) each."""
    tokens = torch.randint(config.vocab_size, (config.grad_accum, config.B, config.T + 1),
                           device=device, generator=torch.Generator(device).manual_seed(1))
    return [(part[:, :-1].contiguous(), part[:, 1:].contiguous()) for part in tokens]


def own_loss(model, x, y):
    """Of a network that returns logits and loss, as ours and those of the video and nanoGPT do."""
    return model(x, y)[1]


def transformers_loss(model, x, y):
    """GPT2LMHeadModel's own loss; it would shift `labels` itself, and lose the last target."""
    return model(input_ids=x, labels=y, shift_labels=y, use_cache=False).loss


def step_of(model, optimizer, batches, loss_of=own_loss, dtype=torch.float32, **choices):
    """A whole step as an action: micro-steps, clipping, update. Returns the loss."""
    device = batches[0][0].device

    def step():
        total = 0.0
        with variant(**choices):
            for x, y in batches:
                with autocast(device, dtype):
                    loss = loss_of(model, x, y).float() / len(batches)
                loss.backward()
                total += loss.detach()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return total.item()

    return step


def step_of_transformers(ours, batches):
    """As its users train it, at its best: one fused AdamW for all parameters."""
    model = transformers_gpt2(ours).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.1,
                                  fused=True)
    return step_of(model, optimizer, batches, transformers_loss)


def step_of_relative(path, ours, batches, fused=False, compiled=False):
    """A clone's network with the optimizer it makes; or with a fused one, or compiled too."""
    model, kind = relative(path, ours).train(), batches[0][0].device.type
    optimizer = relatives_optimizer(path, model, "cuda" if fused else kind)
    return step_of(torch.compile(model) if compiled else model, optimizer, batches)


def step_of_ours(ours, batches, compiled=False, kind="adamw", **choices):
    """The program as a run on this device has it, with some choices changed."""
    device = batches[0][0].device
    muon = quicker_dtype(device) if kind == "muon" else torch.float32
    optimizer = train_gpt2.configure_optimizer(ours, 0.1, 0.0, kind, muon)
    if compiled:
        ours = compile_model(ours, device, wanted=True)
    return step_of(ours, optimizer, batches, **choices)


def all_variants(relatives, cuda, compiles):
    """{name: (whose, choices)} of what is measured; relatives first."""
    found = {"transformers": ("transformers", {})}
    for name in relatives:
        fused = "" if cuda else ", fused AdamW"
        found |= {name: (name, {})} | ({} if cuda else {name + fused: (name, {"fused": True})})
        if compiles:
            found[f"{name}{fused}, compiled"] = name, {"fused": True, "compiled": True}
    found |= {} if cuda else {
        "ours, plain products, memory handed back": ("ours", {"products": "plain",
                                                              "keeps": False}),
        "ours, plain products": ("ours", {"products": "plain"})}
    found |= {"ours": ("ours", {}),
              "ours, 512 positions' logits at a time": ("ours", {"loss_rows": 512}),
              "ours, blocks computed again": ("ours", {"recompute": True}),
              "ours, Muon": ("ours", {"kind": "muon"})}
    found |= {BF16: ("ours", {"dtype": torch.bfloat16})}
    if compiles:
        found["ours, compiled"] = "ours", {"compiled": True}
    return found


def chosen(variants, only):
    """Those of --only, and always ours as it is. Raises UserError for a name that none has."""
    found = named(variants, (*only, "ours") if only else ())
    if all(whose == "ours" for whose, _ in found.values()):
        raise UserError("--only without a relative: name one, as 'transformers', to compare with")
    return found


class Variant:
    """The step of one variant, in its own process: only ours keeps its memory."""

    def __init__(self, config, device, whose, choices):
        self.config, self.device = config, torch.device(device)
        self.whose, self.choices, self.step = whose, dict(choices), None
        if self.choices.pop("keeps", True) and whose == "ours":
            keep_memory()

    def ready(self):
        """Answers once everything is imported, which would slow the others down."""

    def build(self, config):
        ours, batches = random_gpt(config, self.device), random_batches(config, self.device)
        if self.whose == "transformers":
            return step_of_transformers(ours, batches)
        choices = dict(self.choices)
        if self.whose == "ours":
            as_in_a_run(ours, self.device, config.B * config.T, choices.pop("products", "auto"))
            return step_of_ours(ours, batches, **choices)
        path = find_relatives(config.relatives)[self.whose]
        return step_of_relative(path, ours, batches, **choices)

    def piece(self):
        """Seconds of a step of one layer, few ids and about 256 tokens."""
        T = min(self.config.T, 64)
        small = replace(self.config, n_layer=1, vocab_size=min(self.config.vocab_size, 2048),
                        grad_accum=1, T=T, B=max(1, 256 // T))
        return seconds_of(self.build(small), self.device)

    def whole(self):
        """The loss of a step."""
        if not self.step:
            torch._dynamo.reset()  # what the piece compiled is not compiled anew for other shapes
            self.step = self.build(self.config)
        return self.step()

    def library(self):
        """{what: library} of the products of ours."""
        return as_in_a_run(random_gpt(self.config, self.device), self.device,
                           self.config.B * self.config.T)


def check_losses(calls):
    """Raises RuntimeError unless all compute the same. The learning rate is 0, which takes as much
    work as any other: the weights stay, and each variant's loss is the first step's."""
    losses = {name: loss for name, (_, loss) in calls.items()}
    rounded = losses.pop(BF16, losses["ours"])
    if (max(losses.values()) - min(losses.values()) > 1e-4
            or abs(rounded / losses["ours"] - 1) > 0.01):
        raise RuntimeError(f"the variants disagree: losses {losses}, {rounded} in bfloat16")


def train(config, device, clock):
    """A step in fp32: transformers, the user's clones, and the program in its variants."""
    relatives = find_relatives(config.relatives)  # what is wrong with it is said at once
    compiles = config.compile is not False and can_compile(device)
    variants = chosen(all_variants(relatives, device.type == "cuda", compiles), config.only)
    actions = {name: Apart(__name__, "Variant", config, str(device), whose, choices)
               for name, (whose, choices) in variants.items()}
    try:
        for action in actions.values():
            action("ready")
        libraries = actions["ours"]("library")
        kept = clock.far_behind({name: functools.partial(action, "piece")
                                 for name, action in actions.items()})
        actions = {name: action if name in kept else action.end()
                   for name, action in actions.items()}
        actions = {name: action for name, action in actions.items() if action}
        calls = first_calls(actions, device)
        check_losses(calls)
        medians, rates = measure_beside({PEAK: product(device)}, actions, config, device, clock,
                                        warm=True)
    finally:
        for action in actions.values():
            if action:
                action.end()
    best = min((name for name in medians if variants[name][0] != "ours"), key=medians.get)
    c = train_gpt2.GPTConfig(config.T, config.vocab_size, config.n_layer, config.n_head,
                             config.n_embd)
    with torch.device("meta"):
        flops = flops_per_token(train_gpt2.GPT(c), config.T)
    rows = report(
        f"whole training step, fp32, {sizes(config)}, {config.grad_accum} micro-steps; "
        f"ratios to {best}", medians, best, tokens=config.grad_accum * config.B * config.T,
        flops=flops, peak=rates[PEAK], share="of the peak",
        first={name: seconds for name, (seconds, _) in calls.items()})
    print(f"products of ours: {libraries or 'as the GPU has them'}")
    return [row | {"products": libraries} if row["variant"] == "ours" else row for row in rows]
