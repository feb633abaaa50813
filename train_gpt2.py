"""GPT-2 (124M), reproduced from an empty file: the network, its training, its evaluation.

    python train_gpt2.py laptop                 # nothing to download, no GPU, about two minutes
    python train_gpt2.py                        # one GPU, on the shards that fineweb.py made
    torchrun --standalone --nproc_per_node=8 train_gpt2.py                            # eight GPUs

The first word after the name is a preset; flags change single settings; `--help` lists them all.
GPT-2's network: learned positions, pre-norm blocks, tanh GELU, biases in every block, dropout only
if you ask for it, and tied embeddings: one matrix both reads and writes tokens.
Read from top to bottom: network, configuration, data, optimizer, training step, evaluation, main.
"""

# imported first, so that Ctrl-C ends the program without a traceback from here on
from nanogpt.common import PLAIN, UserError, parse, run

import contextlib
import functools
import math
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Literal

import torch
import torch.distributed as dist
import torch.utils.checkpoint
import tyro
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP
from tqdm import tqdm

import hellaswag
from nanogpt.checkpoints import RunFolder, read_tensors, restore
from nanogpt.cpu import keep_memory, quicken
from nanogpt.fsdp import full, shard_network, whole_net
from nanogpt.guard import Spikes, Stop, agree, find_fault
from nanogpt.health import Health
from nanogpt.losses import loss_in_parts
from nanogpt.muon import Muon, MuonAdamW
from nanogpt.own_text import own_shards
from nanogpt.plan import check_config, choose_batch, print_plan
from nanogpt.presets import BEST, OWN_TEXT, read_settings
from nanogpt.profiler import Profile
from nanogpt.ramp import Ramp
from nanogpt.ranks import (
    Ranks, autocast, compile_model, init_ranks, on_any_rank, on_master, one_rank_first,
    sum_over_ranks,
)
from nanogpt.report import (
    Progress, describe, print_ending, print_table, report_evaluation, save_curves,
)
from nanogpt.sampling import newest
from nanogpt.scores import score_models
from nanogpt.settings import check_fit
from nanogpt.sharding import OwnedOptimizer
from nanogpt.shards import TokenStream, load_data, validation_rows
from nanogpt.tokenizer import check_tokenizer, fit_prompt, get_tokenizer
from nanogpt.trial import try_out
from nanogpt.weights import TRANSPOSED, check_names, read_pretrained, write_pretrained


# the network
#
# Shapes: B batch, T time, C = n_embd channels, nh heads of size hs = C / nh, V vocabulary.


@dataclass
class GPTConfig:
    """Sizes of the network; the defaults are GPT-2 124M's."""

    block_size: int = 1024  # longest sequence, so also the number of position embeddings
    vocab_size: int = 50257  # 50,000 merges, 256 bytes, 1 end-of-text
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0  # share of activations set to 0 in training; the video's run has none


class CausalSelfAttention(nn.Module):
    """Every position gathers information from itself and the positions before it, n_head times."""

    def __init__(self, config):
        super().__init__()
        if config.n_embd % config.n_head:
            raise UserError(f"n_embd {config.n_embd} is not a multiple of n_head {config.n_head}")
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)  # q, k, v of all heads at once
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.c_proj.adds_to_residual = True
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, cache=None, mask=None):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(C, dim=2)
        q, k, v = (t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, nh, T, hs)
                   for t in (q, k, v))
        if cache:
            k, v = cache.extend(k, v)
        # softmax(q k^T / sqrt(hs)) v, masked to the past, without ever storing the (T, T) matrix;
        # a single new position may see everything in the cache
        y = F.scaled_dot_product_attention(q, k, v, mask, self.dropout.p * self.training,
                                           is_causal=mask is None and T == k.size(2))
        y = y.transpose(1, 2).contiguous().view(B, T, C)  # heads side by side again
        return self.dropout(self.c_proj(y))


class MLP(nn.Module):
    """Each position on its own: four times as wide, GELU, and back."""

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        # OpenAI computed GELU by its tanh approximation, and the weights expect it
        self.gelu = nn.GELU(approximate="tanh")
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)
        self.c_proj.adds_to_residual = True
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        return self.dropout(self.c_proj(self.gelu(self.c_fc(x))))


