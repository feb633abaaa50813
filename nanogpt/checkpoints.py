"""A run's state: checkpoints, complete or absent, and which of them to resume from."""

import contextlib
import errno
import functools
import json
import math
import os
import re
import shutil
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file

from nanogpt.card import FOR_OTHERS, write_for_others
from nanogpt.common import UserError
from nanogpt.disk import check_writable, digest, discard, save_file, unused, whole
from nanogpt.drift import Watch, check_settings
from nanogpt.fsdp import divide_like, trained
from nanogpt.presets import to_toml
from nanogpt.ranks import on_master, share, sort_buckets, sum_over_ranks
from nanogpt.report import Log, config_of, read_log
from nanogpt.sharding import collect, hand_out
from nanogpt.weights import TRANSPOSED

FILES = ("config.json", "model.safetensors", "state.json", "state.safetensors")
OURS = re.compile(r"(config|state|manifest)\.json|(model|state)\.safetensors"
                  r"|\.(config|model|curves)\.\w+\.tmp|\.tmp\w{6}")  # .tmp: half-written


def ours(path):
    """Whether a checkpoint's file is ours to delete. People write files named like those for other
    tools: such a one must be as the manifest lists it, or lie in a half-written folder."""
    if OURS.fullmatch(path.name) or path.parent.suffix == ".tmp" and path.name in FOR_OTHERS:
        return True
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        return json.loads((path.parent / "manifest.json").read_bytes())[path.name] == digest(path)


def save_checkpoint(folder, t, config, rng=None, writer=None, **facts):
    """Write a folder that transformers opens, with all else that the Training `t` needs to resume;
    complete, or not at all. The master writes, but all ranks must call it together.

    state.safetensors holds tensors, the optimizer's by the names of their parameters, and `rng`,
    random_states() of all ranks. state.json holds the rest, and `facts`. Neither can run code.

    writer: an executor that writes in the background. Then only the copies are made at once, and a
    Future is returned. Without it, the folder is complete on return.
    """
    weights, tensors = collect(t)
    if not t.ranks.master_process:
        return None
    tensors |= rng or {"rng.cpu": torch.get_rng_state()[None]}
    facts |= dict(step=t.step, position=t.loader.position, scaler=t.scaler.state_dict(),
                  config=asdict(config), evaluated=t.evaluated, best=t.best)
    facts |= dict(spikes=dict(t.spikes.seen), chosen=t.chosen)  # seen is copied: written later
    write = functools.partial(write_checkpoint, Path(folder), t.net, weights, tensors, facts,
                              t.loader.stream)
    return writer.submit(write) if writer else write()


