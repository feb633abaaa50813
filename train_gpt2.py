"""GPT-2 (124M), reproduced from an empty file: the network, its training, its evaluation.

    python train_gpt2.py laptop                 # nothing to download, no GPU, about two minutes
    python train_gpt2.py                        # one GPU, on the shards that fineweb.py made
    torchrun --standalone --nproc_per_node=8 train_gpt2.py                            # eight GPUs

The first word after the name is a preset; flags change single settings; `--help` lists them all.
Read from top to bottom: the network, configuration, data, optimizer, evaluation, log, main().
"""

import contextlib
import datetime
import functools
import json
import math
import os
import platform
import re
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.utils.checkpoint
import tyro
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn
from torch.distributed.rendezvous import rendezvous
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP
from tqdm import tqdm

import hellaswag
from common import (
    TOKENIZERS,
    UserError,
    check_writable,
    digest,
    find_device,
    get_tokenizer,
    hub_offline,
    needs_network,
    parse,
    remove,
    run,
    save_file,
    sync,
    tokenizer_name,
    whole,
)
from nanogpt.cpu import choose_products, keep_memory, quicken
from nanogpt.muon import Muon, quicker_dtype
from nanogpt.trial import machine, times_slower, try_products

# -----------------------------------------------------------------------------
# the network
#
# Shapes: B batch, T time, C = n_embd channels, nh heads of size hs = C / nh, V vocabulary.


@dataclass
class GPTConfig:
    """Sizes of the network; the defaults are GPT-2 124M's."""

    block_size: int = 1024  # longest sequence: as many position embeddings
    vocab_size: int = 50257  # 50,000 merges, 256 bytes, 1 end-of-text
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768


class Cache:
    """One layer's keys and values of the positions so far: (B, nh, n, hs) each, in memory for
    `length` positions that is allocated once."""

    def __init__(self, length):
        self.length, self.n = length, 0

    def extend(self, *new):
        """Keep the k and v of the next positions. Returns those of all positions so far."""
        if self.n == 0:
            self.kept = [t.new_empty(*t.shape[:2], self.length, t.size(3)) for t in new]
        if len(self.kept[0]) < len(new[0]):  # one prompt is continued in many ways
            self.kept = [kept.repeat(len(new[0]), 1, 1, 1) for kept in self.kept]
        begin, self.n = self.n, self.n + new[0].size(2)
        for kept, t in zip(self.kept, new, strict=True):
            kept[:, :, begin : self.n] = t
        return [kept[:, :, : self.n] for kept in self.kept]


class CausalSelfAttention(nn.Module):
    """Every position gathers what it needs from the positions before it, in n_head ways."""

    def __init__(self, config):
        super().__init__()
        if config.n_embd % config.n_head:
            raise UserError(f"--n-embd {config.n_embd} does not divide by --n-head {config.n_head}")
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)  # q, k, v of all heads at once
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.c_proj.adds_to_residual = True

    def forward(self, x, cache=None, mask=None):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(C, dim=2)
        q, k, v = (t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, nh, T, hs)
                   for t in (q, k, v))
        if cache:
            k, v = cache.extend(k, v)
        # softmax(q k^T / sqrt(hs)) v, masked to the past, without ever storing the (T, T) matrix;
        # one new position sees all that is in the cache
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None and T == k.size(2))
        y = y.transpose(1, 2).contiguous().view(B, T, C)  # heads side by side again
        return self.c_proj(y)


class MLP(nn.Module):
    """Every position thinks for itself: four times as wide, GELU, back."""

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        # OpenAI computed GELU by its tanh approximation, and the weights expect it
        self.gelu = nn.GELU(approximate="tanh")
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)
        self.c_proj.adds_to_residual = True

    def forward(self, x):
        return self.c_proj(self.gelu(self.c_fc(x)))


class Block(nn.Module):
    """Attention, then MLP: each reads a normalised copy of the stream and adds its result."""

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

    vocab_multiple = 1  # the product with the vocabulary is padded to a multiple of it
    loss_rows = 0  # positions whose logits exist at a time in the loss; 0: all
    recompute = False  # in the backward pass, what the blocks computed in the forward pass

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(config.vocab_size, config.n_embd),
            wpe=nn.Embedding(config.block_size, config.n_embd),
            h=nn.ModuleList(Block(config) for _ in range(config.n_layer)),
            ln_f=nn.LayerNorm(config.n_embd),
        ))
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        # one matrix reads tokens and writes them (Press and Wolf 2016): 38.6M parameters saved
        self.transformer.wte.weight = self.lm_head.weight
        self.apply(self._init_weights)

    def _init_weights(self, module):
        """Standard deviation 0.02 and biases 0, as in GPT-2's code (which draws wpe with 0.01: here
        it is 0.02 as in the video, so that loss curves can be laid side by side). Each of the 2
        n_layer projections that add to the residual stream is scaled by 1/sqrt(2 n_layer), so that
        the sum's size does not grow with depth (GPT-2 paper, section 2.3)."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            std = 0.02
            if hasattr(module, "adds_to_residual"):
                std *= (2 * self.config.n_layer) ** -0.5
            nn.init.normal_(module.weight, mean=0.0, std=std)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)

    def hidden(self, idx, caches=None, pos=None, mask=None):
        """idx (B, T) long -> (B, T, C): the stream after the last norm, before the vocabulary.

        caches: a Cache a block; idx is then what follows on their positions, one token unless they
        are empty. pos (B, T) long, mask (B, 1, T, T) bool: positions other than 0, 1, ..., and what
        each may see in place of its past. Raises ValueError for more than block_size positions.
        """
        begin = caches[0].n if caches else 0
        T = begin + idx.size(1) if pos is None else int(pos.max()) + 1
        if T > self.config.block_size:
            raise ValueError(f"{T} tokens, but the network has {self.config.block_size} positions")
        pos = torch.arange(begin, T, device=idx.device) if pos is None else pos
        x = self.transformer.wte(idx) + self.transformer.wpe(pos)  # (B, T, C)
        for block, cache in zip(self.transformer.h, caches or [None] * self.config.n_layer,
                                strict=True):
            if self.recompute and self.training:
                x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x, cache, mask)
        return self.transformer.ln_f(x)

    def forward(self, idx, targets=None):
        """idx (B, T) long -> logits (B, T, vocab_size), loss (mean over B T in nats, or None).

        With loss_rows and targets no logits are kept, and None stands in their place.
        """
        x = self.hidden(idx)
        if targets is not None and self.loss_rows:
            return None, self.loss_in_parts(x.flatten(0, 1), targets.flatten())
        V = self.config.vocab_size
        if missing := -V % self.vocab_multiple:
            # 50,257 is odd, and a GPU's kernels like powers of two: rows of zeros make it 50,304 =
            # 64 * 786. They exist in this product alone, so no id past the vocabulary can win.
            logits = F.linear(x, F.pad(self.lm_head.weight, (0, 0, 0, missing)))[..., :V]
        else:
            logits = self.lm_head(x)
        loss = None
        if targets is not None:
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss

    def loss_in_parts(self, x, targets):
        """The mean loss of x (rows, C) without ever holding logits for more than loss_rows of them:
        the gradients of a part are computed with its loss, and the part's logits forgotten."""
        weight, kind = self.lm_head.weight, x.device.type
        if torch.is_autocast_enabled(kind):  # which does not know this function
            x, weight = (t.to(torch.get_autocast_dtype(kind)) for t in (x, weight))
        options = nn.LinearCrossEntropyOptions(
            batch_chunk_size=self.loss_rows, allow_retain_graph=torch.compiler.is_compiling())
        return F.linear_cross_entropy(x, weight, targets, options=options)

    def num_params(self):
        """Number of parameters, the shared matrix counted once: 124,439,808 for GPT-2 124M."""
        return sum(p.numel() for p in self.parameters())

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=50, generator=None, eot=None):
        """Continue idx (B, T) by max_new_tokens sampled tokens: (B, T + max_new_tokens).

        temperature 0 takes the likeliest token; top_k None chooses among all. generator: a
        torch.Generator on idx's device, so that sampling leaves the global state alone. eot: an
        id; once all B rows have drawn it, fewer tokens are returned.
        """
        T, block_size = idx.size(1), self.config.block_size
        length = min(T + max_new_tokens, block_size)
        caches = [Cache(length) for _ in self.transformer.h] if T <= block_size else None
        new = idx[:1] if (idx == idx[:1]).all() else idx  # a prompt that all share is read once
        for _ in range(max_new_tokens):
            if idx.size(1) <= block_size:
                x = self.hidden(new, caches)
            else:  # the window slides: every token has another position, and all is new
                x = self.hidden(idx[:, -block_size:])
            # (B, V): the last position predicts the next
            logits = self.lm_head(x[:, -1]).float().expand(len(idx), -1)
            if temperature < 1e-6:  # below, the division overflows
                next_idx = logits.argmax(dim=-1, keepdim=True)
            else:
                k = min(top_k or self.config.vocab_size, self.config.vocab_size)
                top, ids = logits.topk(k, dim=-1)  # (B, k)
                probs = F.softmax(top / temperature, dim=-1)
                next_idx = ids.gather(1, torch.multinomial(probs, 1, generator=generator))
            idx, new = torch.cat((idx, next_idx), dim=1), next_idx
            if eot is not None and (idx[:, T:] == eot).any(dim=1).all():
                break
        return idx

    @classmethod
    def from_pretrained(cls, name_or_folder):
        """GPT-2's weights, from the hub by name or from a folder in transformers' layout.

        name_or_folder: gpt2 (124M), gpt2-medium (350M), gpt2-large (774M), gpt2-xl (1558M), or a
        folder with config.json and model.safetensors. Raises UserError for anything else.
        """
        hf = load_transformers_gpt2(name_or_folder)
        config = GPTConfig(block_size=hf.config.n_positions, vocab_size=hf.config.vocab_size,
                           n_layer=hf.config.n_layer, n_head=hf.config.n_head,
                           n_embd=hf.config.n_embd)
        model = cls(config)
        model.load_transformers_state(hf.state_dict())
        return model

    @torch.no_grad()
    def load_transformers_state(self, sd_hf):
        """Copy the tensors of a transformers GPT-2 state dict, whatever its version.

        Older ones hold the causal mask as buffers (attn.bias, attn.masked_bias): not weights.
        """
        sd = self.state_dict()
        keys = {k for k in sd_hf if not k.endswith((".attn.bias", ".attn.masked_bias"))}
        if keys != set(sd):
            raise UserError(f"the weights' names are not GPT-2's: {sorted(keys ^ set(sd))[:3]}")
        for k in sd:
            source = sd_hf[k].t() if k.endswith(TRANSPOSED) else sd_hf[k]
            if source.shape != sd[k].shape:
                raise UserError(f"{k} has shape {tuple(source.shape)}, not {tuple(sd[k].shape)}")
            sd[k].copy_(source)

    def save_pretrained(self, folder, state_dict=None):
        """Write config.json and model.safetensors, which GPT2LMHeadModel.from_pretrained opens.

        state_dict: a copy of the weights to write in place of the present ones.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state_dict = state_dict or self.state_dict()
        state = {k: (v.t() if k.endswith(TRANSPOSED) else v).contiguous().cpu()
                 for k, v in state_dict.items() if k != "lm_head.weight"}  # tied to wte
        with whole(folder / "model.safetensors") as path:
            save_file(state, path, metadata={"format": "pt"})
        c = self.config
        config = dict(
            architectures=["GPT2LMHeadModel"], model_type="gpt2", dtype="float32",
            n_positions=c.block_size, n_ctx=c.block_size, vocab_size=c.vocab_size,
            n_layer=c.n_layer, n_head=c.n_head, n_embd=c.n_embd, n_inner=None,
            activation_function="gelu_new", layer_norm_epsilon=1e-5, tie_word_embeddings=True,
            bos_token_id=c.vocab_size - 1, eos_token_id=c.vocab_size - 1,
            attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)  # trained without dropout
        with whole(folder / "config.json") as path:
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


# The names on the hub.
PRETRAINED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
# The checkpoints store these matrices for a Conv1D, (in, out), where nn.Linear wants (out, in).
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def load_transformers_gpt2(name_or_folder):
    """transformers' GPT2LMHeadModel in fp32 on the CPU. Raises UserError for what is no GPT-2."""
    name = str(name_or_folder)
    is_folder = os.path.isdir(name)
    if not is_folder and name not in PRETRAINED:
        raise UserError(f"no model {name}: choose {', '.join(PRETRAINED)}, or an existing folder "
                        "with config.json and model.safetensors")
    config = read_gpt2_config(Path(name) / "config.json") if is_folder else None
    from transformers import GPT2LMHeadModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    if is_folder:
        logging.disable_progress_bar()  # a download deserves its bar
    with needs_network(f"the weights of {name}", "name a folder with GPT-2's config.json and "
                       "model.safetensors, whole and of the shapes in its config.json"):
        hf, info = GPT2LMHeadModel.from_pretrained(
            name, local_files_only=is_folder or hub_offline(name), use_safetensors=True,
            dtype=torch.float32, output_loading_info=True, config=config)
    absent = sorted(info["missing_keys"]) + sorted(map(str, info["mismatched_keys"]))
    if absent:  # transformers would go on with random numbers in their place
        raise UserError(f"{name} lacks weights of its config.json, {absent[0]} for one: "
                        "name a folder that holds them all")
    return hf


