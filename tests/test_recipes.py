"""Every command in README.md and CONTRIBUTING.md is known here: run in small, or why it is not."""

import ast
import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import tyro
from helpers import (
    ROOT, TINY, fineweb, four_endings, free_port, main_here, make_documents, small_gpt,
    write_jsonl, write_parquet, write_shards,
)

import hellaswag
import sample
from build_nanogpt.__main__ import COMMANDS
from nanogpt.report import read_log

DOCS = ["README.md", "CONTRIBUTING.md", *sorted(
    path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md"))]
HERE = "run below, in small"
HUB = "needs the hub or the package index"
CI = "this is what .ci/run does"
FOLLOWER = "test_lecture_release.py::test_a_plain_clone_has_every_step"
WORKTREE = "test_lecture_build.py::test_contents"
ERRATUM = "test_lecture.py::test_an_erratum_is_fixed_where_it_began"
MINE = "test_lecture_mine.py::test_mine_is_done"
SHORT = "test_examples.py::test_short_form"
# command, up to a flag's value: where it is run
KNOWN = {
    "pip install -e .": CI, "pip install -e '.[test]'": CI, "pytest": CI,
    "pip install -e '.[fast]'": HUB, "pip install accelerate": HUB,
    "git log --oneline": FOLLOWER, "python -m build_nanogpt build": ERRATUM,
    "git tag -n": "test_lecture_build.py::test_branch_and_tags",
    "git worktree add ../lecture step-01": WORKTREE, "git checkout step-02": WORKTREE,
    "git diff step-01 step-02": "git's own", "git diff --no-index my_train_gpt2.py": "git's own",
    "git log -3": "git's own", "git show step-07:train_gpt2.py": "git's own",
    "python -m build_nanogpt check --mine my_train_gpt2.py --step 7": MINE,
    "python -m build_nanogpt check --mine my_folder --step 28":
        "test_lecture_mine.py::test_a_folder_that_is_done",
    "git worktree add ../lecture lecture": ERRATUM, "git commit -a --fixup": ERRATUM,
    "git rebase -i --autosquash step-13": ERRATUM, "git switch --detach": ERRATUM,
    "python -m build_nanogpt export": ERRATUM, "git add -A": ERRATUM, "git commit": ERRATUM,
    "git worktree remove ../lecture": ERRATUM,
    "python -m build_nanogpt check 14-111": "test_lecture_check.py::test_a_lecture_that_is_well",
    "python -m build_nanogpt tools": "test_tools.py::test_transformers_agrees",
    "python fineweb.py --encoder gigatoken": "test_89_gigatoken.py",
    "python fineweb.py": HERE, "python hellaswag.py --model": HERE, "python train_gpt2.py": HERE,
    "python sample.py": HERE, "pip install -e '.[track]'": HUB,
    "python train_gpt2.py --eval-only": "test_100_scores.py",
    "python train_gpt2.py --track": "test_102_track.py",
    "python train_gpt2.py laptop --track": "test_102_track.py",
    "python examples/adder.py": SHORT, "python examples/sort.py": SHORT,
    "python examples/positions.py": "test_examples.py::test_all_kinds_train",
    # torchrun itself is started in test_torchrun.py; here one process takes its program's flags
    "torchrun --standalone --nproc_per_node=8": HERE,
}


def commands(text):
    """The commands in a Markdown text's indented and fenced lines, without their comments."""
    text = re.sub(r"\\\n\s*", "", text)  # lines that go on
    lines = re.findall(r"^ {4}(.*)", text, re.M)
    for block in re.findall(r"^```(?:bash|sh|)\n(.*?)^```", text, re.M | re.S):
        lines += block.splitlines()
    parts = [part for line in lines
             for part in re.split(r"&&|\|", re.sub(r"(^|\s)#.*", "", line))]
    return [part.strip() for part in parts
            if re.match(r"(python|pytest|torchrun|pip|git)( |$)", part.strip())]


def where(command):
    """The longest entry of KNOWN that the command begins with, or None."""
    found = [known for known in KNOWN if (command + " ").startswith(known + " ")]
    return max(found, key=len, default=None)


FOUND = {command: KNOWN.get(where(command)) for name in DOCS
         for command in commands((ROOT / name).read_text(encoding="utf-8"))}


def test_commands_are_found():
    assert commands("x\n\n    git tag -n | cat  # a\n    torchrun a \\\n        b && pip c\n"
                    "```bash\npytest\n```\n    pythonic\n") == [
        "git tag -n", "torchrun a b", "pip c", "pytest"]
    assert len(FOUND) > 25


def test_every_command_is_known_and_every_entry_is_used():
    assert not [command for command in FOUND if where(command) is None]
    assert set(KNOWN) == set(map(where, FOUND))


@pytest.mark.parametrize("place", sorted({place for place in KNOWN.values() if "::" in place}))
def test_the_tests_named_are_there(place):
    file, name = place.split("::")
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    assert name in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("command", [c for c in FOUND if c.startswith("python -m build_nanogpt")])
def test_the_tools_take_these_flags(command):
    name, *flags = shlex.split(command)[3:]
    config = importlib.import_module(f"build_nanogpt.{COMMANDS[name][0]}").Config
    tyro.cli(config, args=flags)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the commands name, small: shards, documents, HellaSwag, and gpt2 as a folder."""
    folder = tmp_path_factory.mktemp("recipes")
    write_shards(folder / "shards", 400, 100)
    write_shards(folder / "my_shards", 400, 100)
    write_parquet(folder / "my_parquets", make_documents(12))
    (folder / "my.txt").write_bytes("".join(make_documents(12)).encode())
    write_jsonl(folder / "h.jsonl", four_endings(6))
    (folder / "story.txt").write_text("Once upon a time")
    for name in ("gpt2", "gpt2-xl", "log/laptop/checkpoint_001500",
                 "log/gpt2-124M/checkpoint_018794", "log/shakespeare-char/checkpoint_005000"):
        small_gpt(n_layer=1, n_embd=8).save_pretrained(folder / name)
    return folder


SMALL = ("--n-layer 1 --n-head 2 --n-embd 8 --device cpu --B 2 --T 8 "
         "--total-batch-size 16 --val-tokens 32 --sample-tokens 0 --max-steps 9 --no-compile "
         "--hellaswag none --eval-every 9").split()


@pytest.mark.parametrize("command", [command for command in FOUND if FOUND[command] == HERE])
def test_in_small(command, folder, monkeypatch, capsys):
    """With its own flags, on a small network, and on data of ours where it names none."""
    monkeypatch.chdir(folder)
    words = shlex.split(command)
    program = next(i for i, word in enumerate(words) if word.endswith(".py"))
    flags = words[program + 1 :]
    if words[program] == "train_gpt2.py":
        if "--data" not in flags and "laptop" not in flags:
            flags += ["--data", "shards"]
        if "my.txt" in flags and "shakespeare-char" not in flags:
            flags += ["--tokenizer", "bytes"]  # GPT-2's may not be here
        out = "log/" + re.sub(r"\W+", "_", command)
        main_here(monkeypatch, *flags, *SMALL, "--out-dir", out)
        if "--plan" in flags:
            assert "calculated" in capsys.readouterr().out and not (folder / out).exists()
            return
        assert read_log(f"{out}/log.txt")["train"][0] == list(range(9))
    elif words[program] == "fineweb.py":
        source, out = (flags[flags.index(flag) + 1] if flag in flags else other for flag, other in (
            ("--source", "my_parquets"), ("--out", "new_shards")))
        done = fineweb(source, folder / "made" / out, "--shard-size", 1000)
        assert done.returncode == 0 and (folder / "made" / out / "manifest.json").exists()
    elif words[program] == "sample.py":
        monkeypatch.setattr(sys, "argv", [*words[program:], "--max-tokens", "5", "--device", "cpu"])
        sample.main()
        assert capsys.readouterr().out.endswith("\n")
    else:
        monkeypatch.setattr(sys, "argv", [*words[program:], "--data", "h.jsonl", "--device", "cpu"])
        hellaswag.main()
        assert "of 6)" in capsys.readouterr().out


# srun starts the tasks and hands SIGUSR1 on to them, as its manual says; it ends when they have
SRUN = """#!/bin/bash
while [[ $1 = --* ]]; do shift; done
for i in 0 1; do
    SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_NTASKS=2 "$@" & tasks="$tasks $!"
done
trap 'kill -USR1 $tasks' USR1
for task in $tasks; do wait $task; wait $task || status=$?; done
exit ${status:-0}
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> requeued.txt; fi
"""


def slurm_script():
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in DOCS)
    return re.search(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", text, re.DOTALL)[1]


@pytest.mark.skipif(os.name == "nt", reason="Slurm and its shell are not on Windows")
def test_the_slurm_job_saves_requeues_itself_and_ends(tmp_path):
    """The README's job script, run as Slurm would, with a small network in place of GPT-2."""
    flags = [*TINY, "--data", write_shards(tmp_path / "shards"), "--out-dir", tmp_path / "run",
             "--val-tokens", 512, "--sample-tokens", 0, "--max-steps", 200]
    words = " ".join(f'"{flag}"' for flag in map(str, flags)).replace("'", "")
    script = slurm_script()
    assert "srun --kill-on-bad-exit=1 " in script  # or the other ranks would wait for a dead one
    assert script.count("python train_gpt2.py --resume --keep 3") == 1
    script = script.replace("python train_gpt2.py --resume --keep 3",
                            f"{sys.executable} {ROOT / 'train_gpt2.py'} --resume --keep 3 {words}")
    script = script.replace("29500", str(free_port()))
    for name, text in ("job.sh", script), ("srun", SRUN), ("scontrol", SCONTROL):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7",
                   "OMP_NUM_THREADS": "1", "SLURM_JOB_NODELIST": "here"}

    def job():
        with open(tmp_path / "said.txt", "a") as said:
            return subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, env=environment, stdout=said,
                                    stderr=said)

    process, log = job(), tmp_path / "run" / "log.txt"
    while not (log.exists() and "\n20 train" in log.read_text()):
        assert process.poll() is None, (tmp_path / "said.txt").read_text()
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)  # B: the script alone gets it
    assert process.wait(60) == 0
    assert "stopped by SIGUSR1 at step" in (tmp_path / "said.txt").read_text()
    assert (tmp_path / "requeued.txt").read_text() == "requeue 7\n"
    assert job().wait(120) == 0
    assert (tmp_path / "requeued.txt").read_text() == "requeue 7\n", "it had ended"
    assert read_log(log)["train"][0] == list(range(200))
    assert "resumed    | at step" in (tmp_path / "said.txt").read_text()
