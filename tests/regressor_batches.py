"""Batches for the regressor in train mode, and the same network from torch's own operators."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from erd_cuda.ops.regressor import BatchResult, regress_batch

NAMES = (
    "features", "w_in", "b_in", "gamma", "beta", "w_hidden0", "b_hidden0", "w_hidden1", "b_hidden1",
    "w_out", "b_out",
)  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """Inputs of `regress_batch` in the order of NAMES, and its options."""

    tensors: tuple[Tensor, ...]
    dropout: float = 0.0
    relu_block: bool = False
    seed: int = 0
    eps: float = 1e-5

    def __call__(self, *tensors: Tensor) -> BatchResult:
        """The operator, on other tensors than its own if there are any."""
        tensors = tensors or self.tensors
        seed = torch.tensor([self.seed], device=tensors[0].device) if self.dropout else None
        return regress_batch(
            *tensors, dropout=self.dropout, eps=self.eps, relu_block=self.relu_block, seed=seed
        )

    def layers(self, kept: Tensor, *tensors: Tensor) -> Tensor:
        """The increment, with units kept as (3, N, H) says."""
        x, w_in, b_in, gamma, beta, w0, b0, w1, b1, w_out, b_out = tensors or self.tensors
        factors = kept.to(x) / (1 - self.dropout)
        normed = F.batch_norm(F.linear(x, w_in, b_in), None, None, gamma, beta, True, 0.0, self.eps)
        h = factors[0] * torch.relu(normed)
        for weight, bias, factor in ((w0, b0, factors[1]), (w1, b1, factors[2])):
            change = F.linear(h, weight, bias)
            h = h + factor * (torch.relu(change) if self.relu_block else change)
        return F.linear(h, w_out, b_out)

    def to(self, where: str | torch.dtype) -> Batch:
        tensors = tuple(torch.Tensor.to(t.detach(), where).requires_grad_() for t in self.tensors)
        return Batch(tensors, self.dropout, self.relu_block, self.seed, self.eps)


def make_batch(
    rows: int,
    features: int,
    width: int,
    outputs: int,
    dropout: float = 0.0,
    relu_block: bool = False,
    seed: int = 0x1234_5678_9ABC,
) -> Batch:
    """A float64 batch of trained-network size: weights shrink with the number of inputs."""
    generator = torch.Generator().manual_seed(11)

    def normal(*shape: int) -> Tensor:
        scale = shape[-1] ** -0.5 if len(shape) == 2 else 0.3
        return scale * torch.randn(shape, generator=generator, dtype=torch.float64)

    tensors = [
        normal(rows, features) * features**0.5,
        normal(width, features),
        normal(width),
        normal(width) + 1,
        normal(width),
        normal(width, width),
        normal(width),
        normal(width, width),
        normal(width),
        normal(outputs, width),
        normal(outputs),
    ]
    return Batch(tuple(t.requires_grad_() for t in tensors), dropout, relu_block, seed)
