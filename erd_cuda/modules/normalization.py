"""Means and standard deviations of training poses, and the z-scores made with them."""

from __future__ import annotations

import torch
from torch import Tensor

# A coordinate whose deviation is this small beside its own mean, or beside the widest coordinate,
# does not vary: what is left is the rounding of its float32 source.
_CONSTANT = 1e-6
# Rows taken to float64 at a time, so that 1.5 million poses need no second copy of themselves.
_CHUNK = 65536


def mean_and_std(name: str, values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation over the first dimension, in float64.

    A coordinate that does not vary (the root joint of a root-relative pose) gets a deviation of
    exactly 0; `scale_of` says what it is divided by.

    Args:
        name: what to call ``values`` in an error message.
        values: (N, ...), any floating point dtype.

    Returns:
        mean and std, both of shape (...), float64, on the device of ``values``.

    Raises:
        ValueError: no rows, or a NaN or infinity among them.
    """
    count = values.shape[0]
    if count == 0:
        raise ValueError(f"{name} holds no poses, expected at least one to take statistics of.")
    mean = torch.zeros(values.shape[1:], dtype=torch.float64, device=values.device)
    for chunk in values.detach().split(_CHUNK):
        mean += chunk.double().sum(dim=0)
    mean /= count
    if not torch.isfinite(mean).all():
        raise ValueError(
            f"{name} holds NaN or infinity, expected finite values; leave samples with missing "
            f"joints out of the statistics."
        )
    variance = torch.zeros_like(mean)
    for chunk in values.detach().split(_CHUNK):
        variance += (chunk.double() - mean).square().sum(dim=0)
    std = (variance / count).sqrt()
    widest = std.max() if std.numel() else std.new_zeros(())
    constant = std <= _CONSTANT * torch.maximum(mean.abs(), widest)
    return mean, torch.where(constant, 0.0, std)


def scale_of(std: Tensor) -> Tensor:
    """What z-scores divide by: ``std``, and 1 where a coordinate does not vary (std 0)."""
    return torch.where(std > 0, std, 1.0)