def write_checkpoint(folder, net, weights, tensors, facts, stream):
    if not all(weight.isfinite().all() for weight in weights.values()):
        raise UserError(f"the weights of {folder.name} are not finite, and were not saved: go on "
                        "with --resume and a lower --max-lr")
    with whole(folder, ours) as path:
        net.save_pretrained(path, weights, getattr(stream, "enc", None))
        if getattr(stream, "enc", None):  # tokens in memory may belong to no text
            write_for_others(path, net, stream, facts, folder.parent / "log.txt")
        save_file(tensors, path / "state.safetensors")
        (path / "state.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        files = {file.name: digest(file) for file in sorted(path.iterdir())}
        (path / "manifest.json").write_text(json.dumps(files, indent=1) + "\n", encoding="utf-8")
    config, best = facts["config"], facts["best"] and facts["best"][1]
    remove_old(folder.parent, facts["step"], config["keep"], config["keep_every"],
               best if config["keep_best"] else None)


def remove_old(out_dir, step, keep, keep_every, best=None):
    """Delete checkpoints up to `step`, except the newest `keep`, multiples of keep_every, and the
    one of the step `best`."""
    older = [(n, folder) for n, folder in find_checkpoints(out_dir) if n <= step]
    for number, folder in older[:-keep] if keep else []:
        if (not keep_every or number % keep_every) and number != best:
            discard(folder, ours)


def find_checkpoints(out_dir):
    """(step, folder) of every checkpoint in a run's folder, the oldest first."""
    named = ((re.fullmatch(r"checkpoint_([0-9]{6,})", path.name), path)
             for path in Path(out_dir).iterdir())  # glob would find none if it may not look
    return sorted((int(match[1]), path) for match, path in named if match)


class Damaged(Exception):
    """A checkpoint that differs from what was saved. The message names the folder and the file."""


def read_json(path):
    """The contents of a JSON file. Raises Damaged if it is not valid JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is not valid JSON ({error})") from None


def read_facts(step, folder):
    """A checkpoint's state.json. Raises Damaged if a file that training needs is missing or
    changed, UserError if it may be whole, but cannot be read now. Other files do not count."""
    try:
        listed = read_json(folder / "manifest.json")
        there = {path.name for path in folder.iterdir()}
        for name in FILES:
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
        if type(facts.setdefault("chosen", {})) is not dict:  # older checkpoints have none
            raise Damaged(f"{folder}: state.json says chosen = {facts['chosen']}")
        for window in facts["spikes"].values():
            if not all(map(math.isfinite, window)):  # raises unless all of them are numbers
                raise Damaged(f"{folder}: state.json has losses or norms that are not finite")
        return facts
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        lost = None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO  # None: no OSError
        if getattr(error, "errno", None) in lost:
            raise Damaged(f"{folder} ({type(error).__name__}: {error})") from None
        raise UserError(f"cannot read {folder} ({error.strerror}): fix that, or move it "
                        "elsewhere") from None


def read_tensors(folder):
    """All tensors of a checkpoint by name: weights, optimizer state, random states."""
    folder = Path(folder)
    try:
        return load_file(folder / "model.safetensors") | load_file(folder / "state.safetensors")
    except (OSError, SafetensorError) as error:  # somebody moved it a moment ago
        raise UserError(f"cannot read {folder} ({error}): start again with --resume") from None


@torch.no_grad()
def restore(t, facts, tensors):
    """Load a checkpoint's facts and the master's tensors into `t`. UserError: they do not fit."""
    if facts["step"]:
        sort_buckets(t)
    t.loader.position, t.step = facts["position"], facts["step"]
    if t.step > t.max_steps:
        raise UserError(f"--max-steps {t.max_steps}: {facts['folder']} is at step {t.step}: give "
                        "more, or choose another --out-dir")
    t.evaluated = facts.get("evaluated")
    t.best = facts.get("best")
    for name, p in trained(t).named_parameters():
        weight, state = hand_out(tensors, name, p, t)
        weight = weight.t() if name.endswith(TRANSPOSED) else weight
        if weight.shape != p.shape:  # begun from weights with more positions than --T
            raise UserError(f"{facts['folder']}: {name} is {tuple(weight.shape)}, not "
                            f"{tuple(p.shape)}: give the same --init-from as before")
        p.copy_(divide_like(p, weight))
        t.optimizer.state[p] = state  # empty before the first update
    if facts["scaler"] and t.scaler.is_enabled():
        t.scaler.load_state_dict(facts["scaler"])
    # a rank without a row keeps its own state. clone: given a row of a larger tensor, torch reads
    # from the wrong place
    rank, device = t.ranks.ddp_rank, t.ranks.device
    tensors = share({name: tensors[name] for name in tensors if name[:4] == "rng."}, t.ranks)
    if rank < len(tensors["rng.cpu"]):
        torch.set_rng_state(tensors["rng.cpu"][rank].cpu().clone())
    if device.type == "cuda" and rank < len(tensors.get("rng.cuda", ())):
        torch.cuda.set_rng_state(tensors["rng.cuda"][rank].cpu().clone(), device)


def random_states(ranks):
    """The states of torch's random generators, on the CPU: {"rng.cpu": (ranks, bytes) uint8, on
    GPUs also "rng.cuda"}. All ranks must call it together."""
    states = {"rng.cpu": torch.get_rng_state()}
    if ranks.device.type == "cuda":
        states["rng.cuda"] = torch.cuda.get_rng_state(ranks.device)
    for name, state in states.items():
        every = torch.zeros(ranks.ddp_world_size, len(state), dtype=torch.uint8)
        every[ranks.ddp_rank] = state  # the other ranks fill the other rows
        states[name] = sum_over_ranks(every, ranks).cpu()
    return states


# Settings that a resumed run may not change: they make another network or another order of the
# tokens. All others may change, and the log says which did.
HELD = ("n_layer", "n_head", "n_embd", "vocab_size", "T", "shuffle", "shuffle_rows", "seed",
        "optimizer")  # Muon's averages are not AdamW's


def changed_settings(config, facts, shards):
    """{setting: [then, now]} where they differ. Raises UserError if this run cannot resume."""
    then = {f.name: f.default for f in fields(config)} | facts["config"]  # an older one lacks some
    now = asdict(config)
    changed = {name: [then.get(name), now[name]] for name in now
               if name not in ("out_dir", "resume") and then.get(name) != now[name]}
    for name in HELD:
        if name in changed:
            raise UserError(f"{config.out_dir} was begun with --{name.replace('_', '-')} "
                            f"{changed[name][0]}, not {changed[name][1]}: give that value, or "
                            "choose another --out-dir")
    if len(facts["shards"]) != len(shards) or any(  # checksums count if both have one
            a[: len(b)] != b[: len(a)] for a, b in zip(facts["shards"], shards, strict=True)):
        raise UserError(f"--data {config.data} does not hold the training shards that "
                        f"{config.out_dir} was begun with: name those, or choose another --out-dir")
    return changed


def check_room(config, model, first, max_steps):
    """Raises UserError if the disk has no room for the checkpoints after step `first`, each three
    times the weights. With --keep N, at most N + 1 and the milestones of --keep-every."""
    size = 3 * sum(p.numel() * p.element_size() for p in model.parameters())
    every = config.checkpoint_every
    n = max_steps // every - first // every + (max_steps % every > 0)
    if config.keep:
        stay = config.keep_every or max_steps + 1
        there = len(find_checkpoints(config.out_dir)) if first else 0
        n = min(n, max(1, config.keep + 1 - there) + max_steps // stay - first // stay)
        n += config.keep_best
    free = shutil.disk_usage(config.out_dir).free
    if n * size > free:
        raise UserError(f"{config.out_dir}: the run will write {n} checkpoints of {size / 1e6:,.1f}"
                        f" MB, but {free / 1e6:,.1f} MB are free: make room, or choose --keep 1, a "
                        "larger --checkpoint-every or another --out-dir")


def find_whole(config, shards, log, net, max_steps):
    """The newest undamaged checkpoint's facts, or {}. Raises UserError if it may not resume."""
    if log.path.exists():
        read_log(log.path, log.whole_lines())  # if it cannot be read, stop now, not at the end
    for step, folder in reversed(find_checkpoints(config.out_dir) if config.resume else []):
        try:
            facts = read_facts(step, folder)
            changed = changed_settings(config, facts, shards)
            check_room(config, net, step, max_steps)
            if log.size() >= (size := facts["log_size"]):
                config_of(read_log(log.path, size), log.path)
                if log.path.read_bytes()[size - 1 : size] != b"\n":
                    raise UserError(f"{log.path} is not the log of {folder}: remove or replace it")
            return facts | {"folder": str(folder), "changed": changed}
        except Damaged as error:
            print(f"passed over {error}")
    check_room(config, net, 0, max_steps)
    return {}