class Block(nn.Module):
    """Attention, then MLP: each reads a normalized copy of the stream and adds its result."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x, cache=None, mask=None):
        x = x + self.attn(self.ln_1(x), cache, mask)
        x = x + self.mlp(self.ln_2(x))
        return x


class GPT(nn.Module):
    """GPT-2. Parameters are named and shaped as in the published checkpoints."""

    vocab_multiple = 1  # lm_head's matrix product is padded to a multiple of this many ids
    loss_rows = 0  # compute the loss this many positions at a time; 0: all at once
    recompute = False  # activation checkpointing: recompute each block in the backward pass

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.dropout = nn.Dropout(config.dropout)
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(config.vocab_size, config.n_embd),
            wpe=nn.Embedding(config.block_size, config.n_embd),
            h=nn.ModuleList(Block(config) for _ in range(config.n_layer)),
            ln_f=nn.LayerNorm(config.n_embd),
        ))
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        # one matrix reads and writes tokens (Press and Wolf 2016), which saves 38.6M parameters
        self.transformer.wte.weight = self.lm_head.weight
        self.apply(self._init_weights)

    def _init_weights(self, module):
        """Standard deviation 0.02 and biases 0, as in GPT-2's code (which draws wpe with 0.01; here
        it is 0.02, as in the video, so that loss curves can be compared). The 2 n_layer projections
        that add to the residual stream are scaled by 1/sqrt(2 n_layer), so that the stream does
        not grow with depth (GPT-2 paper, section 2.3)."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            std = 0.02
            if hasattr(module, "adds_to_residual"):
                std *= (2 * self.config.n_layer) ** -0.5
            nn.init.normal_(module.weight, mean=0.0, std=std)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)

    def hidden(self, idx, caches=None, pos=None, mask=None):
        """idx (B, T) long -> (B, T, C): the network's output after the last norm, before lm_head.

        caches: one Cache per block; idx holds the tokens after those in them, just one unless they
        are empty. pos (B, T) int64: positions other than 0, 1, ...; mask (B, 1, T, T) bool: what
        each may see instead of its past. Raises ValueError for more than block_size positions.
        """
        begin = caches[0].n if caches else 0
        T = begin + idx.size(1) if pos is None else int(pos.max()) + 1
        if T > self.config.block_size:
            raise ValueError(f"{T} tokens, but the network has {self.config.block_size} positions")
        pos = torch.arange(begin, T, device=idx.device) if pos is None else pos
        x = self.dropout(self.transformer.wte(idx) + self.transformer.wpe(pos))  # (B, T, C)
        for block, cache in zip(self.transformer.h, caches or [None] * self.config.n_layer,
                                strict=True):
            if self.recompute and self.training and not caches:
                x = torch.utils.checkpoint.checkpoint(block, x, None, mask, use_reentrant=False)
            else:
                x = block(x, cache, mask)
        return self.transformer.ln_f(x)

    def forward(self, idx, targets=None):
        """idx, targets (B, T) int64 -> logits (B, T, vocab_size), mean loss in nats (or None).

        With loss_rows and targets, logits is None. Raises ValueError for T > block_size.
        """
        x = self.hidden(idx)
        if targets is not None and self.loss_rows:
            return None, loss_in_parts(x, self.lm_head.weight, targets, self.loss_rows)
        V = self.config.vocab_size
        if missing := -V % self.vocab_multiple:
            # 50,257 is odd, and a GPU's kernels are faster on multiples of 64: rows of zeros make
            # it 64 * 786 = 50,304. They exist only in this product, so no such id can be sampled.
            logits = F.linear(x, F.pad(self.lm_head.weight, (0, 0, 0, missing)))[..., :V]
        else:
            logits = self.lm_head(x)
        loss = None
        if targets is not None:
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss

    def num_params(self):
        """Number of parameters, the shared matrix counted once: 124,439,808 for GPT-2 124M."""
        return sum(p.numel() for p in self.parameters())

    @torch.no_grad()
    def next_tokens(self, idx, max_new_tokens, choose, keep=None):
        """Yield the tokens after idx (B, T), (B, 1) at a time: what choose(logits (B, V)) returns.

        When all positions are taken, begin again with the last `keep` tokens; None: block_size.
        """
        T, block_size = idx.size(1), self.config.block_size
        length, caches = min(T + max_new_tokens, block_size), None
        for _ in range(max_new_tokens):
            if idx.size(1) > block_size:  # the window slides: every token's position changes
                idx, caches = idx[:, -(keep or block_size) :], None
            if not caches:
                caches = [Cache(length) for _ in self.transformer.h]
                new = idx[:1] if (idx == idx[:1]).all() else idx  # compute a shared prompt once
            # (B, V): the last position predicts the next
            logits = self.lm_head(self.hidden(new, caches)[:, -1]).float().expand(len(idx), -1)
            if not logits.isfinite().all():
                raise UserError("the network's logits are NaN or infinite: take other weights")
            yield (new := choose(logits))
            idx = torch.cat((idx, new), dim=1)

    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=50, generator=None, eot=None):
        """Continue idx (B, T) with max_new_tokens sampled tokens: (B, T + max_new_tokens).

        temperature 0 takes the likeliest token; top_k None chooses among all. generator: a
        torch.Generator on idx's device, so that sampling leaves the global state alone. eot: an
        id; stop when every row has drawn it, and return fewer tokens.
        """
        def choose(logits):
            if temperature < 1e-6:  # below, the division overflows
                return logits.argmax(dim=-1, keepdim=True)
            k = min(top_k or self.config.vocab_size, self.config.vocab_size)
            top, ids = logits.topk(k, dim=-1)  # (B, k)
            probs = F.softmax(top / temperature, dim=-1)
            return ids.gather(1, torch.multinomial(probs, 1, generator=generator))

        T = idx.size(1)
        for new in self.next_tokens(idx, max_new_tokens, choose):
            idx = torch.cat((idx, new), dim=1)
            if eot is not None and (idx[:, T:] == eot).any(dim=1).all():
                break
        return idx

    @classmethod
    def from_pretrained(cls, name_or_folder, vocab_size=None, verbose=False, dropout=0.0):
        """GPT-2's weights, from the hub by name or from a folder in transformers' layout.

        name_or_folder: gpt2 (124M), gpt2-medium (350M), gpt2-large (774M), gpt2-xl (1558M), or a
        folder with config.json and model.safetensors. Raises UserError for anything else.
        vocab_size: leave out padding, up to 127 rows past it; verbose: and say so.
        """
        sizes, tensors = read_pretrained(name_or_folder, vocab_size, verbose)
        model = cls(GPTConfig(**sizes, dropout=dropout))
        model.load_transformers_state(tensors, name_or_folder)
        return model

    @torch.no_grad()
    def load_transformers_state(self, tensors, source="the state dict"):
        """Copy in tensors named as in transformers. source: where they come from, for errors."""
        sd = self.state_dict()
        tensors = check_names(tensors, sd, source)
        for k in sd:
            # (in, out) there, for a Conv1D; (out, in) here, for nn.Linear
            sd[k].copy_(tensors[k].t() if k.endswith(TRANSPOSED) else tensors[k])

    def save_pretrained(self, folder, state_dict=None, enc=None):
        """Write config.json and model.safetensors, which GPT2LMHeadModel.from_pretrained opens.

        state_dict: weights to write instead of the current ones. enc: whose end-of-text it names.
        """
        write_pretrained(folder, asdict(self.config), state_dict or self.state_dict(), enc)


