"""Muon under --shard model: one rank makes each matrix orthogonal, and the update is Muon's."""

import os

import pytest
import torch
import torch._dynamo  # noqa: F401 (every optimizer does, which takes seconds: once, before forking)
import torch.distributed as dist
from helpers import free_port, together

import nanogpt.muon
from nanogpt.fsdp import by_matrix
from nanogpt.muon import Muon
from nanogpt.ranks import init_ranks

# five alike, one alone; fewer rows than ranks; rows that do not divide evenly
SHAPES = [(24, 8)] * 5 + [(8, 24)] + [(3, 5)] * 2 + [(2, 7)] * 3 + [(7, 7)]


def updates(rank, world, port, dtype):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    init_ranks("cpu")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh, generator = init_device_mesh("cpu", (world,)), torch.Generator().manual_seed(0)

    def divide(whole):
        return distribute_tensor(whole, mesh, [Shard(0)], src_data_rank=None)

    whole = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    parts = [torch.nn.Parameter(divide(p.detach())) for p in whole]
    optimizers = [Muon(params, 0.1, 0.5, dtype=dtype) for params in (whole, parts)]
    counts, original = [0, 0], nanogpt.muon.orthogonalize
    for _ in range(3):
        for p, part in zip(whole, parts, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            part.grad = divide(p.grad)
        for i, optimizer in enumerate(optimizers):
            def counted(G, i=i):
                counts[i] += len(G) * (G.size(1) <= G.size(2))  # tall ones come again, as wide
                return original(G)

            nanogpt.muon.orthogonalize = counted
            optimizer.step()
    for p, part in zip(whole, parts, strict=True):
        assert torch.equal(part.full_tensor(), p)
        average = optimizers[1].state[part]["momentum_buffer"]
        assert average.to_local().shape == part.to_local().shape
        assert torch.equal(average.full_tensor(), optimizers[0].state[p]["momentum_buffer"])
    n = torch.tensor(counts[1])
    dist.all_reduce(n)
    assert n == counts[0] == 3 * len(SHAPES), "a matrix was left out, or made twice"
    assert counts[1] < counts[0]
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("world, dtype", [(2, torch.float32), (3, torch.bfloat16),
                                          (4, torch.float32)])
def test_the_update_is_muons_and_no_matrix_is_made_twice(world, dtype):
    together(updates, world, free_port(), dtype)


def test_alone_it_is_a_plain_call():
    x = torch.randn(2, 3, 4)
    assert by_matrix(lambda G: 2 * G, x, torch.empty(3, 4)).equal(2 * x)