def clear_folder(out_dir):
    """Make room for a new run: checkpoints of an earlier one move to a folder earlier_N."""
    if earlier := find_checkpoints(out_dir):
        aside = unused(out_dir, "earlier")
        aside.mkdir()
        for _, folder in earlier:
            if folder.is_symlink():  # to another disk, perhaps by a path that begins here
                link = folder.with_name(f".{folder.name}.tmp")
                link.symlink_to(folder.resolve(), target_is_directory=True)
                os.replace(link, folder)
            os.replace(folder, aside / folder.name)
        print(f"set aside {len(earlier)} checkpoints of an earlier run: {aside}")


def check_newest(out_dir, ranks):
    """Raises UserError on all ranks if a machine has a newer checkpoint than rank 0's: each writes
    to its own disk, and rank 0 has moved."""
    mine = torch.zeros(ranks.ddp_world_size, dtype=torch.int64)
    with contextlib.suppress(OSError, IndexError):  # no folder, or no checkpoint
        mine[ranks.ddp_rank] = find_checkpoints(out_dir)[-1][0]
    steps = sum_over_ranks(mine, ranks).tolist()
    if max(steps) > steps[0]:
        raise UserError(f"rank {steps.index(max(steps))}'s machine has step {max(steps)} in "
                        f"{out_dir}, and rank 0's machine has not: put --out-dir on a disk that "
                        "all machines share, or copy the folder to all of them")


