"""Ranks take disjoint rows, and together what one process would have taken."""

import pytest
import torch
from helpers import stream_of

from train_gpt2 import DataLoader, Ranks


@pytest.mark.parametrize("world, B", [(2, 4), (4, 2), (8, 1), (2, 2), (1, 2)])
@pytest.mark.parametrize("seed", [None, 3])
def test_tokens_of_a_step_do_not_depend_on_ranks_or_B(world, B, seed):
    T, total = 5, 40
    tokens = [256 if i % 9 == 0 else i % 250 for i in range(123)]
    one = DataLoader(stream_of(tokens, seed=seed, parts=3), total // T, T)
    ranks = [DataLoader(stream_of(tokens, seed=seed, parts=3), B, T, rank, world)
             for rank in range(world)]
    for _ in range(12):  # past shard ends and epoch ends
        x, y = one.next_batch()
        rows = []
        for _ in range(total // (B * T * world)):
            rows += [loader.next_batch() for loader in ranks]
        assert torch.equal(torch.cat([row[0] for row in rows]), x)
        assert torch.equal(torch.cat([row[1] for row in rows]), y)
        assert {loader.position for loader in ranks} == {one.position}


def test_slices_are_disjoint():
    ranks = [DataLoader(stream_of(range(250)), 2, 4, rank, 4) for rank in range(4)]
    taken = [token for loader in ranks for token in loader.next_batch()[0].flatten().tolist()]
    assert sorted(taken) == list(range(32))


def test_rank_0_alone_is_the_master():
    cpu = torch.device("cpu")
    assert Ranks(cpu).master_process and Ranks(cpu, True, 0, 0, 4).master_process
    assert not Ranks(cpu, True, 1, 1, 4).master_process
