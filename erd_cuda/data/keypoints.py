"""The 2D keypoints of samples: projected from the 3D, or taken from detections with their gaps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from erd_cuda.camera import Camera

# Samples worked on at a time: large enough to amortise the call, small enough for float64 copies.
BATCH = 65536


def project_samples(pose: Tensor, root: Tensor, camera: Camera) -> Tensor:
    """2D of all samples, float32, computed in float64 and in batches."""
    from erd_cuda.ops import project

    parts = []
    for start in range(0, len(pose), BATCH):
        part = slice(start, start + BATCH)
        parts.append(
            project(
                pose[part].double(), root[part].double(), camera[part].to(torch.float64)
            ).float()
        )
    return torch.cat(parts) if parts else pose.new_zeros((0, pose.shape[1], 2))


def with_confidence(
    views: Sequence[NDArray[Any]], frames: NDArray[Any], joints: list[int]
) -> NDArray[np.float32]:
    """(C * T, J, 3): x, y, confidence, the latter NaN in views that have none."""
    parts = []
    for view in views:
        chosen = np.asarray(view[frames][:, joints], dtype=np.float32)
        part = np.full((*chosen.shape[:2], 3), np.nan, dtype=np.float32)
        part[..., : chosen.shape[-1]] = chosen
        if chosen.shape[-1] == 3:
            part[..., 2] = np.where(np.isfinite(chosen[..., 2]), chosen[..., 2], 0.0)
        parts.append(part)
    return np.concatenate(parts)


def fill_missing(points: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor | None]:
    """Keypoints without gaps, and their confidence where it says anything.

    A keypoint that is not finite gets confidence 0 and the place that `fill_gaps` gives it.

    Args:
        points: (N, J, 3) x, y in px and confidence, NaN where there is none.
        intrinsics: (N, 4) fx, fy, cx, cy in px.

    Returns:
        (N, J, 2) keypoints, and (N, J) confidences, or None where all are found and none is rated.
    """
    xy, score = points[..., :2].contiguous(), points[..., 2]
    finite = xy.isfinite().all(dim=-1)
    if bool(finite.all()) and bool(score.isnan().all()):
        return xy, None
    confidence = torch.where(score.isnan(), torch.ones_like(score), score)
    confidence = torch.where(finite, confidence, torch.zeros_like(confidence))
    return fill_gaps(xy, finite, intrinsics), confidence


def fill_gaps(xy: Tensor, known: Tensor, intrinsics: Tensor) -> Tensor:
    """Keypoints (N, J, 2) with those that are not ``known`` (N, J) at the mean of the sample's
    others, or at the principal point where there are no others.

    A lifter without a notion of missing joints then gets numbers that are not far off.
    """
    seen = known.unsqueeze(-1)
    total = seen.sum(dim=1)
    mean = torch.where(seen, xy, torch.zeros_like(xy)).sum(dim=1) / total.clamp(min=1)
    mean = torch.where(total > 0, mean, intrinsics[:, 2:])
    return torch.where(seen, xy, mean.unsqueeze(1))