class Cache:
    """One layer's keys and values so far, (B, nh, n, hs) each. Memory for `length` positions is
    allocated once."""

    def __init__(self, length):
        self.length, self.n = length, 0

    def extend(self, *new):
        """Add the k and v of the next positions. Returns k and v of all positions so far."""
        assert self.n == 0 or new[0].size(2) == 1, "of several, the first would see the others"
        if self.n == 0:
            self.kept = [t.new_empty(*t.shape[:2], self.length, t.size(3)) for t in new]
        if len(self.kept[0]) < len(new[0]):  # several samples continue one shared prompt
            self.kept = [kept.repeat(len(new[0]), 1, 1, 1) for kept in self.kept]
        begin, self.n = self.n, self.n + new[0].size(2)
        for kept, t in zip(self.kept, new, strict=True):
            kept[:, :, begin : self.n] = t
        return [kept[:, :, : self.n] for kept in self.kept]


# configuration and presets


@dataclass(frozen=True)
class TrainConfig:
    """Every setting of a run; each is a flag. The defaults are the video's run."""

    data: str = "edu_fineweb10B"  # shards, a text (file, folder, shakespeare) or pydoc: the manual
    tokenizer: str | None = None  # a text's: gpt2, bytes, chars, X.json; None: the weights' or gpt2
    out_dir: str = "log/gpt2-124M"  # folder for the log, the curves and the checkpoints
    init_from: str = ""  # start from gpt2 ... gpt2-xl, a folder or a run's newest; sets the sizes
    n_layer: int = 12  # blocks
    n_head: int = 12  # attention heads per block
    n_embd: int = 768  # channels
    vocab_size: int | None = None  # 50257: GPT-2's tokenizer; 257: bytes; None: the data's
    B: int | Literal["auto"] = 64  # micro-batch: sequences per process at a time; auto: what fits
    T: int = 1024  # tokens per sequence; without --init-from also the number of positions
    total_batch_size: int = 2**19  # tokens per optimizer step, over all ranks and micro-steps
    batch_ramp: str = ""  # 0.25:0.03,0.5:0.1: before 3% of the run a quarter, before 10% half of it
    loss_rows: int = 0  # compute the loss this many positions at a time; 0: all at once
    recompute: bool = False  # activation checkpointing: recompute each block during backward
    dropout: float = 0.0  # share of activations set to 0 in training, against overfitting
    max_steps: int | None = None  # optimizer steps, with a whole batch each; None: one epoch
    max_lr: float = 6e-4  # learning rate after warm-up
    min_lr: float | None = None  # learning rate at the end; None: a tenth of --max-lr
    warmup_steps: int = 715  # steps of linear warm-up: GPT-3's 375M tokens at 524,288 a step
    warm_down: float | None = None  # in this last share of the run a line, not a cosine, to min_lr
    optimizer: Literal["adamw", "muon", "muon-qkv"] = "adamw"  # for the blocks' matrices
    shard: Literal["none", "optimizer", "model"] = "none"  # divide averages, or all, among ranks
    weight_decay: float = 0.1  # for matrices and embeddings; biases and norms have none
    shuffle: bool = False  # shuffle shards, and documents within each, anew every epoch
    shuffle_rows: bool = False  # every row from a random place: for a text without documents
    seed: int = 1337  # for the weights, the shuffling and the samples
    eval_every: int = 250  # steps between evaluations; also at the start and the end
    val_tokens: int = 20 * 2**19  # validation tokens, always the same; fewer if the data has fewer
    hellaswag: str = hellaswag.HUB  # the hub's, a .jsonl, heldout (cut from validation text), none
    hellaswag_limit: int | None = None  # score the first N examples; None: all (heldout: 1,000)
    prompt: Annotated[str, PLAIN] = "Hello, I'm a language model,"  # the samples continue it
    sample_tokens: int = 32  # new tokens in each of the four samples; 0: no samples
    temperature: float = 1.0  # of the samples; lower is less random, 0 takes the likeliest token
    checkpoint_every: int = 5000  # steps between checkpoints; also at the end
    keep: int | None = None  # keep the newest N checkpoints; None: all
    keep_every: int | None = None  # with --keep, also keep steps that are multiples of this
    keep_best: bool = False  # save after an evaluation that is the best so far; --keep keeps it too
    resume: bool = False  # resume from the newest checkpoint in --out-dir, if there is one
    skip_spikes: float | None = None  # skip losses and norms this many deviations above the usual
    check_ranks: int = 100  # compare all ranks every N steps and before each checkpoint; 0: never
    track: Literal["none", "tensorboard", "wandb"] = "none"  # also gets all that log.txt gets
    health: int = 0  # steps between the log's notes about every block; 0: none
    print_every: int = 1  # steps between printed lines; the log has every step
    plan: bool = False  # print the memory, time and money that the run needs, and end
    card: str = ""  # with --plan: for H100, 4090, T4 or another card; cpu; empty: this machine
    ranks: int | None = None  # with --plan: processes; None: as many as are started
    price: float | None = None  # with --plan: dollars for a rank and an hour
    profile: int = 0  # profile N steps after the first three: a table, and trace.json
    eval_only: bool = False  # print scores (of several: --init-from gpt2,gpt2-xl), write nothing
    lambada: str = "none"  # with --eval-only: EleutherAI/lambada_openai (hub), or a .jsonl file
    eval_text: str = ""  # with --eval-only: score this text file by its perplexity
    device: str = "auto"  # cuda, mps, cpu, or auto: the first of them that is available
    products: Literal["auto", "plain", "onednn"] = "auto"  # on a CPU; plain: PyTorch's own choice
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"  # auto: 16 bits on a GPU
    compile: Annotated[bool | None, tyro.conf.arg(metavar="| --no-compile")] = None
    """torch.compile the network; by default on a GPU only"""

    @property
    def final_lr(self):
        """min_lr, or a tenth of max_lr where min_lr is None."""
        return 0.1 * self.max_lr if self.min_lr is None else self.min_lr


