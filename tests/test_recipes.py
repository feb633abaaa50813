"""The README's job script, run as Slurm would, with a small network in place of GPT-2."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT, TINY, free_port, write_shards

from train_gpt2 import read_log

# srun starts the tasks and hands SIGUSR1 on to them, as its manual says; it ends when they have
SRUN = """#!/bin/bash
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


@pytest.mark.skipif(os.name == "nt", reason="Slurm and its shell are not on Windows")
def test_the_slurm_job_saves_requeues_itself_and_ends(tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    script = re.search(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", readme, re.DOTALL)[1]
    flags = [*TINY, "--data", write_shards(tmp_path / "shards"), "--out-dir", tmp_path / "run",
             "--val-tokens", 512, "--sample-tokens", 0, "--max-steps", 400]
    words = " ".join(f'"{flag}"' for flag in map(str, flags)).replace("'", "")
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
    assert read_log(log)["train"][0] == list(range(400))
    assert "resumed    | at step" in (tmp_path / "said.txt").read_text()
