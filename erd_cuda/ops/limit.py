"""The limit of a residual: what is further off counts as if it were just so far off."""

from __future__ import annotations

import torch
from torch import Tensor


def is_clipped(residual: Tensor, bound: Tensor | float) -> Tensor:
    """Which coordinates of a weighted residual are beyond the limit.

    Args:
        residual: confidence * (keypoints - projection), 0 where the joint is missing.
        bound: the limit with the same weights; not positive where the joint is missing, whose
            residual stays 0 whatever its weight.
    """
    return (residual.abs() > bound) & (bound > 0)


def clipped(residual: Tensor, bound: Tensor | float) -> Tensor:
    """The residual with each coordinate in [-bound, bound], see `is_clipped`."""
    return torch.where(is_clipped(residual, bound), residual.sign() * bound, residual)
