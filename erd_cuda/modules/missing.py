"""Where a lifter, which knows nothing of missing joints, is to see them."""

from __future__ import annotations

import torch
from torch import Tensor


def placed(keypoints: Tensor, confidence: Tensor, mean2d: Tensor) -> Tensor:
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
