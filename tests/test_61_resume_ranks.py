"""A run resumes with another number of ranks: same tokens, same losses except for rounding."""

import os
import shutil

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers import TINY, free_port, main_here, start, together, write_shards

from nanogpt.common import UserError
from nanogpt.ranks import Ranks, on_master, share
from nanogpt.report import read_log

pytestmark = pytest.mark.slow

RUN = [*TINY, "--B", 4, "--max-steps", 9, "--eval-every", 3, "--val-tokens", 1000,
       "--sample-tokens", 0, "--checkpoint-every", 3, "--shuffle"]


def losses(folder):
    log = read_log(folder / "log.txt")
    return {kind: dict(zip(*log[kind], strict=True)) for kind in ("train", "val")}


def test_one_two_one_ranks(tmp_path):
    """Three steps each, compared with nine in one go on the first number of ranks."""
    data = write_shards(tmp_path / "shards", n_train=4000)
    begun = {}
    for name, ranks in ("one", None), ("two", 2):
        done = start("train_gpt2.py", *RUN, "--data", data, "--out-dir", tmp_path / name,
                     ranks=ranks)
        assert done.returncode == 0, done.stderr
        begun[name] = losses(tmp_path / name)
    for first, order in ("one", [2, None]), ("two", [None, 2]):
        run = tmp_path / f"{first} and others"
        shutil.copytree(tmp_path / first, run)
        for step, ranks in zip((3, 6), order, strict=True):
            for folder in run.glob("checkpoint_*"):
                if int(folder.name[-6:]) > step:
                    shutil.rmtree(folder)
            done = start("train_gpt2.py", *RUN, "--data", data, "--out-dir", run, "--resume",
                         ranks=ranks)
            assert done.returncode == 0, done.stderr
            assert f"at step {step} of" in done.stdout
        for kind in "train", "val":
            assert losses(run)[kind].keys() == begun[first][kind].keys()
            for step, loss in losses(run)[kind].items():
                # another order of summation; the difference grows over up to six updates
                assert loss == pytest.approx(begun[first][kind][step], abs=1e-5), (kind, step)


def a_machine(rank, world, port, folder, flags):
    """One process of two that do not share a disk."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank),
                   "LOCAL_RANK": "0", "WORLD_SIZE": str(world)}
    os.chdir(folder / str(rank))
    with pytest.MonkeyPatch.context() as monkeypatch:
        main_here(monkeypatch, *flags)


def test_the_ranks_need_no_common_disk(tmp_path):
    """The master alone opens the folder: the other one has none, and ends with the same losses."""
    data = write_shards(tmp_path / "shards")
    for rank in "01":
        (tmp_path / rank).mkdir()
    flags = [*RUN, "--data", data, "--out-dir", "run"]
    together(a_machine, 2, free_port(), tmp_path, flags)
    expected = losses(tmp_path / "0" / "run")
    for step in 6, 9:
        shutil.rmtree(tmp_path / "0" / "run" / f"checkpoint_{step:06d}")
    together(a_machine, 2, free_port(), tmp_path, [*flags, "--resume"])
    assert losses(tmp_path / "0" / "run") == expected  # to the bit: as many ranks as before
    assert list((tmp_path / "1").iterdir()) == []


def what_arrives(rank, world, port):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank,
                            world_size=world)
    ranks = Ranks(torch.device("cpu"), True, rank, rank, world)
    calls = []
    assert on_master(ranks, lambda: calls.append(1) or {"a": [1, 0.1], "\u00e9": None}) == {
        "a": [1, 0.1], "\u00e9": None}
    assert len(calls) == (rank == 0)

    def wrong():
        raise UserError("the folder is another's")

    with pytest.raises(UserError, match="the folder is another's"):
        on_master(ranks, wrong)
    tensors = {"x": torch.arange(6.0).view(2, 3).t() / 7, "n": torch.tensor(3),
               "b": torch.tensor([255, 0], dtype=torch.uint8)}
    shared = share(tensors if rank == 0 else {}, ranks)
    assert list(shared) == list(tensors)
    for name, value in tensors.items():
        assert torch.equal(shared[name], value) and shared[name].dtype == value.dtype
    dist.barrier()
    dist.destroy_process_group()


def test_facts_tensors_and_refusals_reach_every_rank():
    together(what_arrives, 2, free_port())


def test_alone_it_is_a_plain_call():
    ranks = Ranks(torch.device("cpu"))
    assert on_master(ranks, lambda: 5) == 5
    with pytest.raises(UserError, match="No space"):
        on_master(ranks, lambda: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    x = torch.from_numpy(np.ones(3, dtype=np.float32))
    assert share({"x": x}, ranks)["x"].data_ptr() != x.data_ptr(), "a copy: x may lie in a file"