# Sizes: GPT-2 paper, table 2. Learning rates and batches: GPT-3 paper, table 2.1, by nearest size.
# B: the video's 64 fits 80 GB of memory; elsewhere B x T x n_layer x n_embd is no larger.
PRESETS = {
    "gpt2-124M": TrainConfig(),
    "gpt2-350M": TrainConfig(n_layer=24, n_head=16, n_embd=1024, max_lr=3e-4, B=16),
    "gpt2-774M": TrainConfig(n_layer=36, n_head=20, n_embd=1280, max_lr=2.5e-4, B=8),
    "gpt2-1558M": TrainConfig(n_layer=48, n_head=25, n_embd=1600, max_lr=2e-4, B=4,
                              total_batch_size=2**20, warmup_steps=358),
    "gpt3-125M": TrainConfig(T=2048, B=32),
    "laptop": TrainConfig(
        data="pydoc", tokenizer="bytes", n_layer=2, n_head=4, n_embd=128, B=16, T=128,
        total_batch_size=16 * 128, max_steps=1500, max_lr=1e-2, min_lr=0.0, warmup_steps=50,
        optimizer="muon", weight_decay=0.3, shuffle=True, prompt="The ", sample_tokens=160,
        temperature=0.8, hellaswag="heldout", hellaswag_limit=500, eval_every=500, print_every=50,
    ),
}
PRESETS |= {name: TrainConfig(**settings) for name, settings in (OWN_TEXT | BEST).items()}
PRESETS = {name: replace(preset, out_dir=f"log/{name}") for name, preset in PRESETS.items()}