class RunFolder:
    """A run's --out-dir: log, checkpoints, and a lock that keeps other runs out inside `with`."""

    def __init__(self, config, ranks):
        self.config, self.ranks = config, ranks
        self.log = Log(Path(config.out_dir, "log.txt"), ranks.master_process, config.track)
        self.newest = None  # folder of the checkpoint that was last saved or resumed from
        self.shards = []  # [name, tokens, checksum if known] of each: a resume must find the same
        self.lock = FileLock(Path(config.out_dir) / ".lock")
        self.writer, self.saving = ThreadPoolExecutor(1), None  # one thread: one at a time
        self.resumed = {}  # the checkpoint's facts, until the settings are written again
        self.watch = Watch(config.check_ranks, ranks)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self.writer.shutdown()
        self.log.tracker.attempt(self.log.tracker.finish)
        if kind and self.saving and self.saving.exception():  # reported besides the run's error
            print(f"error: the last checkpoint: {self.saving.exception()}", file=sys.stderr)
        with contextlib.suppress(OSError):  # the system does so too, however the process ends
            self.lock.release()

    def open(self, stream, net, max_steps):
        """The facts of the checkpoint to resume from, on every rank, or {}. stream: the training
        tokens. Raises UserError."""
        check_settings(self.config, stream, self.ranks)
        self.shards = [[Path(shard.name).name, shard.n_tokens, *filter(None, [shard.sha256])]
                       for shard in stream.shards]
        if self.config.resume:
            check_newest(self.config.out_dir, self.ranks)
        saved = on_master(self.ranks, functools.partial(self.look, net, max_steps))
        self.newest = Path(saved["folder"]) if saved else None
        return saved

    def look(self, net, max_steps):
        """The master's part of open()."""
        check_writable(self.config.out_dir, "log.txt", "curves.png", "trace.json", "config.toml")
        self.take_lock()
        for half in Path(self.config.out_dir).glob(".checkpoint_*"):  # killed while it was written
            if re.fullmatch(r"\.checkpoint_[0-9]{6,}\.(tmp|old)", half.name):
                discard(half, ours)
        saved = self.resumed = find_whole(self.config, self.shards, self.log, net, max_steps)
        if not saved:
            clear_folder(self.config.out_dir)
            self.write_settings({})
        return saved

    def write_settings(self, saved):
        """Write config.toml, but not over somebody else's, with notes of what a resume changed."""
        path = Path(self.config.out_dir) / "config.toml"
        head = f"# written by: python train_gpt2.py {path}   "
        old = path.read_text(encoding="utf-8", errors="replace") if path.exists() else head
        if not old.startswith(head[:14]):
            print(f"{path} is not this program's, and stays: log.txt has the settings")
            return
        notes = re.findall("(?m)^# until step .*", old) if saved else []
        notes += [f"# until step {saved['step']}: {name} = {json.dumps(then)}"
                  for name, (then, _) in saved.get("changed", {}).items()]
        head += "(it had other settings before:)" if notes else "(which gives the same run again)"
        with whole(path) as new:
            new.write_bytes("\n".join([head, *dict.fromkeys(notes), to_toml(self.config)]).encode())

    def take_lock(self):
        """Keep other runs out of the folder, if its disk has locks. Raises UserError."""
        out_dir, lock = self.config.out_dir, Path(self.lock.lock_file)
        missing = errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP
        warnings.filterwarnings("ignore", "flock not supported")  # a file with the owner must do
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            ended = f", or remove {lock} if it has ended" if lock.stat().st_size else ""
            raise UserError(f"another run is at work in {out_dir}: wait for its end, or choose "
                            f"another --out-dir{ended}") from None
        except (OSError, NotImplementedError) as error:
            if getattr(error, "errno", errno.ENOSYS) not in missing:
                raise UserError(f"cannot lock {lock} ({error.strerror}): choose another --out-dir"
                                ) from None
            print(f"the disk of {out_dir} has no locks: start no second run there")

    def save(self, t):
        """Save a checkpoint of `t` in the background, unless this step already has one."""
        folder = Path(self.config.out_dir) / f"checkpoint_{t.step:06d}"
        if folder == self.newest:
            return
        self.watch.look(t, saving=True)
        rng = random_states(self.ranks)
        log_size = self.wait()  # one at a time
        self.saving = save_checkpoint(folder, t, self.config, rng, self.writer, log_size=log_size,
                                      shards=self.shards)
        self.newest = folder

    def failed(self):
        """Whether writing the log or the last checkpoint failed. Only the master can know."""
        return self.log.error or self.saving and self.saving.done() and self.saving.exception()

    def wait(self):
        """Wait until the last checkpoint is complete. Returns the log's size in bytes. Raises
        UserError on every rank if the log or the checkpoint could not be written."""
        return on_master(self.ranks, self.finish)

    def finish(self):
        """The master's part of wait()."""
        saving, self.saving = self.saving, None
        try:
            if saving:
                saving.result()
            if self.log.error:
                raise self.log.error
            if self.resumed:  # nothing has refused it: the first save comes
                self.resumed = self.write_settings(self.resumed)
            return self.log.size()
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise UserError(f"cannot write to {self.config.out_dir} ({error}): "
                            + ("make room there" if full else "fix that")
                            + ", then go on with --resume") from None
