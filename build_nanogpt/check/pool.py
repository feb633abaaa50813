"""Processes for the tasks of `check`, forked from one that has done the slow imports."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

WORKER = Path(__file__).resolve().parent / "worker.py"

# What steps import -> what to import once, including what the first use would import.
SLOW = {"numpy": ["numpy"], "torch": ["torch", "torch._dynamo"],
        "transformers": ["transformers.models.gpt2.modeling_gpt2"], "tiktoken": ["tiktoken"],
        "tyro": ["tyro"], "pyarrow": ["pyarrow.parquet"], "matplotlib": ["matplotlib.pyplot"],
        "safetensors": ["safetensors.torch"], "huggingface_hub": ["huggingface_hub"]}


def slow_imports(texts):
    """Modules to import once, judging by the import statements in `texts` (bytes)."""
    names = set()
    for text in texts:
        names |= {name.decode() for name in re.findall(rb"^\s*(?:import|from)\s+(\w+)", text, re.M)}
    return ["pytest", *(module for name, modules in SLOW.items() if name in names
                        for module in modules)]


def write_tree(folder, files):
    """Write {path: (mode, bytes)} under `folder`."""
    for path, (mode, data) in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        if mode == "100755":
            target.chmod(0o755)


class Pool:
    """Use as a context manager; `modules` are imported before the first task starts."""

    def __init__(self, modules, jobs):
        self.modules, self.jobs = modules, jobs

    def __enter__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="nanogpt-")).resolve()
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1",
               "TOKENIZERS_PARALLELISM": "false", "PYTHONUTF8": "1", "MPLBACKEND": "agg",
               "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "compiled")}  # all tasks share it
        self.server = subprocess.Popen(
            [sys.executable, str(WORKER), "--serve", *self.modules], env=env, cwd=self.folder,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        return self

    def __exit__(self, *exception):
        with contextlib.suppress(OSError):
            self.server.stdin.close()
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.server.pid, signal.SIGTERM)  # each supervisor ends its task
        self.server.wait()
        self.server.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, number, files, task):
        """Write a task's folder and hand it to the server."""
        folder = self.folder / str(number)
        (folder / "tree").mkdir(parents=True)
        write_tree(folder / "tree", files)
        (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
        self.server.stdin.write(f"{folder / 'task.json'}\n".encode())
        self.server.stdin.flush()

    def finish(self):
        """Wait for one task. Returns its number and its result, or {"died": words} if its process
        ended without one."""
        line = self.server.stdout.readline().decode().strip()
        if not line:
            raise RuntimeError("the process that starts the tasks has died")
        path, status = line.rsplit(" ", 1)
        folder = Path(path).parent
        if (folder / "result.json").exists():
            result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        else:
            log = folder / "log.txt"
            said = log.read_bytes().decode(errors="replace").strip() if log.exists() else ""
            end = said.splitlines()[-1:] or ["it said nothing"]
            how = f"signal {-int(status)}" if status.startswith("-") else f"status {status}"
            result = {"died": f"its process ended with {how}: {end[0]}"}
        shutil.rmtree(folder, ignore_errors=True)
        return int(folder.name), result

    def run(self, tasks):
        """Yield (number, result) of tasks [(files, task)] as they end; they start in order."""
        waiting, running = list(enumerate(tasks)), 0
        waiting.reverse()
        while waiting or running:
            while waiting and running < self.jobs:
                number, (files, task) = waiting.pop()
                self.start(number, files, task)
                running += 1
            yield self.finish()
            running -= 1
