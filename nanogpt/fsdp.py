"""Weights, gradients and averages divided among the ranks, by PyTorch's fully_shard (FSDP2).

ZeRO, stage 3: Rajbhandari et al. 2020, arXiv 1910.02054. A divided tensor is a DTensor: each rank
has some of its rows.
"""

import contextlib
import copy
import math

import torch
import torch.distributed as dist


def full(x):
    """The whole tensor, where `x` is a divided one (all ranks must call it together); else x."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def local(x):
    """This rank's rows, where `x` is a divided tensor; else x."""
    return x.to_local() if hasattr(x, "to_local") else x


def divide_like(p, whole):
    """A tensor of p's shape that all ranks have, divided as `p` is."""
    if not hasattr(p, "full_tensor") or whole.shape != p.shape:  # AdamW's count of steps
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, p.device_mesh, p.placements, src_data_rank=None)


def by_matrix(function, parts, p):
    """function(n matrices like `p`), of which each rank has the rows `parts` (n, rows, columns).
    Rank r gets the matrices r, r + ranks, ... whole, and sends their results' rows back."""
    if not hasattr(p, "full_tensor"):
        return function(parts)
    world, rank, (R, C) = dist.get_world_size(), dist.get_rank(), p.shape
    most = math.ceil(R / world)
    rows = [max(0, min(most, R - r * most)) for r in range(world)]  # of each rank
    n = [len(parts[r::world]) for r in range(world)]  # matrices
    found = exchange([parts[r::world] for r in range(world)], [(n[rank], k, C) for k in rows])
    whole = torch.cat(found, dim=1)
    done = function(whole) if len(whole) else whole
    for r, part in enumerate(exchange(done.split(rows, dim=1), [(k, rows[rank], C) for k in n])):
        parts[r::world] = part
    return parts


def exchange(tensors, shapes):
    """Send tensors[r] to rank r. Returns the tensors that every rank sent here, of these shapes."""
    sizes = [math.prod(shape) for shape in shapes]
    got = tensors[0].new_empty(sum(sizes))
    dist.all_to_all_single(got, torch.cat([x.flatten() for x in tensors]), sizes,
                           [x.numel() for x in tensors])
    return [x.view(shape) for x, shape in zip(got.split(sizes), shapes, strict=True)]


def trained(t):
    """The network whose parameters are updated: a divided copy of `t.net`, or `t.net` itself."""
    return t.model if hasattr(t.model, "set_requires_gradient_sync") else t.net


def shard_network(net, ranks, compiled):
    """A copy of `net` to train, with its weights divided among the ranks. From now on, `net` itself
    has weights only inside whole_net()."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    for p in net.parameters():
        dist.broadcast(p.detach(), src=0)  # to be sure, as DDP does
    model = copy.deepcopy(net, {id(p): p for p in net.parameters()})  # of all but the weights
    mesh = init_device_mesh(ranks.device.type, (ranks.ddp_world_size,))
    # a GPU's blocks get their weights in the dtype of the products: half of the traffic. autocast
    # keeps norms and the sums between blocks in float32; a CPU's norms refuse bfloat16 weights
    half = None if ranks.device.type == "cpu" else ranks.dtype
    policy = MixedPrecisionPolicy(half, torch.float32, cast_forward_inputs=False)
    for block in model.transformer.h:
        if compiled:
            block.forward = torch.compile(block.forward, dynamic=False)
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # the embeddings, the vocabulary's matrix and the last norm: the backward pass begins with what
    # the forward pass ends with
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    # accumulate_gradients() tells it as it tells DDP
    model.require_backward_grad_sync = True
    model.register_forward_pre_hook(
        lambda model, _: model.set_requires_gradient_sync(model.require_backward_grad_sync))
    empty(net)
    return model


def empty(net):
    """Free the memory of a network's weights: one NaN stands for each matrix and vector."""
    for p in net.parameters():
        p.grad, p.data = None, p.new_full((), math.nan).expand(p.shape)


@contextlib.contextmanager
def whole_net(t):
    """Inside this block, `t.net` has all weights on every rank, which can evaluate, sample or look
    for a fault without the others. All ranks must enter it together."""
    divided = trained(t) is not t.net
    if divided:
        for p, part in zip(t.net.parameters(), t.model.parameters(), strict=True):
            p.data = full(part.detach())
    try:
        yield
    finally:
        if divided:
            empty(t.net)
