"""Which settings a run may have."""

import math

import torch

from nanogpt.common import UserError


def check_fit(found, config):
    """Raises UserError if a run cannot begin with a network of these sizes, a GPTConfig."""
    if found.vocab_size != config.vocab_size:
        raise UserError(f"--init-from {config.init_from} has {found.vocab_size} ids, the "
                        f"run {config.vocab_size}: choose other weights, or other --data")
    if found.block_size < config.T:
        raise UserError(f"--T {config.T} is longer than the {found.block_size} positions "
                        f"of {config.init_from}: choose --T {found.block_size} or less")


def check_limits(config):
    """Raises UserError for settings that are wrong by themselves, whatever the data is."""
    at_least = dict(n_layer=1, n_head=1, n_embd=1, B=1, T=1, total_batch_size=1, max_steps=1,
                    warmup_steps=0, weight_decay=0, seed=0, eval_every=1, val_tokens=1,
                    hellaswag_limit=1, sample_tokens=0, temperature=0, checkpoint_every=1,
                    print_every=1, keep=1, keep_every=1, skip_spikes=0, profile=0, loss_rows=0,
                    dropout=0, check_ranks=0, ranks=1, price=0, health=0)
    for name, least in at_least.items():
        value = getattr(config, name)
        if value not in (None, "auto") and not value >= least:
            raise UserError(f"--{name.replace('_', '-')} {value}: give {least} or more")
    for name, most in dict(n_layer=1000, n_embd=10**6, seed=2**63 - 1).items():
        if (value := getattr(config, name)) > most:
            raise UserError(f"--{name.replace('_', '-')} {value}: give {most} or less")
    if not config.out_dir:
        raise UserError("--out-dir is empty: name a folder")
    if not 0 <= config.final_lr <= config.max_lr <= 1e30:  # a float32 ends at 3e38
        raise UserError(f"--min-lr {config.min_lr}, --max-lr {config.max_lr}: give 0 <= min <= max "
                        "<= 1e30")
    if config.loss_rows and not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        raise UserError(f"--loss-rows {config.loss_rows} needs torch 2.13, and this is "
                        f"{torch.__version__}: leave it out")
    if config.eval_only and config.B == "auto":
        raise UserError("--B auto is for training: with --eval-only give a number")
    if config.dropout >= 1:
        raise UserError(f"--dropout {config.dropout}: give less than 1")
    if config.warm_down is not None and not 0 < config.warm_down <= 1:
        raise UserError(f"--warm-down {config.warm_down}: give a share of the run, such as 0.4")
    if not config.eval_only and (config.eval_text or config.lambada != "none"):
        raise UserError("--eval-text and --lambada need --eval-only: give it, too")
    if config.profile and config.profile + 3 > (config.max_steps or math.inf):
        raise UserError(f"--profile {config.profile} of {config.max_steps} steps: the first three "
                        f"are left out, so give --max-steps {config.profile + 3} or more")