def parse_args(args):
    """[PRESET] [FILE.toml] [--flag value ...] -> TrainConfig. Raises UserError for unknown ones."""
    return parse(*read_settings(list(args), PRESETS, __doc__))


# data


class DataLoader:
    """Batches for this rank, cut from one TokenStream.

    `position` counts the tokens that all ranks together have taken, so it is the same on every
    rank; the tokens of an optimizer step are the same whatever B and the number of ranks are.
    """

    def __init__(self, stream, B, T, ddp_rank=0, ddp_world_size=1, position=0, pinned=False):
        self.stream, self.B, self.T = stream, B, T
        self.ddp_rank, self.ddp_world_size = ddp_rank, ddp_world_size
        self.position, self.pinned = position, pinned
        self.reader, self.ahead = ThreadPoolExecutor(1), {}  # {position: Future of its batch}

    def next_batch(self):
        """x, y: (B, T) long, y one token ahead of x. Advances position by B T tokens per rank."""
        batch = self.ahead.pop(self.position, None) or self.reader.submit(self.read, self.position)
        x, y = batch.result()
        self.position += self.B * self.T * self.ddp_world_size
        # while the caller computes with this batch, a thread reads the next one
        self.ahead = {self.position: self.reader.submit(self.read, self.position)}
        return x, y

    def read(self, position):
        """This rank's rows of the batch at `position`, in pinned memory if a GPU copies them."""
        n = self.B * self.T
        self.stream.look_at(position, n * self.ddp_world_size + 1)  # what all ranks read
        rows = self.stream.rows(position + self.ddp_rank * n, self.B, self.T)
        return [t.pin_memory() if self.pinned else t for t in map(torch.from_numpy, rows)]


# optimizer and schedule