# What a config.json must say, or leave out, for its network to be the one above.
GPT2_IS = dict(
    model_type="gpt2", activation_function="gelu_new", layer_norm_epsilon=1e-5, n_inner=None,
    tie_word_embeddings=True, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
GPT2_SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")


def read_gpt2_config(path):
    """transformers' configuration with the sizes in a config.json, and nothing else of it: what a
    stranger's file may tell transformers to fetch and to run is left out. Raises UserError for a
    file that is missing, broken, or describes another network than ours."""
    try:
        config = {"model_type": None, **json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not a GPT-2's config.json ({type(error).__name__}): name a "
                        "folder that save_pretrained wrote") from None
    for key, value in GPT2_IS.items():
        if config.get(key, value) != value:
            raise UserError(f"{path} says {key} = {config[key]}, and the network here has {value}: "
                            "name a GPT-2")
    sizes = {key: config[key] for key in GPT2_SIZES if key in config}
    for key, value in sizes.items():
        if type(value) is not int or not 1 <= value <= (1000 if key == "n_layer" else 10**6):
            raise UserError(f"{path} says {key} = {value!r}: name a GPT-2")
    from transformers import GPT2Config

    return GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)


# -----------------------------------------------------------------------------
# device and ranks


@dataclass(frozen=True)
class Ranks:
    """Which process of how many this is, and its device. One plain process is rank 0 of 1."""

    device: torch.device
    ddp: bool = False
    ddp_rank: int = 0
    ddp_local_rank: int = 0
    ddp_world_size: int = 1

    @property
    def master_process(self):
        """The one that prints, logs and saves."""
        return self.ddp_rank == 0


def init_ranks(device_name):
    """Join the other processes if torchrun started this one: nccl on GPUs, gloo on CPUs."""
    device = find_device(device_name)
    ddp = "LOCAL_RANK" in os.environ  # torchrun sets it
    ddp_rank, ddp_local_rank, ddp_world_size = (
        int(os.environ[name]) if ddp else default
        for name, default in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1)))
    if ddp and device.type == "mps":  # one GPU, and neither nccl nor gloo speak to it
        device = torch.device("cpu")
    if ddp and device.type == "cuda":
        if ddp_local_rank >= torch.cuda.device_count():
            raise UserError(f"rank {ddp_local_rank} has no GPU: torchrun --nproc_per_node="
                            f"{torch.cuda.device_count()}")
        device = torch.device("cuda", ddp_local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)  # "cuda" alone has no index, and is refused
    if ddp:  # an hour: one rank may download while the others wait
        hour = datetime.timedelta(hours=1)
        store, _, _ = next(rendezvous("env://", timeout=hour))
        # torchrun keeps the store when it starts the ranks again, with addresses of the dead in it
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=hour,
                                store=dist.PrefixStore(f"attempt {attempt}", store),
                                rank=ddp_rank, world_size=ddp_world_size)
    return Ranks(device, ddp, ddp_rank, ddp_local_rank, ddp_world_size)


def sum_over_ranks(values, ranks):
    """Add a tensor over all ranks. Means are made by dividing sums: gloo has no ReduceOp.AVG."""
    values = values.to(ranks.device)
    if ranks.ddp:
        dist.all_reduce(values, op=dist.ReduceOp.SUM)
    return values


def on_master(ranks, work):
    """work() on the master alone; what it returns, as JSON, or its UserError, on every rank.

    Not broadcast_object_list: that would unpickle.
    """
    said = {}
    if ranks.master_process:
        try:
            said["result"] = work()
        except (UserError, OSError) as error:
            said["error"] = str(error)
    if ranks.ddp:
        text = torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8).to(ranks.device)
        size = torch.tensor(len(text), device=ranks.device)
        dist.broadcast(size, src=0)
        if not ranks.master_process:
            text = torch.zeros(int(size), dtype=torch.uint8, device=ranks.device)
        dist.broadcast(text, src=0)
        said = json.loads(bytes(text.tolist()))
    if "error" in said:
        raise UserError(said["error"])
    return said["result"]


def share(tensors, ranks):
    """The master's dict of tensors, copied to every rank's device."""
    kinds = on_master(ranks, lambda: {name: [str(t.dtype)[6:], list(t.shape)]
                                      for name, t in tensors.items()})
    shared = {}
    for name, (dtype, shape) in kinds.items():
        shared[name] = torch.zeros(shape, dtype=getattr(torch, dtype), device=ranks.device)
        if ranks.master_process:
            shared[name].copy_(tensors[name])
        if ranks.ddp:
            dist.broadcast(shared[name], src=0)
    return shared


@contextlib.contextmanager
def one_rank_first(ranks):
    """One process a machine runs the block and fills the caches; the others follow it."""
    if ranks.ddp and ranks.ddp_local_rank != 0:
        dist.barrier()
    yield
    if ranks.ddp and ranks.ddp_local_rank == 0:
        dist.barrier()


def choose_dtype(name, device):
    """The dtype of matrix products under autocast: a torch.dtype."""
    if name != "auto":
        return getattr(torch, name)
    if device.type != "cuda":
        return torch.float32
    # older cards (V100, T4) would emulate bfloat16, slowly
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bf16 else torch.float16


def autocast(device, dtype):
    """Matrix products in `dtype`, parameters and sensitive operations in fp32."""
    return torch.autocast(device_type=device.type, dtype=dtype, enabled=dtype != torch.float32)


def compile_model(model, device, wanted, master=True):
    """torch.compile(model) where it is wanted (None: on cuda) and works, else the model itself."""
    if not (device.type == "cuda" if wanted is None else wanted):
        return model
    try:  # Triton is missing on Windows, a C compiler on many CPUs: try something small first
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
    except Exception as error:
        if master:
            print(f"torch.compile does not work here ({type(error).__name__}): running eagerly")
        return model
    return torch.compile(model, dynamic=False)  # every batch has one shape


# -----------------------------------------------------------------------------
# configuration and presets


