"""The limit of a residual: a joint found in the wrong place counts as much as one found near it."""

from __future__ import annotations

import torch
from torch import Tensor


def is_beyond(residual: Tensor, bound: Tensor | float) -> Tensor:
    """Where a coordinate of a weighted residual is cut.

    Args:
        residual: confidence * (keypoints - projection), 0 where the joint is missing.
        bound: the limit with the same weights; not positive where the joint is missing, whose
            residual stays 0 whatever its weight.
    """
    return (residual.abs() > bound) & (torch.as_tensor(bound, device=residual.device) > 0)


def within(residual: Tensor, bound: Tensor | float) -> Tensor:
    """The residual with each coordinate in [-bound, bound], see `is_beyond`."""
    return torch.where(is_beyond(residual, bound), residual.sign() * bound, residual)
