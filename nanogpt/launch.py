"""What starts the processes of a run: torchrun, mpirun, srun, or you."""

import secrets
import socket
import time

from nanogpt.common import UserError

TORCHRUN = {  # the environment variables it sets
    "RANK": "0, 1, ... over all processes",
    "LOCAL_RANK": "0, 1, ... on each machine",
    "WORLD_SIZE": "the number of processes",
    "MASTER_PORT": "a free port on rank 0's machine",
    "MASTER_ADDR": "rank 0's machine",
}
NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
OTHERS = (  # their names under Open MPI's mpirun, MPICH's and Intel's, and Slurm's srun
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE"),
    ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS"),
)


def find_ranks(env):
    """(in a group?, rank, rank on this machine, world size) by the environment variables `env`.

    One process without a launcher is (False, 0, 0, 1). Raises UserError if a variable is missing or
    wrong: N processes must not train N networks in silence.
    """
    given, source = {name: env[name] for name in TORCHRUN if env.get(name)}, ""
    for names in OTHERS:
        # a batch script of Slurm has a SLURM_PROCID, too, but it is not a STEP of several tasks
        if not given.keys() >= set(NUMBERS) and env.get(names[2], "1") != "1":
            theirs = {ours: env[name] for ours, name in zip(NUMBERS, names, strict=True)
                      if env.get(name)}
            given, source = theirs | given, f" (from {', '.join(names)})"
    missing = [name for name in TORCHRUN if name not in given]
    alone = (given.get("RANK", "0"), given.get("WORLD_SIZE")) == ("0", "1")  # Kubernetes has these
    if missing[:3] == list(NUMBERS) or missing and alone:
        return False, 0, 0, 1
    said = ", ".join(f"{name}={given[name]}" for name in TORCHRUN if name in given) + source
    if missing:
        raise UserError(f"{said}: start the processes with torchrun, or also set "
                        f"{' and '.join(f'{name} ({TORCHRUN[name]})' for name in missing)}; to "
                        "train in one process, unset them")
    rank, local, size, port = (int(given[name]) if given[name].isdecimal() else -1
                               for name in (*NUMBERS, "MASTER_PORT"))
    if not (0 <= local <= rank < size and 0 < port < 65536):
        raise UserError(f"{said}: LOCAL_RANK must be at most RANK, RANK less than WORLD_SIZE, and "
                        "MASTER_PORT a number from 1 to 65535")
    return True, rank, local, size


def await_rank_0(rank, address, port, seconds):
    """Return when rank 0's machine has an address and, for other ranks, somebody listens there.
    Raises OSError if that takes longer. (torch would say the same in a hundred lines.)"""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if rank:
                socket.create_connection((address, port), timeout=5).close()
            return socket.getaddrinfo(address, port)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def name_attempt(store, rank, world_size, seconds):
    """A name that only the ranks of this attempt share. torchrun's store has all that dead ranks
    wrote, and its count of restarts differs: a machine counts only those that began there."""
    mine = secrets.token_hex(8)
    if rank:
        store.set(f"rank {rank}", mine)
        name = store.get(f"name for {mine}").decode()  # waits until rank 0 is here
        store.set(f"{name} {rank}", "")
        return name
    missing, deadline = set(range(1, world_size)), time.monotonic() + seconds
    while missing:
        for other in sorted(missing):
            if store.check([f"rank {other}"]):  # perhaps a dead one: the living will write again
                store.set(f"name for {store.get(f'rank {other}').decode()}", mine)
            if store.check([f"{mine} {other}"]):
                missing.remove(other)
        if time.monotonic() > deadline:
            raise TimeoutError(f"rank {', '.join(map(str, sorted(missing)))} did not come")
        time.sleep(0.02)
    return mine