@dataclass(frozen=True)
class TrainConfig:
    """Every setting of a run; each is a flag. The defaults are the video's run."""

    data: str = "edu_fineweb10B"
    """folder of shards (fineweb.py makes it); "pydoc": the manual that every Python carries"""
    out_dir: str = "log/gpt2-124M"
    """folder for log.txt, curves.png and the checkpoints"""
    init_from: str = ""
    """start from these weights, not random ones: gpt2 ... gpt2-xl, or a folder; sets the sizes"""
    n_layer: int = 12
    """blocks"""
    n_head: int = 12
    """attention heads a block"""
    n_embd: int = 768
    """channels"""
    vocab_size: int = TOKENIZERS["gpt2"]
    """ids of the tokenizer: 50257 is gpt2's, 257 is bytes'"""
    B: int = 64
    """micro-batch: sequences a process handles at once; halve it when memory runs out"""
    T: int = 1024
    """tokens a sequence; without --init-from also the number of position embeddings"""
    total_batch_size: int = 2**19
    """tokens an optimizer step, over all ranks and micro-steps"""
    loss_rows: int = 0
    """positions whose logits the loss holds at a time, for want of memory; 0: all"""
    recompute: bool = False
    """keep a block's input alone and compute the block again in the backward pass: about a quarter
    more work, and a fraction of the memory"""
    max_steps: int | None = None
    """optimizer steps; None: one epoch of the shards found"""
    max_lr: float = 6e-4
    """learning rate after the warm-up"""
    min_lr: float | None = None
    """learning rate at the end; None: a tenth of --max-lr"""
    warmup_steps: int = 715
    """steps of linear warm-up: GPT-3's 375M tokens at 524,288 a step"""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """of the blocks' matrices; embeddings, biases and norms always have AdamW"""
    weight_decay: float = 0.1
    """of matrices and embeddings; biases and norms have none"""
    shuffle: bool = False
    """shuffle shards, and documents within each, anew every epoch; else the order on disk"""
    seed: int = 1337
    """of the weights, the shuffling and the samples"""
    eval_every: int = 250
    """steps between evaluations (validation, HellaSwag, samples); also at the start and the end"""
    val_tokens: int = 20 * 2**19
    """tokens of the validation shards, always the same ones; less if they hold less"""
    hellaswag: str = hellaswag.HUB
    """the hub's dataset, a .jsonl file, "heldout" (endings cut from validation text), or "none" """
    hellaswag_limit: int | None = None
    """score the first so many examples; None: all (1,000 of "heldout")"""
    prompt: str = "Hello, I'm a language model,"
    """what the samples continue"""
    sample_tokens: int = 32
    """new tokens in each of the four samples; 0: no samples"""
    temperature: float = 1.0
    """of the samples; below 1 they keep to what is likelier, 0 takes the likeliest"""
    checkpoint_every: int = 5000
    """steps between checkpoints; also at the end"""
    keep: int | None = None
    """how many of the newest checkpoints stay; None: all"""
    keep_every: int | None = None
    """with --keep: checkpoints at multiples of so many steps stay as well"""
    resume: bool = False
    """go on from the newest checkpoint in --out-dir; without one, start anew"""
    skip_spikes: float | None = None
    """leave out updates whose loss or gradient norm is so many standard deviations above the last
    128; None: take all, and mark those above 6 in the log"""
    print_every: int = 1
    """steps between printed lines; the log has every step"""
    profile: int = 0
    """steps to profile, from the fourth on: their costliest operations, and trace.json"""
    device: str = "auto"
    """cuda, mps, cpu, or auto for the first of them that is there"""
    products: Literal["auto", "plain", "onednn"] = "auto"
    """library of a CPU's float32 matrix products: plain is PyTorch's own choice, auto tries both"""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """of the matrix products; auto: bfloat16 on cards that have it, else float16; float32 on CPU"""
    compile: Annotated[bool | None, tyro.conf.arg(metavar="| --no-compile")] = None
    """torch.compile the training step; by default on for cuda alone"""

    @property
    def final_lr(self):
        """min_lr, or the tenth of max_lr that stands for None."""
        return 0.1 * self.max_lr if self.min_lr is None else self.min_lr


# Sizes: GPT-2 paper, table 2. Learning rates and batches: GPT-3 paper, table 2.1, by nearest size.
# B: 64 is the video's for 80 GB of memory; in the others B x T x n_layer x n_embd is no larger.
PRESETS = {
    "gpt2-124M": TrainConfig(),
    "gpt2-350M": TrainConfig(n_layer=24, n_head=16, n_embd=1024, max_lr=3e-4, B=16),
    "gpt2-774M": TrainConfig(n_layer=36, n_head=20, n_embd=1280, max_lr=2.5e-4, B=8),
    "gpt2-1558M": TrainConfig(n_layer=48, n_head=25, n_embd=1600, max_lr=2e-4, B=4,
                              total_batch_size=2**20, warmup_steps=358),
    "gpt3-125M": TrainConfig(T=2048, B=32),
    "laptop": TrainConfig(
        data="pydoc",
        n_layer=2, n_head=4, n_embd=128, vocab_size=TOKENIZERS["bytes"],
        B=16, T=128, total_batch_size=16 * 128,
        max_steps=1500, max_lr=1e-2, min_lr=0.0, warmup_steps=50,
        optimizer="muon", weight_decay=0.3,
        shuffle=True,
        prompt="The ", sample_tokens=160, temperature=0.8,
        hellaswag="heldout", hellaswag_limit=500,
        eval_every=500, print_every=50,
    ),
}
PRESETS = {name: replace(preset, out_dir=f"log/{name}") for name, preset in PRESETS.items()}


def parse_args(args):
    """[PRESET] [--flag value ...] -> TrainConfig. Raises UserError for what cannot be read."""
    args = list(args)
    name = args.pop(0) if args and not args[0].startswith("-") else "gpt2-124M"
    if name not in PRESETS:
        raise UserError(f"no preset {name}: choose one of {', '.join(PRESETS)}")
    about = f"{__doc__}\nPresets: {', '.join(PRESETS)}. The defaults below are {name}'s."
    return parse(PRESETS[name], args, f"train_gpt2.py {name}", about)


def check_config(config, ddp_world_size):
    """Refuse settings that no run could have. Returns grad_accum_steps."""
    at_least = dict(n_layer=1, n_head=1, n_embd=1, B=1, T=1, total_batch_size=1, max_steps=1,
                    warmup_steps=0, weight_decay=0, seed=0, eval_every=1, val_tokens=1,
                    hellaswag_limit=1, sample_tokens=0, temperature=0, checkpoint_every=1,
                    print_every=1, keep=1, keep_every=1, skip_spikes=0, loss_rows=0,
                    profile=0)
    for name, least in at_least.items():
        value = getattr(config, name)
        if value is not None and not value >= least:
            raise UserError(f"--{name.replace('_', '-')} {value}: give {least} or more")
    if not 0 <= config.final_lr <= config.max_lr <= 1e30:  # a float32 ends at 3e38
        raise UserError(f"--min-lr {config.min_lr}, --max-lr {config.max_lr}: give 0 <= min <= max "
                        "<= 1e30")
    if config.loss_rows and not hasattr(nn, "LinearCrossEntropyOptions"):
        raise UserError(f"--loss-rows {config.loss_rows} needs torch 2.13, and this is "
                        f"{torch.__version__}: leave it out")
    if config.seed >= 2**63:
        raise UserError(f"--seed {config.seed}: give less than 2**63")
    if config.profile and config.profile + 3 > (config.max_steps or math.inf):
        raise UserError(f"--profile {config.profile} of {config.max_steps} steps: three go before, "
                        f"so give {config.max_steps - 3} or less, or more --max-steps")
    at_once = config.B * config.T * ddp_world_size
    if config.total_batch_size % at_once:
        nearest = max(1, round(config.total_batch_size / at_once)) * at_once
        raise UserError(f"--total-batch-size {config.total_batch_size} does not divide by B x T x "
                        f"ranks = {config.B} x {config.T} x {ddp_world_size} = {at_once}: "
                        f"try {nearest}, or another --B")
    return config.total_batch_size // at_once


# -----------------------------------------------------------------------------
# data


@dataclass(frozen=True)
class Shard:
    """uint16 tokens in a file or in memory. `open` maps them anew for every read: a mapping kept
    open would count every page it ever touched as this process's memory."""

    name: str
    n_tokens: int
    open: Callable[[], np.ndarray]
    sha256: str = ""  # of the file, if its manifest lists one


