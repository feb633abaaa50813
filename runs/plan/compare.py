"""What --plan says, and what a run then needs: memory and time of 24 networks on a CPU.

    python runs/plan/compare.py > runs/plan/this-cpu.txt
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
        python runs/plan/compare.py > runs/plan/avx2.txt

Each network is planned and trained by processes with one thread each; of one rank, both at the
same time, so that other work on the machine slows both alike. Three figures:
tensors (calculated, against the most that torch's allocator had given out in real steps and a
validation), the process (measured by the plan, against the run's largest resident size), seconds
of a step (measured by the plan, against the median of the run's). Numbers after the command choose
rows; --cpu-time compares CPU seconds in rows of one rank, for a busy machine; --no-tensors leaves
the first figure out, which is the same on every CPU.
"""

import itertools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import weakref
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
# layers, heads, channels, ids, steps of the run
SIZES = {"0.8M": (4, 4, 128, 257, 40), "10M": (6, 6, 384, 257, 14),
         "124M": (12, 12, 768, 50257, 7)}
# size, B, T, micro-steps, ranks, more flags
CASES = [
    ("0.8M", 12, 64, 1, 1, ""), ("0.8M", 4, 256, 2, 1, ""), ("0.8M", 2, 1024, 1, 1, ""),
    ("0.8M", 12, 64, 4, 1, "--recompute"), ("0.8M", 4, 256, 2, 1, "--loss-rows 128"),
    ("0.8M", 8, 256, 3, 1, "--optimizer muon"), ("0.8M", 4, 256, 1, 2, "--shard optimizer"),
    ("0.8M", 4, 256, 2, 2, "--shard model"),
    ("10M", 16, 64, 2, 1, ""), ("10M", 4, 256, 1, 1, ""), ("10M", 2, 1024, 2, 1, ""),
    ("10M", 4, 256, 1, 1, "--recompute"), ("10M", 2, 1024, 1, 1, "--loss-rows 256"),
    ("10M", 8, 256, 1, 1, "--optimizer muon"), ("10M", 4, 256, 1, 2, "--shard optimizer"),
    ("10M", 2, 256, 2, 2, "--shard model"),
    ("124M", 1, 64, 2, 1, ""), ("124M", 4, 64, 1, 1, ""), ("124M", 2, 256, 1, 1, ""),
    ("124M", 1, 1024, 1, 1, ""), ("124M", 2, 256, 1, 1, "--recompute"),
    ("124M", 2, 256, 1, 1, "--loss-rows 128"), ("124M", 1, 64, 1, 2, "--shard optimizer"),
    ("124M", 1, 64, 1, 2, "--shard model"),
]


def write_shards(folder, vocab_size, tokenizer):
    folder.mkdir()
    tokens = (np.random.default_rng(0).zipf(1.2, 200_000) % vocab_size).astype(np.uint16)
    listed = []
    for split, part in ("val", tokens[:3000]), ("train", tokens[3000:]):
        np.save(folder / f"x_{split}_000000.npy", part)
        listed.append({"file": f"x_{split}_000000.npy", "tokens": len(part), "documents": 1})
    facts = {"tokenizer": tokenizer, "vocab_size": vocab_size, "shards": listed}
    (folder / "manifest.json").write_text(json.dumps(facts), encoding="utf-8")


def start(ranks, command):
    """`ranks` processes and their output, for the next one."""
    env, port = {**os.environ, "OMP_NUM_THREADS": "1"}, 20_000 + os.getpid() % 10_000
    started = []
    for rank in range(ranks):
        if ranks > 1:
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank),
                    "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        out = tempfile.TemporaryFile("w+")
        started.append((subprocess.Popen([sys.executable, *command], env=env, stdout=out,
                                         stderr=subprocess.STDOUT), out))
    return started


def finish(started):
    """Rank 0's text, and its largest resident size in bytes."""
    found = []
    for process, out in started:
        _, status, used = os.wait4(process.pid, 0)
        out.seek(0)
        found.append((out.read(), 1024 * used.ru_maxrss))
        if status:
            sys.exit(f"{process.args} ended with {status}:\n{found[-1][0]}")
    return found[0]


CPU_TIME = """import runpy, sys, time
time.perf_counter = time.process_time
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")"""


