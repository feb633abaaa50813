"""Two machines that are two network namespaces of this one: what happens after a fault.

    python runs/nodes/two.py FAULT          # as root, on Linux with iproute2; FAULT: see FAULTS

Each has one rank and its own torchrun. Prints every line with the seconds since the start.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = {"A": "10.9.0.1", "B": "10.9.0.2"}
FAULTS = {  # name: (restarts, started in a loop?)
    "none": (0, False), "slow": (0, False), "rank": (0, False), "rank-restarts": (2, False),
    "frozen": (0, False), "second": (2, True), "first": (2, True), "address": (0, False),
    "cable": (0, False), "disks": (0, False), "clock": (2, False)}
CLOCK = """#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
int clock_gettime(clockid_t c, struct timespec *t) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(c, t);
    if (c == CLOCK_REALTIME) t->tv_sec += 3600;
    return status;
}
"""
began, lines = time.monotonic(), []


def say(who, text):
    lines.append(text)
    print(f"{time.monotonic() - began:6.1f} {who} | {text}", flush=True)


def ip(*words, check=True):
    subprocess.run(["ip", *words], check=check, stderr=subprocess.DEVNULL)


def network():
    """Two namespaces, joined by one cable."""
    for name in ADDRESS:
        ip("netns", "del", f"two{name}", check=False)
        ip("netns", "add", f"two{name}")
    ip("link", "add", "vA", "netns", "twoA", "type", "veth",
       "peer", "name", "vB", "netns", "twoB")
    for name, address in ADDRESS.items():
        ip("-n", f"two{name}", "addr", "add", f"{address}/24", "dev", f"v{name}")
        for link in "lo", f"v{name}":
            ip("-n", f"two{name}", "link", "set", link, "up")
        if retries := os.environ.get("TCP_RETRIES2"):  # how often the kernel sends in vain: 15
            ip("netns", "exec", f"two{name}", "sh", "-c",
               f"echo {retries} > /proc/sys/net/ipv4/tcp_retries2")


def node(name, out_dir, restarts, loop, address=None, env=None):
    """Start a machine's torchrun. What it says is printed by a thread."""
    command = [
        "ip", "netns", "exec", f"two{name}", sys.executable, "-m", "torch.distributed.run",
        "--nnodes=2", "--nproc_per_node=1", f"--max-restarts={restarts}", "--rdzv_backend=c10d",
        "--rdzv_endpoint=10.9.0.1:29400", "--rdzv_id=1", f"--rdzv_conf=is_host={name == 'A':d}",
        f"--local_addr={address or ADDRESS[name]}", ROOT / "train_gpt2.py", "laptop", "--B", "4",
        "--total-batch-size", "1024", "--max-steps", "80" if FAULT == "none" else "100000",
        "--print-every", "20", "--val-tokens", "2048", "--hellaswag", "none", "--sample-tokens",
        "0", "--device", "cpu", "--checkpoint-every", "40", "--keep", "2", "--resume",
        "--eval-every", "10000", "--optimizer", "adamw", "--max-lr", "1e-3", "--out-dir", out_dir]
    if loop:
        command = ["bash", "-c", 'until "$@"; do sleep 5; done', "loop", *command]
    more = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": f"v{name}", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.STDOUT, env=os.environ | more | (env or {}),
                               start_new_session=True)

    def listen():
        for line in process.stdout:
            say(name, line.rstrip())

    threading.Thread(target=listen, daemon=True).start()
    return process


def below(process):
    """The ids of all processes below one, and which of them is the rank."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [process.pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    ranks = []
    for each in found:
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{each}/cmdline").read_bytes()
            if b"train_gpt2.py" in words and b"torch.distributed.run" not in words:
                ranks.append(each)
    return found, ranks


def kill(process):
    for each in below(process)[0]:
        with contextlib.suppress(OSError):
            os.kill(each, signal.SIGKILL)


def wait_for(text, n=1, seconds=200):
    end = time.monotonic() + seconds
    while sum(text in line for line in list(lines)) < n:
        if time.monotonic() > end:
            return say("-", f"{text!r} was not said")
        time.sleep(0.1)


def main(folder):
    restarts, loop = FAULTS[FAULT]
    env, common = {}, folder / "run"
    if FAULT == "clock":
        (folder / "clock.c").write_text(CLOCK)
        subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "clock.so", folder / "clock.c"],
                       check=True)
        env = {"LD_PRELOAD": str(folder / "clock.so")}
    network()
    A = node("A", common, restarts, loop)
    B = node("B", folder / "own" if FAULT == "disks" else common, restarts, loop, env=env)
    try:
        wait_for("step    60 |")
        _, [rank] = below(B)
        say("-", f"fault: {FAULT}")
        if FAULT in ("slow", "frozen"):
            os.kill(rank, signal.SIGSTOP)
        if FAULT == "slow":
            time.sleep(20)
            os.kill(rank, signal.SIGCONT)
            say("-", "goes on")
        if FAULT in ("rank", "rank-restarts", "clock"):
            os.kill(rank, signal.SIGKILL)
        if FAULT == "address":
            ip("-n", "twoA", "addr", "del", "10.9.0.1/24", "dev", "vA")
        if FAULT == "cable":
            ip("-n", "twoB", "link", "set", "vB", "down")
        if FAULT in ("second", "first"):
            kill(B if FAULT == "second" else A)
            time.sleep(10)
            say("-", "it comes back")
            if FAULT == "second":
                B = node("B", common, restarts, loop)
            else:
                A = node("A", common, restarts, loop)
        if FAULT == "disks":  # the higher address makes B's rank the first one
            kill(A), kill(B)
            ip("-n", "twoA", "addr", "add", "10.9.0.3/24", "dev", "vA")
            A, B = node("A", common, 0, False, "10.9.0.3"), node("B", folder / "own", 0, False)
        if FAULT in ("rank-restarts", "second", "first", "clock"):
            wait_for("resumed    |")
        if FAULT in ("slow", "rank-restarts", "second", "first", "clock"):
            wait_for("step   120 |")
            return
        end = time.monotonic() + float(os.environ.get("LIMIT", 120))
        for name, process in ("A", A), ("B", B):
            with contextlib.suppress(subprocess.TimeoutExpired):
                say("-", f"torchrun {name}: status {process.wait(max(0, end - time.monotonic()))}")
    finally:
        kill(A), kill(B)


if __name__ == "__main__":
    [FAULT] = sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