def open_shard(path):
    """A Shard from one of our .npy files or of llm.c's .bin files. Raises UserError if it is not.

    .bin: 256 int32 (magic 20240520, version 1, number of tokens, zeros), then uint16 tokens.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if path.suffix == ".bin":
            header = np.fromfile(path, dtype="<i4", count=256)
            if len(header) < 256 or (header[0], header[1]) != (20240520, 1):
                raise ValueError("no llm.c header")
            offset, shape, dtype = 1024, (int(header[2]),), np.dtype("<u2")
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # numpy warns of headers that Python 2 wrote
                tokens = np.lib.format.open_memmap(path, mode="r")  # .npy, and never a pickle
            offset, shape, dtype = tokens.offset, tokens.shape, tokens.dtype
        if dtype != np.uint16 or len(shape) != 1:
            raise ValueError(f"{dtype} of shape {shape}, not uint16 in one dimension")
        if size != offset + 2 * shape[0]:
            raise ValueError(f"{size} bytes where {shape[0]} tokens need {offset + 2 * shape[0]}")
    except Exception as error:  # a damaged header fails in numpy in a dozen ways
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} is no whole shard of tokens ({reason}): make it again") from None
    return Shard(str(path), shape[0],
                 functools.partial(np.memmap, path, np.uint16, "r", offset, shape))


def find_shards(folder, tokenizer):
    """The train and the validation shards of a folder, in the order of their names.

    Names end in _train_000001.npy, _val_000000.npy, or in .bin. A manifest.json beside them must
    agree with what is there, and with `tokenizer`. Raises UserError.
    """
    way_out = 'run "python fineweb.py", or try "python train_gpt2.py laptop"'
    shards = {"train": [], "val": []}
    folder = Path(folder)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if match := re.search(r"_(train|val)(_\d+)?\.(npy|bin)$", path.name):
            shards[match[1]].append(open_shard(path))
    if (folder / "manifest.json").exists():
        sums = check_manifest(folder / "manifest.json", tokenizer, shards["train"] + shards["val"])
        shards = {split: [replace(shard, sha256=sums[Path(shard.name).name]) for shard in found]
                  for split, found in shards.items()}
    for split, found in shards.items():
        if not found:
            raise UserError(f"no {split} shards in {folder}: {way_out}")
    return shards["train"], shards["val"]


def check_manifest(path, tokenizer, shards):
    """Refuse shards of another tokenizer, and shards that are not the ones listed.

    Returns {file: its SHA-256, or ""}.
    """
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        made_with = str(manifest["tokenizer"])
        listed = {str(shard["file"]): int(shard["tokens"]) for shard in manifest["shards"]}
        sums = {str(shard["file"]): str(shard.get("sha256", "")) for shard in manifest["shards"]}
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} is no manifest ({type(error).__name__}): make the shards again, "
                        "or remove it if they are from elsewhere") from None
    if made_with != tokenizer:
        raise UserError(f"the shards in {path.parent} are of the tokenizer {made_with}, the run is "
                        f"of {tokenizer}: choose other --data, or another --vocab-size")
    found = {Path(shard.name).name: shard.n_tokens for shard in shards}
    for name in sorted(listed.keys() | found.keys()):
        if found.get(name) != listed.get(name):
            raise UserError(f"{path.parent / name} holds {found.get(name, 'no')} tokens, and the "
                            f"manifest lists {listed.get(name, 'none')}: make the shards again")
    return sums


def python_manual(T):
    """The text behind Python's help(), half a megabyte, as byte shards in memory: train, val.

    Every tenth stretch of about a thousand characters is validation. A paragraph that comes twice
    (topics quote each other) is kept once, so that training has not seen what validation asks.
    Documents are excerpts that fill a row of T tokens: shuffled, they make a batch of many topics,
    where longer ones would make it of one, and the steps would pull to and fro.
    """
    with needs_network("Python's manual", "this Python has no pydoc_data, install a whole one"):
        from pydoc_data.topics import topics
    seen, stretches = set(), []
    for text in topics.values():
        stretches.append("")
        for paragraph in text.strip().split("\n\n"):
            if len(paragraph) >= 40 and paragraph in seen:
                continue
            seen.add(paragraph)
            if len(stretches[-1]) >= 1000:
                stretches.append("")
            stretches[-1] += paragraph + "\n\n"

    enc, shards = get_tokenizer("bytes"), []
    most = max(1, T - 1)
    excerpt = re.compile(rf"(?s).{{1,{most}}}(?=\s|\Z)|.{{1,{most}}}")  # ends before a space
    for split, part in (("train", [text for i, text in enumerate(stretches) if i % 10 != 9]),
                        ("val", stretches[9::10])):
        ids = [id for text in part for document in excerpt.findall(text)
               for id in (enc.eot_token, *enc.encode_ordinary(document))]
        tokens = np.array(ids, dtype=np.uint16)
        shards.append([Shard(f"pydoc_{split}", len(tokens), lambda tokens=tokens: tokens)])
    return shards


class TokenStream:
    """Shards end to end, epoch after epoch: one endless sequence of tokens, read at any position.

    seed: None keeps the order on disk; a number shuffles the shards, and the documents within
    each shard, anew every epoch. What stands at a position depends on nothing else.
    """

    CHUNK = 2**22  # tokens looked through at once: 8 MB

    def __init__(self, shards, vocab_size, seed=None):
        self.shards, self.vocab_size, self.seed = shards, vocab_size, seed
        self.n_tokens = sum(shard.n_tokens for shard in shards)  # of one epoch
        # the next batch is most often in the same shard
        self.documents = functools.lru_cache(maxsize=8)(self._documents)
        self.layout = functools.lru_cache(maxsize=8)(self._layout)
        self.looked_at = set()  # numbers of shards with a checksum that have been read

    def read(self, position, n):
        """The n tokens from `position` on: int64 (n,)."""
        out, filled = np.empty(n, dtype=np.int64), 0
        while filled < n:
            filled += self._read_shard(*self.place(position + filled), out[filled:])
        return out

    def place(self, position):
        """(epoch, number of the shard, place in it) of a position."""
        epoch, offset = divmod(position, self.n_tokens)
        for i in self._order(epoch):
            if offset < self.shards[i].n_tokens:
                return epoch, int(i), offset
            offset -= self.shards[i].n_tokens

    def _order(self, epoch):
        if self.seed is None:
            return range(len(self.shards))
        return np.random.default_rng((self.seed, epoch)).permutation(len(self.shards))

    def check(self, progress=False, shards=None):
        """Look at `shards` (None: those without a checksum, before a run starts). Raises UserError
        for an id past the vocabulary, at which the network would stop, and for a file that is not
        the one listed."""
        shards = shards or [shard for shard in self.shards if not shard.sha256]
        bar = tqdm(shards, desc="reading shards", leave=False, disable=None if progress else True)
        for shard in bar:
            if shard.sha256 and digest(shard.name)[1] != shard.sha256:
                raise UserError(f"{shard.name} is not the file that its manifest lists: fetch it, "
                                "or make the shards, again")
            for begin in range(0, shard.n_tokens, self.CHUNK):
                largest = shard.open()[begin : begin + self.CHUNK].max()
                if largest >= self.vocab_size:
                    raise UserError(f"{shard.name} holds the id {largest}, and the vocabulary ends "
                                    f"at {self.vocab_size - 1}: it is of another tokenizer")

    def _documents(self, i):
        """Where the documents of shard i begin: at its start, and at every end-of-text."""
        shard, starts = self.shards[i], [[0]]
        for begin in range(0, shard.n_tokens, self.CHUNK):
            tokens = shard.open()[begin : begin + self.CHUNK]
            starts.append(begin + np.flatnonzero(tokens == self.vocab_size - 1))
        return np.unique(np.concatenate(starts))

    def _layout(self, epoch, i):
        """The documents of shard i in this epoch's order: starts and lengths on disk, and where
        each ends when they are laid end to end. In the order on disk they lie so already, and
        count as one."""
        n_tokens = self.shards[i].n_tokens
        if self.seed is None:
            return [0], [n_tokens], np.array([n_tokens])
        starts = self.documents(i)
        lengths = np.diff(starts, append=n_tokens)
        order = np.random.default_rng((self.seed, epoch, i)).permutation(len(starts))
        return starts[order], lengths[order], np.cumsum(lengths[order])

    def _read_shard(self, epoch, i, offset, out):
        """Fill `out` from shard i. Returns how many tokens that were: it may end before."""
        if self.shards[i].sha256 and i not in self.looked_at:
            self.check(shards=[self.shards[i]])
            self.looked_at.add(i)
        starts, lengths, ends = self.layout(epoch, i)
        tokens, filled = self.shards[i].open(), 0
        document = int(np.searchsorted(ends, offset, side="right"))
        while filled < len(out) and document < len(ends):
            left = ends[document] - offset  # tokens of this document from here on
            stop = starts[document] + lengths[document]
            part = tokens[stop - left : min(stop, stop - left + len(out) - filled)]
            out[filled : filled + len(part)] = part  # to int64: torch has few uses for uint16
            filled, offset = filled + len(part), offset + len(part)
            document += 1
        return filled


class DataLoader:
    """Batches for this rank, cut from one TokenStream.

    `position` counts the tokens that all ranks together have taken, so it is the same on every
    rank; the tokens of an optimizer step are the same whatever B and the number of ranks are.
    """

    def __init__(self, stream, B, T, ddp_rank=0, ddp_world_size=1, position=0, pinned=False):
        self.stream, self.B, self.T = stream, B, T
        self.ddp_rank, self.ddp_world_size = ddp_rank, ddp_world_size
        self.position, self.pinned = position, pinned
        self.reader, self.ahead = ThreadPoolExecutor(1), {}  # position: the batch that begins there

    def next_batch(self):
        """x, y: (B, T) long, y one token ahead of x. Moves on by B T tokens for every rank."""
        batch = self.ahead.pop(self.position, None) or self.reader.submit(self.read, self.position)
        tokens = batch.result()
        self.position += self.B * self.T * self.ddp_world_size
        # while the caller computes with this batch, a thread reads the next one
        self.ahead = {self.position: self.reader.submit(self.read, self.position)}
        return tokens[:-1].view(self.B, self.T), tokens[1:].view(self.B, self.T)

    def read(self, position):
        """This rank's B T + 1 tokens from `position` on; pinned: where a GPU copies them itself."""
        n = self.B * self.T
        tokens = torch.from_numpy(self.stream.read(position + self.ddp_rank * n, n + 1))
        return tokens.pin_memory() if self.pinned else tokens


def load_data(config):
    """The run's training and validation TokenStreams. Raises UserError."""
    tokenizer = tokenizer_name(config.vocab_size)
    if config.data == "pydoc":
        if tokenizer != "bytes":
            raise UserError('--data pydoc is bytes: use the preset "laptop", or --vocab-size 257')
        train, val = python_manual(config.T)
    else:
        train, val = find_shards(config.data, tokenizer)
    train = TokenStream(train, config.vocab_size, config.seed if config.shuffle else None)
    val = TokenStream(val, config.vocab_size)
    if train.n_tokens <= config.total_batch_size:
        raise UserError(f"{config.data} holds {train.n_tokens} training tokens, less than one "
                        f"batch of {config.total_batch_size} and its last target: "
                        "choose a smaller --total-batch-size")
    if val.n_tokens <= config.T:
        raise UserError(f"{config.data} holds {val.n_tokens} validation tokens, less than one "
                        f"sequence of {config.T} and its last target: choose a smaller --T")
    return train, val


# -----------------------------------------------------------------------------
# optimizer and schedule


class MuonAdamW:
    """Two optimizers that are one to the loop, with one `state` by parameter."""

    def __init__(self, muon, adamw):
        self.parts, self.state = (muon, adamw), muon.state
        adamw.state = self.state

    @property
    def param_groups(self):
        return [group for part in self.parts for group in part.param_groups]

    def step(self):
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none=True):
        for part in self.parts:
            part.zero_grad(set_to_none)


def has_muon(name, p):
    """Muon is for matrices between two layers: not for embeddings, the vocabulary's among them."""
    return p.dim() == 2 and name.startswith("transformer.h.")


