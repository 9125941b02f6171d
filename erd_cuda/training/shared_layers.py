"""Layers that see a part of a batch and do what they would do in the whole batch.

Batch normalisation takes its statistics over the rows of all ranks, and dropout drops what it would
drop from these rows in a single process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from erd_cuda.modules import ResidualRegressor
from erd_cuda.ops.regressor import draw_seeds
from erd_cuda.training.dropout import kept_units
from erd_cuda.training.ranks import Ranks

__all__ = ["BatchPart", "regress_part", "shared_layers"]


@dataclass
class BatchPart:
    """Which rows of the current batch this rank has; written before every step.

    Attributes:
        ranks: all processes.
        total: rows of the whole batch.
    """

    ranks: Ranks
    total: int = 0

    @property
    def rows(self) -> slice:
        return self.ranks.part(self.total)


class _Normalize(Function):
    """``apply(x, weight, bias, offset, eps, ranks)``: BatchNorm of rows (n, C) of a batch (N, C).

    ``offset`` (C,) is what was to be added to x before; the mean takes it out again, so it counts
    in the mean only and has the gradient 0. Returns the result, and over the whole batch mean and
    unbiased variance. The variance is summed from differences to the mean and corrected by what
    that was rounded by, as in the operator for a whole batch. Gradients of weight and bias are this
    part's share, like those of all other parameters.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        offset: Tensor | None,
        eps: float,
        ranks: Ranks,
    ) -> tuple[Tensor, Tensor, Tensor]:
        width = x.shape[1]
        sums = torch.cat((x.sum(0, dtype=torch.float64), x.new_tensor([len(x)]).double()))
        ranks.sum_(sums)
        count = sums[width]
        mean = (sums[:width] / count).to(x.dtype)
        difference = x - mean
        sums = torch.cat(
            (
                difference.sum(0, dtype=torch.float64),
                difference.square().sum(0, dtype=torch.float64),
            )
        )
        ranks.sum_(sums)
        rest, square = (sums / count).chunk(2)
        variance = square - rest.square()
        inverse_std = (variance + eps).rsqrt().to(x.dtype)
        normalized = (difference - rest.to(x.dtype)) * inverse_std
        ctx.save_for_backward(normalized, weight, inverse_std, count)
        ctx.ranks = ranks
        mean = mean + rest.to(x.dtype)
        if offset is not None:
            mean = mean + offset
        unbiased = (variance * count / (count - 1)).to(x.dtype)
        ctx.mark_non_differentiable(mean, unbiased)
        return torch.addcmul(bias, normalized, weight), mean, unbiased

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        normalized, weight, inverse_std, count = ctx.saved_tensors
        of_bias = grad.sum(0, dtype=torch.float64)
        of_weight = (grad * normalized).sum(0, dtype=torch.float64)
        sums = torch.cat((of_bias, of_weight))
        ctx.ranks.sum_(sums)
        mean, slope = (sums / count).to(grad.dtype).chunk(2)
        of_x = (grad - mean - normalized * slope) * (weight * inverse_std)
        of_offset = torch.zeros_like(weight) if ctx.needs_input_grad[3] else None
        return of_x, of_weight.to(grad.dtype), of_bias.to(grad.dtype), of_offset, None, None


class _SharedBatchNorm(nn.Module):
    """In the place of a BatchNorm1d with rows (n, C), whose parameters and buffers it uses."""

    def __init__(self, norm: nn.BatchNorm1d, part: BatchPart) -> None:
        super().__init__()
        self.norm = norm
        self.part = part

    @property
    def num_features(self) -> int:
        return self.norm.num_features

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        y, mean, variance = _Normalize.apply(
            x, norm.weight, norm.bias, None, norm.eps, self.part.ranks
        )
        _track(norm, mean, variance)
        return y


class _SharedDropout(nn.Module):
    """In the place of a Dropout: draws for the whole batch and drops from the rows at hand.

    A sample may be several rows, one after the other (a row for each joint).
    """

    def __init__(self, probability: float, part: BatchPart) -> None:
        super().__init__()
        self.probability = probability
        self.part = part
        self._per_sample = 1

    def forward(self, x: Tensor) -> Tensor:
        if self.probability == 0:
            return x
        rows = self.part.rows
        if rows.stop > rows.start:
            # A ragged last batch may leave this rank without any.
            self._per_sample = len(x) // (rows.stop - rows.start)
        ones = x.new_ones(self.part.total * self._per_sample, *x.shape[1:])
        factors = F.dropout(ones, self.probability)
        return x * factors[rows.start * self._per_sample : rows.stop * self._per_sample]


@contextmanager
def shared_layers(module: nn.Module, part: BatchPart) -> Iterator[None]:
    """Batch normalisation and dropout of the module over whole batches, while the block lasts."""
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            other: nn.Module
            if isinstance(child, nn.BatchNorm1d):
                other = _SharedBatchNorm(child, part)
            elif isinstance(child, nn.Dropout):
                other = _SharedDropout(child.p, part)
            else:
                continue
            replaced.append((parent, name, child))
            setattr(parent, name, other)
    try:
        yield
    finally:
        for parent, name, child in replaced:
            setattr(parent, name, child)


def regress_part(regressor: ResidualRegressor, features: Tensor, part: BatchPart) -> Tensor:
    """What `ResidualRegressor` in train mode makes of a batch (N, F), of the rows of one rank.

    The same units are dropped and the running statistics move in the same way.

    Args:
        regressor: in train mode.
        features: (n, F), this rank's rows.
        part: which rows those are.

    Returns:
        (n, 3 J) mm.
    """
    norm, probability = regressor.norm, regressor.dropout.p
    factors: Tensor | tuple[None, ...] = (None, None, None)
    if probability > 0:
        seed = draw_seeds(features.device)
        kept = kept_units(seed, part.rows, regressor.width, probability)
        factors = kept.to(features.dtype) / (1 - probability)

    def drop(values: Tensor, factor: Tensor | None) -> Tensor:
        return values if factor is None else values * factor

    h, mean, variance = _Normalize.apply(
        F.linear(features, regressor.input.weight),
        norm.weight,
        norm.bias,
        regressor.input.bias,
        norm.eps,
        part.ranks,
    )
    _track(norm, mean, variance)
    h = drop(torch.relu(h), factors[0])
    for layer, factor in zip(regressor.hidden, factors[1:], strict=True):
        change = layer(h)
        h = h + drop(torch.relu(change) if regressor.block == "relu" else change, factor)
    increment: Tensor = regressor.output(h)
    return increment


@torch.no_grad()
def _track(norm: nn.BatchNorm1d, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics; this package's networks all have them, and a momentum."""
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.num_batches_tracked is not None and norm.momentum is not None
    norm.num_batches_tracked.add_(1)
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(variance, norm.momentum)
