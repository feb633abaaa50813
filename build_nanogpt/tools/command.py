"""Does a checkpoint open in other tools, and do they compute the same?"""

import importlib
import importlib.metadata
import os
import platform
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from build_nanogpt.bench.errors import program_errors
from build_nanogpt.cli import UserError
from build_nanogpt.tools.case import make_case, tokenizer_of

# name -> (module of this package, the package that must be installed, largest difference)
TOOLS = {
    "sample": ("python_tools", "", 0),
    "transformers": ("python_tools", "transformers", 1e-3),
    "lm_eval": ("python_tools", "lm_eval", 1e-3),
    "ctranslate2": ("python_tools", "ctranslate2", 1e-3),
    "onnxruntime": ("compiled_tools", "onnxruntime", 1e-3),
    "openvino": ("compiled_tools", "openvino", 1e-3),
    "llama_cpp": ("compiled_tools", "xllamacpp", 5e-2),  # it computes parts in half precision
    "mlx_lm": ("compiled_tools", "mlx_lm", 1e-3),
    "transformers_js": ("javascript", "", 1e-3),
}


@dataclass(frozen=True)
class Config:
    checkpoint: Annotated[str, tyro.conf.Positional] = "log/laptop"
    """a checkpoint of train_gpt2.py, a run's folder for its newest, or any GPT-2 folder"""
    only: tuple[str, ...] = ()
    """these tools alone"""
    prompt: str = ""
    """the text to continue; by default the run's prompt"""
    tokens: int = 32
    """greedy tokens to compare, fewer if the network has fewer positions"""
    text: int = 100_000
    """characters of the hard text whose ids are compared"""
    hellaswag: str = ""
    """lm_eval: a .jsonl file with ctx, endings and label; its first 100 examples"""
    llama_cpp: str = ""
    """llama_cpp: a folder with its convert_hf_to_gguf.py (llama-cpp-python's source has it)"""
    node: str = ""
    """transformers_js: a folder in which npm install @huggingface/transformers was done"""


def settle():
    """In a tool's process: no network, and its bars and remarks are not shown, but for DEBUG=1."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if not os.environ.get("DEBUG"):
        for number in 1, 2:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def attempt(name, case):
    """What a tool found, as a dict, or why it found nothing."""
    module, package, _ = TOOLS[name]
    try:
        version = importlib.metadata.version(package.replace("_", "-")) if package else ""
    except importlib.metadata.PackageNotFoundError:
        return {"not run": f"not installed: pip install {package.replace('_', '-')}"}
    try:
        with tempfile.TemporaryDirectory() as scratch:
            tool = getattr(importlib.import_module(f"build_nanogpt.tools.{module}"), name)
            return {"version": version} | tool(case, Path(scratch))
    except (ImportError, NotImplementedError) as error:  # what it needs is not there
        return {"version": version, "not run": str(error).partition("\n")[0]}
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        return {"version": version, "failed": f"{type(error).__name__}: {reason}"}


def compare(case, found, most):
    """(what was equal, whether all of it was) in words, from what a tool returned."""
    said, fine = [], not found.get("failed")
    if "ids" in found:
        expected = case.text_ids
        if "text" in found:
            expected = tokenizer_of(case.folder).encode_ordinary(found["text"])
        equal = list(found["ids"]) == expected and found.get("back", case.text) == case.text
        said.append(f"{len(expected):,} ids {'equal' if equal else 'DIFFER'}")
        fine &= equal
    if "new" in found or "written" in found:
        equal = found.get("written", case.written) == case.written
        new = [id for id in found.get("new", case.new_ids) if id != case.eot]
        equal &= new == case.new_ids
        said.append(f"text {'equal' if equal else 'DIFFERS'} ({len(case.new_ids)} tokens)")
        fine &= equal
    difference = found.get("difference")
    if "logits" in found:
        difference = np.abs(found["logits"] - case.logits).max()
    if "log_p" in found:
        last = case.logits[-1].astype(np.float64)
        difference = np.abs(found["log_p"] - (last - np.logaddexp.reduce(last))).max()
    if difference is not None:
        of = "log-probability" if "log_p" in found else found.get("of", "logit")
        said.append(f"largest {of} difference {difference:.1e}")
        fine &= bool(difference <= most)
    return ", ".join([*said, *filter(None, [found.get("note")])]), fine


def line_of(name, case, found):
    """A tool's line, and whether it found no difference."""
    head = f"{name:16}{found.get('version', ''):16}"
    for reason in "not run", "failed":
        if type(found.get(reason)) is str:
            return f"{head}{reason}: {found[reason]}", reason == "not run"
    said, fine = compare(case, found, TOOLS[name][2])
    return f"{head}{'' if fine else 'DIFFERS: '}{said}", fine


@program_errors()
def main(config):
    """Open a checkpoint in every tool that is installed, and compare with this project: the ids of
    a hard text, a greedy continuation, the logits. A line for each tool; status 1 if one differs.
    """
    if unknown := set(config.only) - TOOLS.keys():
        raise UserError(f"no tool {min(unknown)}: choose {', '.join(TOOLS)}")
    for name in "tokens", "text":
        if (value := getattr(config, name)) < 1:
            raise UserError(f"--{name} {value}: give 1 or more")
    case, all_fine = make_case(config), True
    print(f"{case.folder}: {case.logits.shape[1]:,} ids of {case.tokenizer}; {platform.machine()}, "
          f"Python {platform.python_version()}, {date.today()}")
    print(f"{case.prompt!r} is continued by {case.written!r}")
    for name in config.only or TOOLS:
        try:
            with ProcessPoolExecutor(1, get_context("spawn"), settle) as pool:
                found = pool.submit(attempt, name, case).result()
        except BrokenProcessPool:
            found = {"failed": "the process died"}
        said, fine = line_of(name, case, found)
        all_fine &= fine
        print(said, flush=True)
    sys.exit(0 if all_fine else 1)