def configure_optimizer(model, weight_decay, learning_rate, kind="adamw", muon=torch.float32):
    """AdamW with betas (0.9, 0.95), eps 1e-8 (GPT-3 paper, appendix B), fused kernels.

    Decay pulls on what has two dimensions, matrices and embeddings; a bias or a norm's scale has
    no reason to be near zero. The shared matrix is one parameter, so it is counted once.

    kind "muon": Muon moves the blocks' matrices, and computes in the dtype `muon`.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if kind == "muon" and has_muon(name, p)]
    params = [p for name, p in named if not (kind == "muon" and has_muon(name, p))]
    groups = [
        {"params": [p for p in params if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = params[0].device.type in ("cuda", "cpu", "mps")  # the type: "cuda:3" has it as well
    adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), eps=1e-8, fused=fused)
    return adamw if kind == "adamw" else MuonAdamW(
        Muon(matrices, learning_rate, weight_decay, dtype=muon), adamw)


def try_out(config, model, device, saved):
    """What is decided by trying it on this machine: {what: choice}. A run that is resumed on the
    same machine keeps its choices, and with them the last bits of its numbers."""
    chosen, before = saved.get("chosen", {}), saved.get("config", {}).get("products")
    if (chosen.get("machine"), before) == (machine(device), config.products):
        return chosen
    chosen = {"machine": machine(device)}
    if config.optimizer == "muon":
        chosen["muon"] = str(quicker_dtype(device))[6:]
    if device.type == "cpu":
        chosen["products"] = (try_products(model, config.B * config.T)
                              if config.products == "auto" else choose_products(config.products))
    return chosen


def get_lr(step, max_lr, min_lr, warmup_steps, max_steps):
    """Learning rate of update `step`, counted from 0: linear warm-up, cosine, min_lr at the end.

    The first update is not wasted on a rate of 0. GPT-3 paper, appendix B.
    """
    if step < warmup_steps:
        return max_lr * (step + 1) / warmup_steps
    if step >= max_steps:
        return min_lr
    decay_ratio = (step - warmup_steps) / (max_steps - warmup_steps)  # 0 to 1
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * decay_ratio)) * (max_lr - min_lr)


def accumulate_gradients(model, loader, grad_accum_steps, ranks, dtype, scaler):
    """The gradient of one total batch, micro-step by micro-step. Returns its mean loss.

    The mean over the batch is the mean of the micro-batches' means: each is divided by their
    number, and DDP divides by the ranks' when it adds the gradients up.
    """
    loss_accum = torch.zeros((), device=ranks.device)
    for micro_step in range(grad_accum_steps):
        x, y = (t.to(ranks.device, non_blocking=loader.pinned) for t in loader.next_batch())
        if ranks.ddp:
            # DDP decides in the forward pass whether the backward pass will synchronise, so this
            # comes first; until the last micro-step every rank only adds up its own gradients
            model.require_backward_grad_sync = micro_step == grad_accum_steps - 1
        with autocast(ranks.device, dtype):
            _, loss = model(x, y)
        loss_accum += loss.detach() / grad_accum_steps
        scaler.scale(loss / grad_accum_steps).backward()
    return sum_over_ranks(loss_accum, ranks) / ranks.ddp_world_size


class Spikes:
    """How far losses and gradient norms stand above the last WINDOW of them (llm.c's window)."""

    WINDOW = 128
    MARK = 6.0  # standard deviations from which on the log says so

    def __init__(self, seen=None, skip_above=None):
        self.seen = {"loss": [], "norm": []} | (seen or {})
        self.skip_above = math.inf if skip_above is None else skip_above

    def look(self, **values):
        """Take in a step's values; z-scores of those that stand out are then in `self.high`."""
        self.high = {}
        for kind, value in values.items():
            window = self.seen[kind]
            if len(window) == self.WINDOW and (spread := np.std(window)) > 0:
                z = float((value - np.mean(window)) / spread)
                self.high |= {kind: z} if z > min(self.MARK, self.skip_above) else {}
            if math.isfinite(value):  # float16 overflows now and then
                self.seen[kind] = [*window, value][-self.WINDOW :]
        self.skipped = any(z > self.skip_above for z in self.high.values())


def find_fault(model, loader, began_at, grad_accum_steps, ranks, dtype):
    """Compute a batch again, each micro-batch by itself: whose loss or gradient is not finite?"""
    model = model.module if ranks.ddp else model  # no gradients from the others
    loader.position, first_bad = began_at, torch.zeros(ranks.ddp_world_size)
    for micro_step in range(grad_accum_steps):
        model.zero_grad()
        x, y = (t.to(ranks.device) for t in loader.next_batch())
        with autocast(ranks.device, dtype):
            _, loss = model(x, y)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), math.inf)
        if not (loss.isfinite() and norm.isfinite()):
            first_bad[ranks.ddp_rank] = micro_step + 1
            break
    for rank, number in enumerate(sum_over_ranks(first_bad, ranks).int().tolist()):
        if number:
            n = loader.B * loader.T
            position = began_at + ((number - 1) * ranks.ddp_world_size + rank) * n
            _, shard, offset = loader.stream.place(position)
            return (f"from the {n:,} tokens of rank {rank} at {position:,} (token {offset:,} of "
                    f"{loader.stream.shards[shard].name} in its order)")
    return "and not when computed again (the machine?)"


def train_step(model, loader, optimizer, scaler, lr, grad_accum_steps, ranks, dtype,
               spikes=None):
    """One update of the weights. Returns (loss before it, gradient norm before clipping at 1.0).

    Raises UserError, on all ranks, before the weights are touched if a number is not finite.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    began_at = loader.position
    loss = accumulate_gradients(model, loader, grad_accum_steps, ranks, dtype, scaler)
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    loss, norm = loss.item(), norm.item()  # .item() waits for the device: the gradient is there
    # a scaled loss may be too large for float16 at first: the scaler skips updates until it is not
    if not math.isfinite(loss) or not math.isfinite(norm) and scaler.get_scale() <= 1:
        fault = find_fault(model, loader, began_at, grad_accum_steps, ranks, dtype)
        raise UserError(f"loss {loss}, gradient norm {norm} at position {began_at:,} of the data, "
                        f"{fault}: this step did not touch the weights. Go on with --resume and a "
                        "lower --max-lr, or look at the batch")
    if spikes:
        spikes.look(loss=loss, norm=norm)
    if not (spikes and spikes.skipped):
        scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return loss, norm


# -----------------------------------------------------------------------------
# evaluation and sampling
#
# All of it runs the plain module, never the DDP one, and the compiled one for whole batches alone:
# the weights are the same, every length of input works, and nothing is compiled twice.


@contextlib.contextmanager
def evaluating(model):
    """Evaluation mode and no gradients inside, training mode after."""
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train()


def validation_rows(stream, n_tokens, T):
    """How many rows of T the first n_tokens make; a shorter stream is used to its last whole row.
    At least one."""
    return max(1, min(n_tokens, stream.n_tokens - 1) // T)


def validate(model, stream, n_tokens, B, T, ranks, dtype, stop=None, compiled=None):
    """Mean loss in nats over the first n_tokens of the stream, in rows of T: the same rows for
    every B and every number of ranks. compiled: the model compiled, for batches of B rows."""
    n_rows = validation_rows(stream, n_tokens, T)
    mine = range(n_rows * ranks.ddp_rank // ranks.ddp_world_size,
                 n_rows * (ranks.ddp_rank + 1) // ranks.ddp_world_size)
    total = torch.zeros((), device=ranks.device)
    bar = tqdm(range(mine.start, mine.stop, B), desc="validation", leave=False,
               disable=None if ranks.master_process else True)
    with evaluating(model), autocast(ranks.device, dtype):
        for row in bar:
            if stop and stop.asked:
                break
            rows = min(B, mine.stop - row)
            tokens = torch.from_numpy(stream.read(row * T, rows * T + 1)).to(ranks.device)
            forward = model if compiled is None or rows < B else compiled
            _, loss = forward(tokens[:-1].view(rows, T), tokens[1:].view(rows, T))
            total += loss * rows
    return sum_over_ranks(total, ranks).item() / n_rows


def load_hellaswag(config, enc, block_size, val):
    """The run's examples as tokens: a list of hellaswag.Encoded, empty for "none"."""
    if config.hellaswag == "none":
        return []
    if config.hellaswag == "heldout":
        n = min(val.n_tokens, 10**6)  # more than enough for any number of endings
        text = enc.decode(val.read(0, n).tolist()).replace("<|endoftext|>", "")
        examples = hellaswag.cut_examples(text, config.hellaswag_limit or 1000, seed=config.seed)
    else:
        examples = hellaswag.load_examples(config.hellaswag, config.hellaswag_limit)
    return hellaswag.encode(examples, enc, block_size)


def evaluate_hellaswag(model, encoded, ranks, dtype, stop=None):
    """acc_norm, its standard error. Every rank scores its share; sums are added, then divided."""
    with evaluating(model), autocast(ranks.device, dtype):
        counts = hellaswag.count_correct(model, encoded, ranks.device, ranks.ddp_rank,
                                         ranks.ddp_world_size, progress=ranks.master_process,
                                         stop=stop)
    _, acc_norm, n = sum_over_ranks(counts.float(), ranks).tolist()
    n = max(n, 1)  # stopped before the first
    return acc_norm / n, hellaswag.standard_error(acc_norm / n, n)


def sample(model, enc, prompt, n_samples, max_new_tokens, temperature, seed, device, dtype):
    """`n_samples` continuations of the prompt as text, each up to its first end-of-text.

    A generator of its own draws them: training's random numbers stay as they were.
    """
    generator = torch.Generator(device).manual_seed(seed)
    tokens = enc.encode_ordinary(prompt) or [enc.eot_token]  # no prompt: a document begins
    idx = torch.tensor([tokens] * n_samples, device=device)
    with evaluating(model), autocast(device, dtype):
        idx = model.generate(idx, max_new_tokens, temperature, generator=generator,
                             eot=enc.eot_token)
    texts = []
    for new in idx[:, len(tokens) :].tolist():
        end = new.index(enc.eot_token) if enc.eot_token in new else len(new)
        texts.append(prompt + enc.decode(new[:end]))
    return texts


# -----------------------------------------------------------------------------
# log and checkpoints


class Log:
    """log.txt: one `{step} {train|val|hella} {value}` a line; `# ` begins a line of JSON.

    The master process alone writes, and only appends. A run begins with its header line.
    """

    def __init__(self, path, master_process):
        self.path, self.master_process = Path(path), master_process
        self.error = None  # the first OSError: the loop asks for it between two steps

    def line(self, text):
        if self.master_process and not self.error:
            try:
                with open(self.path, "a", encoding="utf-8") as file:
                    file.write(text + "\n")
            except OSError as error:
                self.error = error

    def value(self, step, kind, value):
        self.line(f"{step} {kind} {value!r}")

    def note(self, **facts):
        self.line(f"# {json.dumps(facts)}")

    def size(self):
        """Bytes of the file, 0 where there is none. So many are then on the disk itself."""
        if not self.path.exists():
            return 0
        sync(self.path)
        return self.path.stat().st_size

    def cut(self, size):
        """Forget what a run that was killed wrote past the first `size` bytes. Returns whether
        there were as many."""
        if self.master_process and self.size() > size:
            os.truncate(self.path, size)
        return self.size() == size

    def whole_lines(self):
        """Bytes up to the end of the last whole line: a killed run's last one may be half."""
        return self.path.read_bytes().rfind(b"\n") + 1 if self.path.exists() else 0


def read_log(path, size=None):
    """{"train": (steps, values), "val": ..., "hella": ..., "run": header} of a log's last run.

    size: of the first so many bytes.
    """
    found = {"train": ([], []), "val": ([], []), "hella": ([], []), "run": {}}
    lines = Path(path).read_bytes()[:size].decode(errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            if line.startswith("# "):
                facts = json.loads(line[2:])
                if "config" in facts:  # a new run in the same folder
                    found = {kind: ([], []) for kind in ("train", "val", "hella")} | {"run": facts}
            elif not line.startswith("#"):
                step, kind, value = line.split()
                steps, values = found[kind]
                values.append(float(value))
                steps.append(int(step))
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}, line {number} is no line of a log: {line[:40]!r}") from None
    return found