def compare(case, tmp, cpu_time, counting):
    """A row of the table: (planned, found) for tensors, process and seconds."""
    size, B, T, micro_steps, ranks, more = case
    L, nh, C, V, steps = SIZES[size]
    flags = ["--n-layer", L, "--n-head", nh, "--n-embd", C, "--B", B, "--T", T, "--device", "cpu",
             "--total-batch-size", B * T * micro_steps * ranks, "--data", tmp / str(V),
             "--hellaswag", "none", "--sample-tokens", 0, "--val-tokens", 2000, "--warmup-steps", 1,
             "--max-steps", steps, "--out-dir", tmp / "run", *more.split()]
    flags = list(map(str, flags))
    program = ["-c", CPU_TIME] if cpu_time and ranks == 1 else []
    program.append(str(ROOT / "train_gpt2.py"))
    plan = start(ranks, [*program, *flags, "--plan"])
    if ranks == 1:
        run = start(ranks, [*program, *flags])
        (said, _), (ran, resident) = finish(plan), finish(run)
    else:  # in turn: each needs the cores
        (said, _), (ran, resident) = finish(plan), finish(start(ranks, [*program, *flags]))
    counted, _ = finish(start(ranks, [__file__, "count", *flags])) if counting else ("0", 0)
    table = r"memory +\| (..) .*\n.*(weights.*)  largest B\n.*as given +(.*)"
    unit, header, line = re.search(table, said).groups()
    tensors = {"MB": 1e6, "GB": 1e9}[unit] * float(line.split()[header.split().index("peak")])
    process = 1e9 * float(re.search(r"process +\| ([\d.e+-]+) GB", said)[1])
    seconds = float(re.search(r"tok/s, ([\d.e+-]+) s a step", said)[1])
    speeds = [float(rate.replace(",", "")) for rate in re.findall(r"([\d,]+) tok/sec", ran)[1:]]
    took = B * T * micro_steps * ranks / statistics.median(speeds)
    return (tensors, int(counted.split()[-1])), (process, resident), (seconds, took)


def count(flags):
    """Print the most bytes that rank 0's tensors have at once in three steps and a validation, by
    what torch's allocator gave out and got back.

    With --shard model, gloo's threads free memory that the profiler does not see. There, it counts
    all tensors alive after each operator of the second and third step."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    sys.path.insert(0, str(ROOT))
    import train_gpt2
    from nanogpt.fsdp import whole_net
    from nanogpt.ranks import init_ranks
    from nanogpt.shards import load_data

    class Alive(TorchDispatchMode):
        storages, most = {}, 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            done = function(*args, **(kwargs or {}))
            for x in tree_leaves((args, kwargs, done)):
                x = getattr(x, "_local_tensor", x)  # of a divided one
                if isinstance(x, torch.Tensor):
                    storage = x.untyped_storage()
                    self.storages[storage._cdata] = weakref.ref(storage)
            alive = {key: ref() for key, ref in self.storages.items()}
            self.storages = {key: self.storages[key] for key in alive if alive[key] is not None}
            self.most = max(self.most, sum(each.nbytes() for each in alive.values()
                                           if each is not None))
            return done

    config = train_gpt2.parse_args(flags)
    ranks = init_ranks(config.device)
    train, val = load_data(config)
    config = train_gpt2.replace(config, vocab_size=train.vocab_size)
    profile, alive = torch.profiler.profile(profile_memory=True), Alive()
    with alive if config.shard == "model" else profile:
        t = train_gpt2.prepare_training(config, train_gpt2.init_model(config), train, ranks, {})
        train_gpt2.train_step(t, 1e-4)
        alive.most = 0
        for _ in range(2):
            train_gpt2.train_step(t, 1e-4)
        with whole_net(t):
            train_gpt2.validate(t.net, val, 2000, config.B, config.T, ranks)
    most = alive.most
    if config.shard != "model":
        events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        events.sort(key=lambda e: e.start_ns())
        most = max(itertools.accumulate(e.nbytes() for e in events))
    print(most, flush=True)
    if ranks.ddp:
        torch.distributed.barrier()
    os._exit(0)


def main():
    if sys.argv[1:2] == ["count"]:
        return count(sys.argv[2:])
    import torch

    chosen = [int(word) for word in sys.argv[1:] if word.isdecimal()] or range(len(CASES))
    cpu_time = "--cpu-time" in sys.argv
    name = getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name", "CPU")
    print(f"{time.strftime('%Y-%m-%d %H:%M')}, {name}, {torch.backends.cpu.get_cpu_capability()}, "
          f"{os.cpu_count()} cores, {platform.system()}, torch {torch.__version__}, "
          f"{'CPU seconds (2 ranks: wall)' if cpu_time else 'wall seconds'}, "
          f"load {os.getloadavg()[0]:.1f}")
    print("row size    B    T micro ranks flags             | tensors, MB: planned found error "
          "| process, MB: planned found error | s a step: planned found error | load")
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        write_shards(tmp / "257", 257, "bytes")
        write_shards(tmp / "50257", 50257, "gpt2")
        for row in chosen:
            size, B, T, micro_steps, ranks, more = CASES[row]
            tensors, process, seconds = compare(CASES[row], tmp, cpu_time,
                                               "--no-tensors" not in sys.argv)
            cells = [f"{a / 1e6:8.1f} {b / 1e6:8.1f} {a / b - 1:+6.1%}" if b else
                     f"{a / 1e6:8.1f} {'-':>8s} {'-':>6s}" for a, b in (tensors, process)]
            cells += [f"{seconds[0]:7.3f} {seconds[1]:7.3f} {seconds[0] / seconds[1] - 1:+6.1%}"]
            print(f"{row:3d} {size:5s}{B:4d} {T:4d} {micro_steps:5d} {ranks:5d} {more:17s} | "
                  f"{' | '.join(cells)} | {os.getloadavg()[0]:.1f}", flush=True)


if __name__ == "__main__":
    main()
