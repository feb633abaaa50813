"""After a resume, every rank draws the random numbers of an unbroken run."""

import pytest
import torch
import torch.distributed as dist
from helpers import TINY, free_port, lively_gpt, main_here, together, training, write_shards

import train_gpt2
from train_gpt2 import DataLoader
from nanogpt.checkpoints import random_states, restore
from nanogpt.weights import TRANSPOSED
from nanogpt.ranks import Ranks

pytestmark = pytest.mark.slow

FACTS = {"scaler": {}, "position": 0, "step": 0}


def drawn_by(rank, world, port, folder):
    """Each rank has its own state: it saves, draws, restores and draws again."""
    ranks = Ranks(torch.device("cpu"), world > 1, rank, rank, world)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank,
                                world_size=world)
    torch.manual_seed(rank)
    torch.rand(3)
    model = lively_gpt()
    torch.manual_seed(10 + rank)
    torch.rand(rank + 1)
    rng = random_states(ranks)
    assert rng["rng.cpu"].shape == (world, len(torch.get_rng_state()))
    assert torch.equal(rng["rng.cpu"][rank], torch.get_rng_state())
    expected = torch.rand(5)
    tensors = {**{k: v.t() if k.endswith(TRANSPOSED) else v
                  for k, v in model.state_dict().items()}, **rng}
    torch.manual_seed(99)
    t = training(model, DataLoader(None, 1, 16), ranks=ranks)
    restore(t, FACTS, tensors)
    assert torch.equal(torch.rand(5), expected)
    if world > 1:
        dist.destroy_process_group()


def test_every_rank_has_its_own_back():
    for world in 1, 2:
        together(drawn_by, world, free_port(), None)


def test_dropout_goes_on_to_the_bit(tmp_path, monkeypatch):
    """With dropout, 3 + 3 steps log the same losses as 6."""
    forward = train_gpt2.MLP.forward

    def with_dropout(self, x):
        return torch.nn.functional.dropout(forward(self, x), 0.2, self.training)

    monkeypatch.setattr(train_gpt2.MLP, "forward", with_dropout)
    flags = [*TINY, "--data", write_shards(tmp_path / "shards"), "--val-tokens", 512,
             "--eval-every", 3, "--max-steps", 6, "--checkpoint-every", 3, "--out-dir"]
    main_here(monkeypatch, *flags, tmp_path / "run")
    log = (tmp_path / "run" / "log.txt").read_text()
    expected = [line for line in log.splitlines() if line[0] != "#"]
    for path in sorted((tmp_path / "run" / "checkpoint_000006").iterdir()):
        path.unlink()
    (tmp_path / "run" / "checkpoint_000006").rmdir()
    main_here(monkeypatch, *flags, tmp_path / "run", "--resume")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert [line for line in log.splitlines() if line[0] != "#"] == expected


def test_a_rank_that_was_not_there_keeps_its_own_numbers():
    model = lively_gpt()
    tensors = {k: v.t() if k.endswith(TRANSPOSED) else v
               for k, v in model.state_dict().items()}
    tensors["rng.cpu"] = torch.get_rng_state()[None]
    torch.manual_seed(5)
    expected = torch.get_rng_state()
    ranks = Ranks(torch.device("cpu"), False, 1, 1, 2)
    restore(training(model, DataLoader(None, 1, 16), ranks=ranks), FACTS, tensors)
    assert torch.equal(torch.get_rng_state(), expected)