# Scores to draw beside a run of GPT-2's tokenizer. GPT-2 124M: OpenAI's weights, evaluated as here
# (loss: the first 10,485,760 tokens of FineWeb-Edu's shard 0). GPT-3 124M: GPT-3 paper.
REFERENCES = {"val": {"GPT-2 124M, FineWeb-Edu": 3.2924},
              "hella": {"GPT-2 124M": 0.2955, "GPT-3 124M": 0.337}}


def config_of(log, path):
    """The configuration that a log's header holds. Raises UserError: curves need it."""
    config = log["run"].get("config")
    if not isinstance(config, dict) or not {"vocab_size", "hellaswag"} <= config.keys():
        raise UserError(f"{path} has no line with the run's configuration: name a whole log, or "
                        "remove it")
    return config


def draw_curves(log_path, axes):
    """Loss on the first of two matplotlib axes, HellaSwag on the second, with reference lines."""
    log = read_log(log_path)
    config, (steps, losses) = config_of(log, log_path), log["val"]
    axes[0].plot(*log["train"], label="train", alpha=0.4, linewidth=0.8)
    axes[0].plot(steps, losses, "o-", label="validation", markersize=3)
    axes[0].set(xlabel="step", ylabel="loss (nats per token)", title="Loss")
    axes[1].plot(*log["hella"], "o-", label="this run", markersize=3)
    axes[1].axhline(0.25, color="gray", linestyle=":", label="guessing")
    axes[1].set(xlabel="step", ylabel="accuracy", title="Four-way endings (acc_norm)")
    same_task = {"val": True, "hella": config["hellaswag"] != "heldout"}
    for ax, kind in zip(axes, ("val", "hella"), strict=True):
        if tokenizer_name(config["vocab_size"]) == "gpt2" and same_task[kind]:
            for number, (name, value) in enumerate(REFERENCES[kind].items()):
                ax.axhline(value, color=f"C{number + 2}", linestyle="--", label=name)
        ax.legend()
    later = [loss for loss in losses[1:] if math.isfinite(loss)]
    if later:  # the loss before training would flatten all that follows
        lowest = min(loss for loss in later + log["train"][1] if math.isfinite(loss))
        axes[0].set_ylim(0.95 * lowest, 1.1 * max(later))


def save_curves(log_path, png):
    """draw_curves into a PNG, without a screen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    draw_curves(log_path, figure.subplots(1, 2))
    with whole(png) as path:
        figure.savefig(path, format="png", dpi=120)


def save_checkpoint(folder, model, optimizer, scaler, step, position, config, rng=None,
                    writer=None, **facts):
    """A folder that transformers opens, with all that training needs besides; whole or absent.

    state.safetensors holds tensors, the optimizer's by the names of their parameters, and `rng`,
    random_states() of all ranks. state.json holds the rest, and `facts`. Neither can run code.

    writer: an executor that writes, as training goes on; only the copies are made at once, and a
    Future is returned. Without one, the folder is there on return.
    """
    names = {p: name for name, p in model.named_parameters()}
    tensors = {f"{kind}.{names[p]}": value.to("cpu", copy=True)
               for p, values in optimizer.state.items() for kind, value in values.items()}
    tensors |= rng or {"rng.cpu": torch.get_rng_state()[None]}
    weights = {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters()}
    facts |= dict(step=step, position=position, scaler=scaler.state_dict(), config=asdict(config))
    write = functools.partial(write_checkpoint, Path(folder), model, weights, tensors, facts)
    return writer.submit(write) if writer else write()


def write_checkpoint(folder, model, weights, tensors, facts):
    if not all(weight.isfinite().all() for weight in weights.values()):
        raise UserError(f"the weights of {folder.name} are not finite, and were not saved: go on "
                        "with --resume and a lower --max-lr")
    with whole(folder) as path:
        model.save_pretrained(path, weights)
        save_file(tensors, path / "state.safetensors")
        (path / "state.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        files = {file.name: digest(file) for file in sorted(path.iterdir())}
        (path / "manifest.json").write_text(json.dumps(files, indent=1) + "\n", encoding="utf-8")
    keep, keep_every = facts["config"]["keep"], facts["config"]["keep_every"]
    remove_old(folder.parent, facts["step"], keep, keep_every)


def remove_old(out_dir, step, keep, keep_every):
    """Delete checkpoints up to `step` but for the newest `keep`, and multiples of keep_every."""
    older = [(n, folder) for n, folder in find_checkpoints(out_dir) if n <= step]
    for number, folder in older[:-keep] if keep else []:
        if not keep_every or number % keep_every:
            aside = folder.with_name(f".{folder.name}.old")
            os.replace(folder, aside)  # in one act: half a folder never has the name of a whole one
            remove(aside)


def find_checkpoints(out_dir):
    """(step, folder) of every checkpoint in a run's folder, the oldest first."""
    named = ((re.fullmatch(r"checkpoint_([0-9]{6,})", path.name), path)
             for path in Path(out_dir).glob("checkpoint_*"))
    return sorted((int(match[1]), path) for match, path in named if match)


class Damaged(Exception):
    """A checkpoint that is not what was written. The message names the folder and the file."""