def configure_optimizer(model, weight_decay, learning_rate, kind="adamw", muon=torch.float32):
    """AdamW with betas (0.9, 0.95), eps 1e-8 (GPT-3 paper, appendix B), fused kernels.

    Weight decay is for matrices and embeddings, which have two dimensions; a bias or a norm's scale
    has no reason to be near zero. The shared matrix is one parameter, so it is counted once.

    kind "muon": Muon, in the dtype `muon`, has the blocks' matrices; "muon-qkv": q, k and v apart.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    # Muon is for the blocks' weight matrices, not for embeddings (the vocabulary's matrix is one)
    matrices = [p for name, p in named if p.dim() == 2 and "transformer.h." in name
                and kind != "adamw"]
    params = [p for _, p in named if all(p is not m for m in matrices)]
    groups = [
        {"params": [p for p in params if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = params[0].device.type in ("cuda", "cpu", "mps")  # devices with a fused kernel
    adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), eps=1e-8, fused=fused)
    return adamw if kind == "adamw" else MuonAdamW(
        Muon(matrices, learning_rate, weight_decay, dtype=muon, qkv=kind == "muon-qkv"), adamw)


def get_lr(step, max_lr, min_lr, warmup_steps, max_steps, warm_down=None):
    """Learning rate of update `step`, counted from 0: linear warm-up, which wastes no update on a
    rate of 0, then a cosine down to min_lr (GPT-3 paper, appendix B). With warm_down it stays at
    max_lr until that last share of the run, in which it falls along a line."""
    if step < warmup_steps:
        return max_lr * min(1, (step + 1) / warmup_steps)
    if step >= max_steps:
        return min_lr
    if warm_down:
        return min_lr + (max_lr - min_lr) * min(1, (max_steps - step) / max_steps / warm_down)
    decay_ratio = (step - warmup_steps) / (max_steps - warmup_steps)  # 0 to 1
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * decay_ratio)) * (max_lr - min_lr)


@dataclass
class Training:
    """What an update of the weights needs. `net` is the plain module; `model` has the same weights,
    compiled and wrapped by DDP: it is the one that trains."""

    net: GPT
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loader: DataLoader
    grad_accum_steps: int
    ranks: Ranks
    max_steps: int = 0
    compiled: nn.Module | None = None  # net, compiled; None if it is not
    step: int = 0  # updates made
    evaluated: int | None = None  # the step of the last evaluation
    best: tuple | None = None  # the lowest validation loss, and its step
    spikes: Spikes = field(default_factory=Spikes)
    health: Health = field(default_factory=Health)
    chosen: dict = field(default_factory=dict)  # what trials on this machine decided


def accumulate_gradients(t):
    """The gradient of one total batch, micro-step by micro-step. Returns its mean loss.

    The mean over the batch is the mean of the micro-batches' means: each is divided by their
    number, and DDP divides by the ranks' when it adds the gradients up.
    """
    loss_accum = torch.zeros((), device=t.ranks.device)
    for micro_step in range(t.grad_accum_steps):
        x, y = (tokens.to(t.ranks.device, non_blocking=t.loader.pinned)
                for tokens in t.loader.next_batch())
        if t.ranks.ddp:
            # DDP decides in the forward pass whether the backward pass will synchronize, so this
            # comes first; until the last micro-step every rank only adds up its own gradients
            t.model.require_backward_grad_sync = micro_step == t.grad_accum_steps - 1
        with autocast(t.ranks.device, t.ranks.dtype):
            _, loss = t.model(x, y)
        loss_accum += loss.detach() / t.grad_accum_steps
        t.scaler.scale(loss / t.grad_accum_steps).backward()
    return sum_over_ranks(loss_accum, t.ranks) / t.ranks.ddp_world_size


def train_step(t, lr):
    """One update of the weights. Returns (loss before it, gradient norm before clipping at 1.0).

    Raises UserError on all ranks, before the weights change, if loss or norm is not finite.
    """
    for group in t.optimizer.param_groups:
        group["lr"] = lr
    began_at = t.loader.position
    loss = accumulate_gradients(t)
    t.scaler.unscale_(t.optimizer)
    norm = agree(full(nn.utils.clip_grad_norm_(t.model.parameters(), 1.0)), t.ranks)
    loss, norm = loss.item(), norm.item()  # .item() waits until the device has the gradient
    # float16's loss scale may be too large at first: the scaler skips updates until it fits
    if not math.isfinite(loss) or not math.isfinite(norm) and t.scaler.get_scale() <= 1:
        fault = find_fault(t, began_at)
        raise UserError(f"loss {loss}, gradient norm {norm} at position {began_at:,} of the data, "
                        f"{fault}: this step did not touch the weights. Go on with --resume and a "
                        "lower --max-lr, or look at the batch")
    t.spikes.look(loss=loss, norm=norm)
    with t.health.watching(t):
        if not t.spikes.skipped:
            t.scaler.step(t.optimizer)
    t.scaler.update()
    t.optimizer.zero_grad(set_to_none=True)
    return loss, norm


# evaluation and sampling
#
# Evaluation runs the plain module, never the DDP one; only whole validation batches run compiled.
# The weights are the same, every length of input works, and nothing is compiled twice.


@dataclass
class Exam:
    """What an evaluation needs besides the network."""

    val: TokenStream
    enc: object  # the tokenizer
    encoded: list[hellaswag.Encoded]


@dataclass
class Evaluation:
    """The results of an evaluation."""

    val_loss: float
    hella: tuple[float, float, int] | None  # acc_norm, its standard error, examples
    samples: list[str]
    seconds: float


@contextlib.contextmanager
def evaluating(model):
    """Evaluation mode and no gradients inside, training mode again afterwards."""
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train()


def validate(model, stream, n_tokens, B, T, ranks, stop=None, compiled=None):
    """Mean loss in nats over the first n_tokens of the stream, in rows of T: the same rows for
    every B and every number of ranks. compiled: the compiled model, for batches of B rows."""
    n_rows = validation_rows(stream, n_tokens, T)
    stream.look_at(0, n_rows * T + 1)  # what all ranks read: one of them looks at it
    mine = range(n_rows * ranks.ddp_rank // ranks.ddp_world_size,
                 n_rows * (ranks.ddp_rank + 1) // ranks.ddp_world_size)
    total = torch.zeros((), device=ranks.device)
    bar = tqdm(range(mine.start, mine.stop, B), desc="validation", leave=False,
               disable=None if ranks.master_process else True)
    with evaluating(model), autocast(ranks.device, ranks.dtype):
        for row in bar:
            if stop and stop.asked:
                break
            rows = min(B, mine.stop - row)
            tokens = torch.from_numpy(stream.read(row * T, rows * T + 1)).to(ranks.device)
            forward = model if compiled is None or rows < B else compiled
            _, loss = forward(tokens[:-1].view(rows, T), tokens[1:].view(rows, T))
            total += loss * rows
    return sum_over_ranks(total, ranks).item() / n_rows


def evaluate_hellaswag(model, encoded, ranks, stop=None):
    """acc_norm and its standard error. Each rank scores some of the examples; counts are added."""
    with evaluating(model), autocast(ranks.device, ranks.dtype):
        counts = hellaswag.count_correct(model, encoded, ranks.device, ranks.ddp_rank,
                                         ranks.ddp_world_size, progress=ranks.master_process,
                                         stop=stop)
    _, acc_norm, n = sum_over_ranks(counts.float(), ranks).tolist()
    n = max(n, 1)  # stopped before the first batch
    return acc_norm / n, hellaswag.standard_error(acc_norm / n, n)


def sample(model, enc, prompt, n_samples, max_new_tokens, temperature, seed, ranks):
    """`n_samples` continuations of the prompt as text, each up to its first end-of-text. A separate
    generator draws them, so training's random numbers do not change."""
    generator = torch.Generator(ranks.device).manual_seed(seed)
    tokens = enc.encode_ordinary(prompt) or [enc.eot_token or 0]  # no prompt: a document begins
    idx = torch.tensor([tokens] * n_samples, device=ranks.device)
    with evaluating(model), autocast(ranks.device, ranks.dtype):
        idx = model.generate(idx, max_new_tokens, temperature, generator=generator,
                             eot=enc.eot_token)
    texts = []
    for new in idx[:, len(tokens) :].tolist():
        end = new.index(enc.eot_token) if enc.eot_token in new else len(new)
        texts.append(prompt + enc.decode(new[:end]))
    return texts


