"""Whoever starts the processes: each knows its number, or says in one line what is missing."""

import pytest
import torch

from nanogpt.common import UserError
from nanogpt.launch import find_ranks
from nanogpt.ranks import Ranks, init_ranks

MEET = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
NAMES = {
    "torchrun": ("RANK", "LOCAL_RANK", "WORLD_SIZE"),
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"),
    "Intel MPI": ("PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE"),
    "srun": ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS")}
BATCH = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "7"}
ALONE = (False, 0, 0, 1)


def by(launcher, rank, local, size):
    return dict(zip(NAMES[launcher], map(str, (rank, local, size)), strict=True))


@pytest.mark.parametrize("launcher", NAMES)
@pytest.mark.parametrize("numbers", [(0, 0, 2), (5, 1, 8), (7, 7, 8)])
def test_each_launcher_by_its_own_names(launcher, numbers):
    assert find_ranks(by(launcher, *numbers) | MEET) == (True, *numbers)


@pytest.mark.parametrize("env, expected", [
    ({}, ALONE), (MEET, ALONE),
    (BATCH, ALONE),  # the batch script itself, not a step of it
    (by("srun", 0, 0, 1) | BATCH, ALONE), (by("Open MPI", 0, 0, 1), ALONE),
    ({"RANK": "0", "WORLD_SIZE": "1"} | MEET, ALONE),  # Kubernetes, one replica
    ({"WORLD_SIZE": "1"}, ALONE), ({"RANK": "", "WORLD_SIZE": ""}, ALONE),
    (by("torchrun", 0, 0, 1) | MEET, (True, 0, 0, 1)),  # --nproc_per_node=1
    (by("torchrun", 9, 1, 16) | MEET | by("srun", 1, 0, 2), (True, 9, 1, 16)),  # in an srun
    (by("Open MPI", 3, 1, 4) | MEET | by("srun", 1, 0, 2), (True, 3, 1, 4)),  # started by srun
    (by("srun", 3, 1, 4) | MEET | {"PMI_RANK": "3", "PMI_SIZE": "4"}, (True, 3, 1, 4)),
    (by("srun", 3, 1, 4) | MEET | {"WORLD_SIZE": "4"}, (True, 3, 1, 4))])  # exported by hand
def test_one_within_another(env, expected):
    assert find_ranks(env) == expected


@pytest.mark.parametrize("env, said", [
    ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0: start the processes with torchrun, or also set RANK "),
    ({"RANK": "0"}, "RANK=0: .* set LOCAL_RANK .* and WORLD_SIZE "),
    ({"WORLD_SIZE": "4"}, "WORLD_SIZE=4: .* set RANK "),
    ({"RANK": "1", "WORLD_SIZE": "4"} | MEET,  # Kubeflow
     r"RANK=1, WORLD_SIZE=4, .* also set LOCAL_RANK \(0, 1, ... on each machine\); to train in one "
     "process, unset them"),
    ({"RANK": "1", "WORLD_SIZE": "1"} | MEET, "also set LOCAL_RANK"),  # one of many that are alone
    (by("torchrun", 0, 0, 2), "also set MASTER_PORT .* and MASTER_ADDR "),
    (by("torchrun", 0, 0, 2) | {"MASTER_ADDR": "x"}, "also set MASTER_PORT "),
    (by("srun", 0, 0, 4), r"\(from SLURM_PROCID, .*also set MASTER_PORT .* and MASTER_ADDR "),
    (by("Open MPI", 0, 0, 4), r"\(from OMPI_COMM_WORLD_RANK.* and MASTER_ADDR "),
    (by("Open MPI", 3, 3, 4) | MEET | {"RANK": "0"}, "RANK=0, .*LOCAL_RANK must be at most RANK"),
    (by("torchrun", 4, 0, 4) | MEET, "RANK=4, .*WORLD_SIZE=4.*: .*RANK less than WORLD_SIZE"),
    (by("torchrun", -1, 0, 4) | MEET, "RANK=-1"), (by("torchrun", 0, 0, 0) | MEET, "WORLD_SIZE=0"),
    (by("torchrun", "one", 0, 4) | MEET, "RANK=one"),
    (by("torchrun", 0, 0, 4) | MEET | {"MASTER_PORT": "http"}, "MASTER_PORT=http"),
    (by("torchrun", 0, 0, 4) | MEET | {"MASTER_PORT": "65536"}, "MASTER_PORT=65536")])
def test_half_of_it_is_refused(env, said):
    """Else each process would train a network of its own, and nobody would see it."""
    with pytest.raises(UserError, match=said) as refused:
        find_ranks(env)
    assert "\n" not in str(refused.value)


def test_init_ranks_asks(monkeypatch):
    for name in {name for names in NAMES.values() for name in names}:
        monkeypatch.delenv(name, raising=False)
    assert init_ranks("cpu") == Ranks(torch.device("cpu"))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="also set LOCAL_RANK"):
        init_ranks("cpu")