def read_json(path):
    """Raises Damaged for what is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is no JSON ({error})") from None


def read_facts(step, folder):
    """What state.json of a checkpoint holds. Raises Damaged if any file is not what was written."""
    try:
        listed = read_json(folder / "manifest.json")
        there = {path.name for path in folder.iterdir() if path.name[0] != "."} - {"manifest.json"}
        for name in sorted(listed.keys() | there):
            if name not in there:
                raise Damaged(f"{folder}: {name} is missing")
            if name not in listed:
                raise Damaged(f"{folder}: {name} is not in its manifest")
            if digest(folder / name) != listed[name]:
                raise Damaged(f"{folder}: {name} is not the file that was written")
        facts = read_json(folder / "state.json")
        kinds = dict(position=int, log_size=int, scaler=dict, config=dict, shards=list,
                     spikes=dict)
        if facts["step"] != step or any(type(facts[k]) is not kind for k, kind in kinds.items()):
            raise Damaged(f"{folder}: state.json is not of step {step}")
        for window in facts["spikes"].values():
            list(map(float, window))  # numbers, all of them
        return facts
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"{folder} ({type(error).__name__}: {error})") from None


def check_shapes(folder, model, kind="adamw"):
    """Raises Damaged for a checkpoint that lacks a tensor of the model, or has another shape."""
    wanted = {"model": {}, "state": {}}
    for name, p in model.named_parameters():
        wanted["model"][name] = list(p.t().shape if name.endswith(TRANSPOSED) else p.shape)
        averages = {"exp_avg": p.shape, "exp_avg_sq": p.shape, "step": ()}
        if kind == "muon" and has_muon(name, p):
            averages = {"momentum_buffer": p.shape}
        wanted["state"] |= {f"{what}.{name}": list(shape) for what, shape in averages.items()}
    for part, shapes in wanted.items():
        try:
            with safe_open(folder / f"{part}.safetensors", "pt") as file:
                found = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}
        except (OSError, SafetensorError) as error:
            raise Damaged(f"{folder}: {part}.safetensors ({error})") from None
        untouched = part == "state" and found.keys() <= {"rng.cpu", "rng.cuda"}
        for name, shape in shapes.items():
            if found.get(name) != shape and not untouched:  # saved before the first update
                raise Damaged(f"{folder}: {name} has the shape {found.get(name)}, not {shape}")


def read_tensors(folder):
    """All tensors of a checkpoint by name: the weights, and what state.safetensors holds."""
    return load_file(folder / "model.safetensors") | load_file(folder / "state.safetensors")


@torch.no_grad()
def restore(model, optimizer, scaler, facts, tensors, ranks):
    """Put back what save_checkpoint took."""
    for name, p in model.named_parameters():
        weight = tensors[name]
        p.copy_(weight.t() if name.endswith(TRANSPOSED) else weight)
        # before the first update there are none
        optimizer.state[p] = {kind: tensors[f"{kind}.{name}"]
                              for kind in ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")
                              if f"{kind}.{name}" in tensors}
    if facts["scaler"] and scaler.is_enabled():
        scaler.load_state_dict(facts["scaler"])
    # a rank more than there were keeps its own; clones: of a row of a larger tensor, torch reads
    # the wrong place
    if ranks.ddp_rank < len(tensors["rng.cpu"]):
        torch.set_rng_state(tensors["rng.cpu"][ranks.ddp_rank].cpu().clone())
    if ranks.device.type == "cuda" and ranks.ddp_rank < len(tensors.get("rng.cuda", ())):
        torch.cuda.set_rng_state(tensors["rng.cuda"][ranks.ddp_rank].cpu().clone(), ranks.device)


# Another value of one of these makes another network, or another order of the tokens. Every other
# setting may change where a run goes on; the log says which did.
HELD = ("n_layer", "n_head", "n_embd", "vocab_size", "T", "shuffle", "seed",
        "optimizer")  # whose averages are of another kind


def changed_settings(config, facts, shards):
    """{setting: [then, now]} between a checkpoint and this run. Raises UserError for a run that
    cannot go on from it."""
    then, now = {"optimizer": "adamw"} | facts["config"], asdict(config)
    changed = {name: [then.get(name), now[name]] for name in now
               if name not in ("out_dir", "resume") and then.get(name) != now[name]}
    for name in HELD:
        if name in changed:
            raise UserError(f"{config.out_dir} was begun with --{name.replace('_', '-')} "
                            f"{changed[name][0]}, not {changed[name][1]}: go on with that, or "
                            "choose another --out-dir")
    if facts["shards"] != shards:
        raise UserError(f"--data {config.data} does not hold the training shards that "
                        f"{config.out_dir} was begun with: name those, or choose another --out-dir")
    if facts["step"] > (config.max_steps or math.inf):
        raise UserError(f"--max-steps {config.max_steps}: {config.out_dir} is at step "
                        f"{facts['step']} already: give more, or choose another --out-dir")
    return changed


def check_room(config, model, first, max_steps):
    """Raises UserError if the disk has no room for the checkpoints to come: the weights and two
    averages each. With --keep, those that go make room; a new one is whole before they do."""
    size = 3 * sum(p.numel() * p.element_size() for p in model.parameters())
    every = config.checkpoint_every
    n = max_steps // every - first // every + (max_steps % every > 0)
    if config.keep:
        stay = config.keep_every or max_steps + 1
        there = len(find_checkpoints(config.out_dir)) if first else 0
        n = min(n, max(1, config.keep + 1 - there) + max_steps // stay - first // stay)
    free = shutil.disk_usage(config.out_dir).free
    if n * size > free:
        raise UserError(f"{config.out_dir}: {n} checkpoints of {size / 1e6:,.1f} MB are to come, "
                        f"and {free / 1e6:,.1f} MB are free: make room, or choose --keep 1, a "
                        "larger --checkpoint-every or another --out-dir")


def open_folder(config, lock, shards, model, max_steps):
    """The master's look at --out-dir: the facts of the newest checkpoint that is whole, or {}.

    Raises UserError. The system frees the lock when its process ends, however it ends.
    """
    check_writable(config.out_dir)
    log = Log(Path(config.out_dir) / "log.txt", master_process=True)
    if log.path.exists():
        read_log(log.path, log.whole_lines())  # not to be found wanting when all is trained
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another run is at work in {config.out_dir}: wait for its end, or choose "
                        "another --out-dir") from None
    for half in Path(config.out_dir).glob(".checkpoint_*"):  # killed while it was written
        remove(half)
    found = find_checkpoints(config.out_dir) if config.resume else []
    for step, folder in reversed(found):
        try:
            facts = read_facts(step, folder)
            changed = changed_settings(config, facts, shards)
            check_shapes(folder, model, config.optimizer)
            check_room(config, model, step, max_steps)
            if log.size() >= (size := facts["log_size"]):
                config_of(read_log(log.path, size), log.path)
                if log.path.read_bytes()[size - 1 : size] != b"\n":
                    raise UserError(f"{log.path} is not the log of {folder}: remove it, and the "
                                    "run goes on with a new one")
            return facts | {"folder": str(folder), "changed": changed}
        except Damaged as error:
            print(f"passed over {error}")
    check_room(config, model, 0, max_steps)
    clear_folder(config.out_dir)
    return {}


def clear_folder(out_dir):
    """Make room for a new run: checkpoints of an earlier one move to a folder earlier_N."""
    if earlier := find_checkpoints(out_dir):
        names = (Path(out_dir, f"earlier_{number}") for number in range(1, sys.maxsize))
        aside = next(path for path in names if not path.exists())
        aside.mkdir()
        for _, folder in earlier:
            os.replace(folder, aside / folder.name)
        print(f"set aside {len(earlier)} checkpoints of an earlier run: {aside}")


def wait_for(saving, log):
    """Until the last checkpoint is whole. Raises UserError if it or the log cannot be written."""
    error = saving and saving.exception() or log.error
    if isinstance(error, OSError):
        raise UserError(f"cannot write to {log.path.parent} ({error}): make room there, then go on "
                        "with --resume")
    if error:
        raise error


def random_states(ranks):
    """Of torch's random numbers: {"rng.cpu": (ranks, bytes) uint8, and "rng.cuda" on GPUs}, on the
    CPU. All ranks call it together."""
    states = {"rng.cpu": torch.get_rng_state()}
    if ranks.device.type == "cuda":
        states["rng.cuda"] = torch.cuda.get_rng_state(ranks.device)
    for name, state in states.items():
        every = torch.zeros(ranks.ddp_world_size, len(state), dtype=torch.uint8)
        every[ranks.ddp_rank] = state  # the other rows are the others'
        states[name] = sum_over_ranks(every, ranks).cpu()
    return states


# -----------------------------------------------------------------------------
# main


# Peak of dense bf16 (V100 and T4: fp16) products in TFLOPS, from the cards' data sheets. The first
# of these names that stands in the device's name is taken.
PEAK_TFLOPS = {
    "B200": 2250, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312,
    "A10G": 70, "A10": 125, "L40S": 362, "L40": 181, "L4": 121, "RTX 5090": 209.5,
    "RTX 4090": 165.2, "RTX 3090": 71, "V100": 125, "T4": 65,
}


def peak_flops(device, dtype):
    """Peak FLOPS of the card in 16 bits, or None: unknown card, CPU, fp32."""
    if device.type != "cuda" or dtype == torch.float32:
        return None
    name = torch.cuda.get_device_name(device)
    return next((1e12 * peak for card, peak in PEAK_TFLOPS.items()
                 if re.search(rf"\b{card}\b(?! (Ti|D|NVL|Laptop))", name)), None)


def flops_per_token(model, T):
    """Of training: 6 per weight (2 forward, 4 backward), and attention's 12 n_layer C T.

    PaLM paper, appendix B. Position embeddings are looked up, not multiplied.
    """
    c = model.config
    weights = model.num_params() - model.transformer.wpe.weight.numel()
    return 6 * weights + 12 * c.n_layer * c.n_embd * T


class Stop:
    """A wish to end: SIGTERM and SIGUSR1 (Slurm, machines that are taken away), Ctrl-C.

    The handler only remembers it, and the loop asks between two steps. A second Ctrl-C leaves at
    once. Windows has no SIGUSR1.
    """

    def __init__(self):
        self.asked = ""  # the signal's name
        names = [name for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)]
        self.before = {name: signal.signal(getattr(signal, name), self.remember) for name in names}

    def remember(self, number, frame):
        self.asked = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def end(self):
        """Leave the signals to whoever had them."""
        for name, handler in self.before.items():
            signal.signal(getattr(signal, name), handler)


def on_any_rank(flag, ranks):
    """Whether it is true on one rank at least: all get the same answer at the same step."""
    return sum_over_ranks(torch.tensor(float(bool(flag))), ranks).item() > 0


def slower(dtype, device):
    """Words for a device on which products in `dtype` take longer than in float32."""
    times = 1 if dtype == torch.float32 or device.type != "cpu" else times_slower(dtype, device)
    return f", {times:.1f} times as long as in float32 on this machine" if times > 1.1 else ""


def describe(config, model, ranks, dtype, compiled, train, val, n_examples, max_steps,
             grad_accum_steps, chosen=None):
    """What the run found and will do, as (name, text) rows."""
    c, device = model.config, ranks.device
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}"
    if device.type == "cpu":
        card += f", {torch.get_num_threads()} threads"
    total, missing = config.total_batch_size, -c.vocab_size % model.vocab_multiple
    n_val = validation_rows(val, config.val_tokens, config.T) * config.T
    return [
        ("device", f"{card}, {ranks.ddp_world_size} process{'es' * (ranks.ddp_world_size > 1)}"),
        ("precision", f"{str(dtype)[6:]} products"
                      + ", loss scaled" * (dtype == torch.float16)
                      + (", compiled" if compiled else ", not compiled") + slower(dtype, device)),
        ("network", f"{c.n_layer} layers, {c.n_head} heads, {c.n_embd} channels: "
                    f"{model.num_params():,} parameters"
                    + f", from {config.init_from}" * bool(config.init_from)),
        ("vocabulary", f"{tokenizer_name(c.vocab_size)}, {c.vocab_size:,} ids"
                       + (f", computed as {c.vocab_size + missing:,}" if missing else "")),
        ("training", f"{train.n_tokens:,} tokens in {len(train.shards)} shards of {config.data}, "
                     f"{'shuffled' if config.shuffle else 'in the order on disk'}"),
        ("validation", f"{n_val:,} tokens every {config.eval_every} steps"),
        ("HellaSwag", f"{n_examples:,} examples of {config.hellaswag}" if n_examples else "none"),
        ("steps", f"{max_steps:,} = {max_steps * total / train.n_tokens:.2f} epochs, "
                  f"{config.warmup_steps} of warm-up"
                  + " (the run ends in it)" * (config.warmup_steps >= max_steps)),
        ("batch", f"{total:,} tokens = {config.B} x {config.T} x {ranks.ddp_world_size} ranks "
                  f"x {grad_accum_steps} micro-steps"),
        ("folder", config.out_dir),
        *([("Muon", f"{chosen['muon']} products")] if "muon" in (chosen or {}) else []),
        *([("products", ", ".join(f"{what} {library}"
                                  for what, library in chosen["products"].items()))]
          if "products" in (chosen or {}) else []),
    ]


def evaluate(step, config, model, enc, val, encoded, log, ranks, dtype, stop, compiled=None):
    """Validation, HellaSwag and samples after `step` updates: printed and logged.

    Returns False if a wish to stop cut it short: all of it is to be done again, then.
    """
    t0 = time.perf_counter()
    val_loss = validate(model, val, config.val_tokens, config.B, config.T, ranks, dtype, stop,
                        compiled)
    if on_any_rank(stop.asked, ranks):
        return False
    if not math.isfinite(val_loss):
        raise UserError(f"validation loss {val_loss} after step {step}: go on with --resume and a "
                        "lower --max-lr")
    log.value(step, "val", val_loss)
    text = f"step {step:5d} | val {val_loss:.4f}"
    if encoded:
        acc, error = evaluate_hellaswag(model, encoded, ranks, dtype, stop)
        if on_any_rank(stop.asked, ranks):
            return False
        log.value(step, "hella", acc)
        log.note(step=step, hella_standard_error=error, hella_examples=len(encoded))
        text += f" | hella {acc:.4f} +- {error:.4f}"
    if not ranks.master_process:
        return True
    samples = []
    if config.sample_tokens:
        samples = sample(model, enc, config.prompt, 4, config.sample_tokens, config.temperature,
                         config.seed, ranks.device, dtype)
    print(f"{text} | evaluated in {time.perf_counter() - t0:.1f} s")
    for number, continuation in enumerate(samples):
        print(f"  sample {number}: {continuation!r}")
    return True


def init_model(config):
    """The network on the CPU: random weights from torch's seed, or those of --init-from."""
    if not config.init_from:
        return GPT(GPTConfig(config.T, config.vocab_size, config.n_layer, config.n_head,
                             config.n_embd))
    model = GPT.from_pretrained(config.init_from)
    if model.config.vocab_size != config.vocab_size:
        raise UserError(f"--init-from {config.init_from} has {model.config.vocab_size} ids, the "
                        f"run {config.vocab_size}: choose other weights, or --vocab-size "
                        f"{model.config.vocab_size} and data to match")
    if model.config.block_size < config.T:
        raise UserError(f"--T {config.T} is longer than the {model.config.block_size} positions "
                        f"of {config.init_from}: choose --T {model.config.block_size} or less")
    return model