def evaluate(config, t, exam, stop):
    """The Evaluation of `t.net`, the same on every rank; None if a request to stop cut it short."""
    began = time.perf_counter()
    val_loss = validate(t.net, exam.val, config.val_tokens, config.B, config.T, t.ranks, stop,
                        t.compiled)
    if not math.isfinite(val_loss):
        raise UserError(f"validation loss {val_loss} after step {t.step}: go on with --resume and "
                        "a lower --max-lr")
    hella = None
    if exam.encoded:
        hella = (*evaluate_hellaswag(t.net, exam.encoded, t.ranks, stop), len(exam.encoded))
    if on_any_rank(stop.asked, t.ranks):
        return None
    samples = []
    if config.sample_tokens and t.ranks.master_process:
        samples = sample(t.net, exam.enc, config.prompt, 4, config.sample_tokens,
                         config.temperature, config.seed, t.ranks)
    return Evaluation(val_loss, hella, samples, time.perf_counter() - began)


# main


def init_model(config, verbose=False):
    """The network on the CPU: random, or from --init-from. Raises UserError if it does not fit."""
    if not config.init_from:
        return GPT(GPTConfig(config.T, config.vocab_size, config.n_layer, config.n_head,
                             config.n_embd, config.dropout))
    model = GPT.from_pretrained(config.init_from, config.vocab_size, verbose, config.dropout)
    check_fit(model.config, config)
    return model


def prepare_training(config, net, stream, ranks, saved):
    """A Training of `net` on the stream's tokens. saved: facts to resume from, or {}."""
    device = ranks.device
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 where fp32 products remain
        net.vocab_multiple = 64
    net.to(device)
    net.loss_rows, net.recompute = config.loss_rows, config.recompute
    model = compile_model(net, device, config.compile, ranks.master_process)
    compiled = None if model is net else model
    # a run keeps what its first trials on this machine decided
    chosen = on_master(ranks, functools.partial(try_out, config, net, device, saved))
    if device.type == "cpu":
        quicken(net, chosen["products"])
    shard = config.shard if ranks.ddp_world_size > 1 else "none"
    if shard == "model":
        model = shard_network(net, ranks, compiled is not None)
    elif ranks.ddp:
        model = DDP(model, device_ids=[device.index] if device.type == "cuda" else None)
    optimizer = configure_optimizer(model, config.weight_decay, config.max_lr, config.optimizer,
                                    getattr(torch, chosen.get("muon", "float32")))
    if shard == "optimizer":
        optimizer = OwnedOptimizer(optimizer, ranks)
    scaler = torch.amp.GradScaler(device.type, enabled=ranks.dtype == torch.float16)
    loader = DataLoader(stream, config.B, config.T, ranks.ddp_rank, ranks.ddp_world_size,
                        pinned=device.type == "cuda")
    grad_accum_steps = check_config(config, ranks.ddp_world_size)
    t = Training(net, model, optimizer, scaler, loader, grad_accum_steps, ranks,
                 Ramp(config, stream).last_step(saved), compiled,
                 spikes=Spikes(saved.get("spikes"), config.skip_spikes), chosen=chosen)
    if config.dropout:  # other ranks drop others
        torch.manual_seed(config.seed + ranks.ddp_rank)
    if saved:
        restore(t, saved, read_tensors(saved["folder"]) if ranks.master_process else {})
    return t


