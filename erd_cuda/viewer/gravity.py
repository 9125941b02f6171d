"""Which way is up, where a data set says nothing about how its camera was tilted."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from erd_cuda.viewer.sequence import as_array

STILL = 200.0  # mm/s; a joint on the ground hardly moves
NEAR = 100.0  # mm; both feet (or knees, or hips) may rest on the ground, at unlike heights
PRIOR = 60.0  # mm; contact points spread less than this in depth say little about the tilt


def estimate_up(points: Tensor, fps: float) -> Tensor:
    """Estimate the direction away from the ground in the camera frame.

    The camera is taken to stand upright (no roll), tilted up or down only. In every frame the
    lowest joints, if nearly at rest, touch the ground; the ground is the plane through these
    points that is level from left to right (ridge regression of height on depth, which falls back
    to a level camera where the contacts do not spread in depth). Good to about 2 degrees where
    people walk about or stand with their feet apart, and no worse than a level camera otherwise.

    Args:
        points: (T, J, 3) joints in the camera frame in mm, consecutive frames.
        fps: frames per second.

    Returns:
        (3,) float64 unit vector; ``(0, -1, 0)`` for a level camera.
    """
    joints = as_array(points)
    level = torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64)
    if len(joints) < 2:
        return level
    speed = np.linalg.norm(np.diff(joints, axis=0), axis=-1) * fps
    low = joints[:-1, :, 1].max(axis=1, keepdims=True) - NEAR
    contact = joints[:-1][(speed < STILL) & (joints[:-1, :, 1] > low)]
    if len(contact) < 2:
        return level
    height, depth = contact[:, 1], contact[:, 2]
    spread = depth - depth.mean()
    slope = float((spread * (height - height.mean())).mean() / ((spread**2).mean() + PRIOR**2))
    return torch.tensor([0.0, -1.0, slope], dtype=torch.float64) / float(np.hypot(1.0, slope))
