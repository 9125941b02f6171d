"""Where a lifter, which knows nothing of missing joints, is to see them."""

from __future__ import annotations

import torch
from torch import Tensor


def place_missing_joints(keypoints: Tensor, confidence: Tensor, mean2d: Tensor) -> Tensor:
    """Keypoints (..., J, 2) in px with the missing joints where they are likely to be.

    A missing joint lies at its training mean, moved by as much as the sample's other joints are off
    theirs on average: so it stays with the person, wherever in the picture that is. Without other
    joints it lies at its mean.

    Args:
        keypoints: (..., J, 2) px; what it says of missing joints is not looked at.
        confidence: (..., J); not positive: missing.
        mean2d: (J, 2) px.
    """
    seen = (confidence > 0)[..., None]
    moved = torch.where(seen, keypoints - mean2d, 0.0).sum(dim=-2, keepdim=True)
    moved = moved / seen.sum(dim=-2, keepdim=True).clamp(min=1)
    return torch.where(seen, keypoints, mean2d + moved)


def mean_of_seen(keypoints: Tensor, confidence: Tensor) -> Tensor:
    """Mean (J, 2) over the samples (N, J, 2) that a joint is not missing in.

    A joint that no sample has gets the mean of what stands in its place.
    """
    seen = confidence > 0
    seen = (seen | ~seen.any(dim=0))[..., None]
    return torch.where(seen, keypoints, 0.0).sum(dim=0, dtype=torch.float64) / seen.sum(dim=0)