def training_loop(config, t, exam, folder, stop):
    """Train `t` to its last step, with an exam and a checkpoint now and then, or until a signal
    asks to stop. Returns whether one did."""
    ramp, profile = Ramp(config, t.loader.stream), Profile(config, t.ranks)
    progress, t.health = Progress(config, t, ramp), Health(config, folder.log)
    while True:  # t.step updates have been made
        last_step = t.step >= t.max_steps
        stopping = on_any_rank(stop.asked or folder.failed(), t.ranks)
        folder.watch.look(t, saving=False)

        # ---- once in a while: how good is it?
        due = t.step % config.eval_every == 0 or last_step
        if due and t.step != t.evaluated and not stopping:
            with whole_net(t):
                found = evaluate(config, t, exam, stop)
            if found:
                t.evaluated = t.step
                if not t.best or found.val_loss < t.best[0]:
                    t.best = found.val_loss, t.step
                report_evaluation(t.step, found, folder.log)
            else:  # the resumed run will do all of it again
                stopping = True

        # ---- once in a while: save
        best = config.keep_best and t.best and t.step == t.evaluated == t.best[1]
        if stopping or last_step or t.step and (best or t.step % config.checkpoint_every == 0):
            folder.save(t)
        if stopping or last_step:
            return stopping

        # ---- one training step
        t0 = time.perf_counter()
        lr = get_lr(ramp.set_batch(t, folder.log), config.max_lr, config.final_lr,
                    config.warmup_steps, ramp.n, config.warm_down)
        loss, norm = train_step(t, lr)
        dt = time.perf_counter() - t0
        folder.log.value(t.step, "train", loss)
        if t.spikes.high:
            folder.log.note(step=t.step, spike=t.spikes.high, skipped=t.spikes.skipped)
        due = t.step % config.print_every == 0 or t.step == t.max_steps - 1
        if due and t.ranks.master_process:
            progress.print_step(t.step, loss, lr, norm, dt)
        profile.step()
        t.step += 1


def main():
    keep_memory()
    config = parse_args(sys.argv[1:])
    config = replace(config, init_from=newest(config.init_from))
    ranks = init_ranks(config.device, config.dtype)
    if config.eval_only:
        return score_models(config, ranks, init_model, validate)
    if config.plan:
        return print_plan(config, ranks, init_model, prepare_training, train_step)
    check_config(config, ranks.ddp_world_size)

    # every bad setting and every bad file is found here, before anything is written
    train, val = load_data(own_shards(config, ranks), verify=ranks.ddp_local_rank == 0)
    config = replace(config, vocab_size=train.vocab_size)
    torch.manual_seed(config.seed)
    with one_rank_first(ranks):
        if ranks.ddp_local_rank == 0:
            for stream in train, val:
                stream.check(progress=ranks.master_process)
        train.enc = enc = get_tokenizer(train.tokenizer)
        config = replace(config, prompt=fit_prompt(enc, config.prompt, PRESETS))
        net = init_model(config, ranks.master_process)
        check_tokenizer(enc, config.init_from)
        encoded = hellaswag.load_run(config, enc, net.config.block_size, val)
    c = net.config  # the log must have the network's real sizes, --init-from's too
    config = replace(config, n_layer=c.n_layer, n_head=c.n_head, n_embd=c.n_embd,
                     B=choose_batch(config, net, train, ranks))
    exam = Exam(val, enc, encoded)
    with RunFolder(config, ranks) as folder, Stop() as stop:
        saved = folder.open(train, net, Ramp(config, train).last_step({}))
        t = prepare_training(config, net, train, ranks, saved)
        folder.log.begin(config, t, saved)
        if ranks.master_process:
            print_table(describe(config, t, exam, saved))
        stopped = training_loop(config, t, exam, folder, stop)
        folder.wait()
        if not stopped:
            on_master(ranks, lambda: save_curves(folder.log.path, f"{config.out_dir}/curves.png"))
        if ranks.master_process:
            print_ending(config, folder.newest, stop if stopped else None)
    if ranks.ddp:
        dist.barrier()  # the master has saved: torchrun ends everyone when one process ends badly
        del t  # DDP holds on to the process group
        dist.destroy_process_group()


if __name__ == "__main__":
    run(main)