def print_step(step, max_steps, loss, lr, norm, dt, total_batch_size, mfu, began, first=0):
    """One line; dt is the training step alone, ETA counts evaluation in."""
    eta = (time.perf_counter() - began) / (step + 1 - first) * (max_steps - step - 1)
    hours, minutes, seconds = int(eta // 3600), int(eta // 60 % 60), int(eta % 60)
    print(f"step {step:5d} | loss {loss:.4f} | lr {lr:.2e} | norm {norm:.2f} | "
          f"dt {1000 * dt:.0f} ms | {total_batch_size / dt:,.0f} tok/sec | MFU {mfu} | "
          f"ETA {hours}:{minutes:02d}:{seconds:02d}")


# What a profiler's names mean, the first that stands in one.
IN_WORDS = {
    "evaluate_function": "the backward pass's own work", "Optimizer": "the optimizer's loop",
    "linear_cross_entropy": "the loss, vocabulary included", "addmm": "matrix products with a bias",
    "aten::mm": "matrix products without a bias", "bmm": "matrix products, many small ones",
    "attention": "attention", "gelu": "GELU", "layer_norm": "LayerNorm", "softmax": "softmax",
    "nll_loss": "the loss of the targets", "embedding": "looking up embeddings",
    "adam": "AdamW's update", "foreach": "lengths and clipping of gradients", "norm": "lengths",
    "copy": "copies, also to other types", "aten::cat": "joining tensors", "pad": "padding",
    "scatter": "the targets' places in the logits", "index": "choosing rows", "exp": "exponentials",
    "fill": "filling memory", "zero": "filling memory", "add": "sums: stream and gradients",
    "mul": "products element by element", "div": "scaling", "c10d": "exchange between ranks",
    "sum": "sums over a dimension", "item": "waiting for the device", "Compiled": "compiled code",
}


class Profile:
    """Of n steps, after three that are left out: trace.json in `folder`, for chrome://tracing or
    ui.perfetto.dev, and a table of the ten costliest operations. n = 0: nothing."""

    def __init__(self, n, folder, device):
        self.n, self.folder, self.seen = n, Path(folder), 0
        self.kind = "device" if device.type == "cuda" else "cpu"

    def step(self):
        """One more step has been made."""
        self.seen += 1
        if self.n and self.seen == 3:  # caches are warm, compiled code is there
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would talk in between
            self.profiler = torch.profiler.profile()
            self.profiler.start()
        elif self.n and self.seen == 3 + self.n:
            self.profiler.stop()
            with whole(self.folder / "trace.json") as path:
                self.profiler.export_chrome_trace(str(path))
            self.table()

    def table(self):
        """Each operation by the time it took itself, without those it called."""
        events = self.profiler.key_averages()
        took = {event.key: getattr(event, f"self_{self.kind}_time_total") for event in events
                # a GPU's time stands in the operation that asked for it, and again in its kernel
                if event.device_type == torch.autograd.DeviceType.CPU
                and not event.is_user_annotation}
        print(f"profile of {self.n} steps, the whole of it in {self.folder / 'trace.json'}")
        for name in sorted(took, key=took.get, reverse=True)[:10]:
            words = next((words for part, words in IN_WORDS.items() if part in name), "")
            share, ms = took[name] / sum(took.values()), took[name] / self.n / 1000
            print(f"  {share:6.1%} {ms:9.1f} ms a step | {name[:48]:48s} | {words}")


def print_ending(config, checkpoint):
    """Where everything is, and what to do next."""
    score = "" if config.vocab_size != TOKENIZERS["gpt2"] else f"""
score it         python hellaswag.py --model {checkpoint}"""
    print(f"""
log              {Path(config.out_dir) / "log.txt"}
curves           {Path(config.out_dir) / "curves.png"}
weights          {checkpoint}
look closer      open play.ipynb
train it on      add --init-from {checkpoint} and another --out-dir{score}
in transformers  GPT2LMHeadModel.from_pretrained("{checkpoint}")""")


def main():
    keep_memory()
    config = parse_args(sys.argv[1:])
    ranks = init_ranks(config.device)
    device, master = ranks.device, ranks.master_process
    grad_accum_steps = check_config(config, ranks.ddp_world_size)

    # everything that can be wrong is found here, before anything is written
    train, val = load_data(config)
    torch.manual_seed(config.seed)
    with one_rank_first(ranks):
        if ranks.ddp_local_rank == 0:
            for stream in train, val:
                stream.check(progress=master)
        enc = get_tokenizer(tokenizer_name(config.vocab_size))
        raw_model = init_model(config)
        encoded = load_hellaswag(config, enc, raw_model.config.block_size, val)
    if config.init_from:  # the log shall hold the sizes that the network has
        sizes = asdict(raw_model.config)
        config = replace(config, **{name: sizes[name] for name in ("n_layer", "n_head", "n_embd")})
    max_steps = config.max_steps or (train.n_tokens - 1) // config.total_batch_size
    shards = [[Path(shard.name).name, shard.n_tokens] for shard in train.shards]
    lock = FileLock(Path(config.out_dir) / ".lock")  # the system frees it, however the process ends
    saved = on_master(ranks, functools.partial(open_folder, config, lock, shards, raw_model,
                                               max_steps))

    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 where fp32 products remain
        raw_model.vocab_multiple = 64
    dtype = choose_dtype(config.dtype, device)
    raw_model.to(device)
    raw_model.loss_rows = config.loss_rows
    raw_model.recompute = config.recompute
    model = compile_model(raw_model, device, config.compile, master)
    compiled = None if model is raw_model else model
    if ranks.ddp:
        model = DDP(model, device_ids=[device.index] if device.type == "cuda" else None)
    # what a trial decides on this machine stays the run's
    chosen = on_master(ranks, functools.partial(try_out, config, raw_model, device, saved))
    if device.type == "cpu":
        quicken(raw_model, chosen["products"])
    optimizer = configure_optimizer(raw_model, config.weight_decay, config.max_lr, config.optimizer,
                                    getattr(torch, chosen.get("muon", "float32")))
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    loader = DataLoader(train, config.B, config.T, ranks.ddp_rank, ranks.ddp_world_size,
                        pinned=device.type == "cuda")
    first, changed = saved.get("step", 0), saved.get("changed", {})
    if saved:
        checkpoint = Path(saved["folder"])
        tensors = share(read_tensors(checkpoint) if master else {}, ranks)
        restore(raw_model, optimizer, scaler, saved, tensors, ranks)
        loader.position = saved["position"]
    flops = flops_per_token(raw_model, config.T) * config.total_batch_size / ranks.ddp_world_size
    peak = peak_flops(device, dtype)

    log = Log(Path(config.out_dir) / "log.txt", master)
    goes_on = bool(saved) and log.cut(saved["log_size"])  # else a header begins a new run
    if not goes_on:
        log.cut(log.whole_lines())
    log.note(**({"resumed": first, "changed": changed} if goes_on else {"config": asdict(config)}),
             ranks=ranks.ddp_world_size, device=str(device),
             parameters=raw_model.num_params(), max_steps=max_steps, torch=torch.__version__,
             python=platform.python_version(), system=platform.platform())
    if master:
        for name, text in describe(config, raw_model, ranks, dtype, compiled is not None, train,
                                   val, len(encoded), max_steps, grad_accum_steps, chosen):
            print(f"{name:10s} | {text}")
        if saved:
            print(f"resumed    | at step {first:,} of {checkpoint}"
                  + "".join(f", {name} {a} -> {b}" for name, (a, b) in changed.items()))
            before = saved.get("chosen", {}).get("machine", chosen["machine"])
            if before != chosen["machine"]:
                print(f"machine    | {chosen['machine']} now, {before} before: the last bits of "
                      "results may differ")

    writer, saving = ThreadPoolExecutor(1), None  # one thread: one checkpoint at a time
    stop, evaluated = Stop(), saved.get("evaluated")
    spikes = Spikes(saved.get("spikes"), config.skip_spikes)
    profile = Profile(config.profile if master else 0, config.out_dir, device)
    began = time.perf_counter()
    for step in range(first, max_steps + 1):  # `step` updates have been made
        last_step = step == max_steps
        failed = log.error or saving and saving.done() and saving.exception()
        stopping = on_any_rank(stop.asked or failed, ranks)
        if stopping:
            on_master(ranks, functools.partial(wait_for, saving, log))
        evaluates = (step % config.eval_every == 0 or last_step) and step != evaluated
        if evaluates and not stopping:
            size = log.size()
            if evaluate(step, config, raw_model, enc, val, encoded, log, ranks, dtype, stop,
                        compiled):
                evaluated = step
            else:  # all of it again, when the run goes on
                log.cut(size)
                stopping = True
        saves = stopping or last_step or step and step % config.checkpoint_every == 0
        if saves and step != saved.get("step"):
            rng = random_states(ranks)
            checkpoint = Path(config.out_dir) / f"checkpoint_{step:06d}"
            on_master(ranks, functools.partial(wait_for, saving, log))  # one at a time
            if master:
                saving = save_checkpoint(
                    checkpoint, raw_model, optimizer, scaler, step, loader.position, config, rng,
                    writer, log_size=log.size(), shards=shards, evaluated=evaluated,
                    chosen=chosen, spikes=dict(spikes.seen))  # a copy, as all that is written later
        if last_step or stopping:
            break

        t0 = time.perf_counter()
        lr = get_lr(step, config.max_lr, config.final_lr, config.warmup_steps, max_steps)
        loss, norm = train_step(model, loader, optimizer, scaler, lr, grad_accum_steps, ranks,
                                dtype, spikes)
        dt = time.perf_counter() - t0
        log.value(step, "train", loss)
        if spikes.high:
            log.note(step=step, spike=spikes.high, skipped=spikes.skipped)
        if master and (step % config.print_every == 0 or step == max_steps - 1):
            mfu = f"{flops / dt / peak:.1%}" if peak else "unknown"
            print_step(step, max_steps, loss, lr, norm, dt, config.total_batch_size, mfu, began,
                       first)
        profile.step()

    on_master(ranks, functools.partial(wait_for, saving, log))
    writer.shutdown()
    stop.end()
    if master and stopping:
        print(f"stopped by {stop.asked or 'a signal to another rank'} at step {step}: the same "
              f"command with --resume goes on from {checkpoint}")
    if not stopping:
        on_master(ranks, functools.partial(save_curves, log.path,
                                           Path(config.out_dir) / "curves.png"))
    if master and not stopping:
        print_ending(config, checkpoint)
    if ranks.ddp:
        dist.barrier()  # the master has saved: torchrun ends everyone when one process ends badly
        del model  # DDP holds on to the process group
        dist.destroy_process_group()
    lock.release()  # torch may hold on to main()'s names until Python collects its garbage


if __name__ == "__main__":
    run(main)
