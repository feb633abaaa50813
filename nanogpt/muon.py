"""Muon: an update moves a matrix equally far in all directions (Jordan et al. 2024)."""

from collections import defaultdict

import torch

from nanogpt.fsdp import by_matrix, local

# applied five times, a s + b s^3 + c s^5 brings singular values s between 0.01 and 1 to between 0.7
# and 1.2; its slope at 0, a, is as steep as that allows (kellerjordan.github.io/posts/muon)
ROUNDS, (a, b, c) = 5, (3.4445, -4.7750, 2.0315)
MOST = 2**26  # how many numbers to orthogonalize at once: 256 MB in float32


def orthogonalize(G):
    """About U V^T for each matrix U S V^T of G (n, rows, columns): five Newton-Schulz rounds in
    G's dtype, each a polynomial that leaves U and V alone."""
    if G.size(1) > G.size(2):
        return orthogonalize(G.mT).mT  # X X^T is smallest with the short side first
    exact = G.device.type == "cpu" and G.dtype != torch.bfloat16  # on a GPU float32 may be TF32
    if exact and G.size(2) > 1.5 * G.size(1):
        A = G @ G.mT
        size = A.diagonal(dim1=1, dim2=2).sum(1)[:, None, None].clamp(min=1e-14)  # |G|^2
        return (polynomial(A / size) / size.sqrt()) @ G
    X = G / G.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # no singular value is above 1 now
    for _ in range(ROUNDS):
        A = X @ X.mT
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)  # b A + c A^2
        X = torch.baddbmm(X, B, X, beta=a)  # a X + B X
    return X


def polynomial(A):
    """Q, from A = X X^T, such that Q X is what the five rounds make of X: less work if X is wide.
    All factors are polynomials of A, so they commute, and P X has the Gram matrix P A P. Squaring
    the singular values costs half of the digits: float32 can spare them, bfloat16 cannot."""
    Q = torch.eye(A.size(1), dtype=A.dtype, device=A.device).expand_as(A)
    for k in range(ROUNDS):
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)  # this round is P = a I + B
        Q = torch.baddbmm(Q, B, Q, beta=a) if k else B + a * Q
        if k < ROUNDS - 1:
            PA = torch.baddbmm(A, B, A, beta=a)
            A = torch.baddbmm(PA, B, PA, beta=a)
    return Q


class Muon(torch.optim.Optimizer):
    """Orthogonalized momentum, for weight matrices; every parameter must have two dimensions.

    momentum 0.95 with Nesterov's look ahead: Jordan et al. 2024. weight_decay is decoupled, as in
    AdamW. An update's root mean square is 0.2 lr, which is typical of AdamW, so that one learning
    rate serves both (Liu et al. 2025, "Muon is scalable for LLM training", section 2.2). dtype:
    that of the five rounds. qkv: a matrix with three times as many rows as columns is attention's
    c_attn, and its queries, keys and values are three matrices."""

    def __init__(self, params, lr, weight_decay=0.1, momentum=0.95, dtype=torch.float32, qkv=False):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))
        self.dtype, self.qkv = dtype, qkv

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            alike = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    if not self.state[p]:  # also {}: resumed from before the first update
                        self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                    alike[p.shape].append(p)
            for shape, same in alike.items():
                n = max(1, MOST // shape.numel())
                for i in range(0, len(same), n):
                    self.move(same[i : i + n], group)

    def move(self, params, group):
        """Update matrices of the same shape, all at once."""
        ahead = torch.empty(len(params), *local(params[0]).shape, device=params[0].device)
        for p, G in zip(params, ahead, strict=True):
            grad, average = local(p.grad), local(self.state[p]["momentum_buffer"])
            average.lerp_(grad, 1 - group["momentum"])
            torch.lerp(grad, average, group["momentum"], out=G)
        rows, columns = params[0].shape
        if self.qkv and rows == 3 * columns:
            rows = columns  # of q, of k and of v
        # min(rows, columns) singular values near 1: a root mean square of 1 / sqrt(max(...))
        size = group["lr"] * (0.2 * max(rows, columns) ** 0.5)
        directions = by_matrix(
            lambda G: orthogonalize(G.reshape(-1, rows, columns)).reshape(G.shape),
            ahead.to(self.dtype), params[0])
        for p, direction in zip(map(local, params), directions, strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-size)


class MuonAdamW:
    """Muon and AdamW behind a single optimizer interface, with one `state` for all parameters."""

    def __init__(self, muon, adamw):
        self.parts, self.state = (muon, adamw), muon.state
        adamw.state = self.state

    @property
    def param_groups(self):
        return [group for part in self.parts for group in part.param_groups]

    def step(self):
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none=True):
        for part in self.parts:
            part.zero_grad(set_to_none)
