"""The place where people without cameras of their own are filmed: a floor, and four cameras on it.

Procedural motion and motion capture files come without images. Cameras like Human3.6M's, drawn at
random for each person and take, stand in for those that were not there.
"""

from __future__ import annotations

import numpy as np

from erd_cuda.data.extrinsics import Array, CameraRig

BOX = 3.2  # metres; the side of the square that people move in

# Means over Human3.6M's four published cameras, and spreads that cover them.
_INTRINSICS = np.array([1147.0, 1146.0, 514.0, 507.0])
_INTRINSICS_SPREAD = np.array([2.5, 2.5, 5.0, 6.0])
_DISTORTION = np.array([-0.20, 0.233, -0.0025, -0.0004, -0.0018])
_DISTORTION_SPREAD = np.array([0.005, 0.015, 0.006, 0.001, 0.0008])


def into_box(path: Array) -> Array:
    """A path on the ground, centred, and scaled down to `BOX` where it is longer than that.

    Somebody who walks further than cameras at 4 to 6 m can see then slides a little; the poses are
    untouched.

    Args:
        path: (T, 2) metres, finite.

    Returns:
        (T, 2) metres, the middle of its bounding box at 0.
    """
    extent = np.ptp(path, axis=0).max()
    if extent > BOX:
        path = path * (BOX / extent)
    return np.asarray(path - (path.max(axis=0) + path.min(axis=0)) / 2.0)


def random_lenses(rng: np.random.Generator) -> tuple[Array, Array]:
    """Intrinsics (4, 4) in px and Human3.6M distortion (4, 5) of a person's four cameras."""
    intrinsics = _INTRINSICS + _INTRINSICS_SPREAD * rng.uniform(-1.0, 1.0, (4, 4))
    distortion = _DISTORTION + _DISTORTION_SPREAD * rng.uniform(-1.0, 1.0, (4, 5))
    return intrinsics, distortion


def random_rig(
    rng: np.random.Generator, intrinsics: Array, distortion: Array, path: Array
) -> CameraRig:
    """Four cameras that look at a path from all around.

    They are 90 +- 20 degrees apart, 4 to 6 m away and 1.2 to 1.9 m high, as in mocap17.

    Args:
        rng: where the places are drawn from.
        intrinsics, distortion: of `random_lenses`.
        path: (T, 3) positions of the hip in the world, metres, z up, finite.
    """
    azimuth = np.radians(
        rng.uniform(0.0, 360.0) + 90.0 * np.arange(4) + rng.uniform(-20.0, 20.0, 4)
    )
    distance = rng.uniform(4.0, 6.0, 4)
    ground = path.mean(axis=0) * [1.0, 1.0, 0.0]
    outward = np.stack([np.cos(azimuth), np.sin(azimuth), np.zeros(4)], axis=1)
    centre = ground + outward * distance[:, None] + [0.0, 0.0, 1.0] * rng.uniform(1.2, 1.9, (4, 1))
    target = ground + [0.0, 0.0, 1.0] * (path[:, 2].mean() + rng.uniform(-0.1, 0.1, (4, 1)))
    forward = target - centre
    forward /= np.linalg.norm(forward, axis=1, keepdims=True)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    rotation = np.stack([right, np.cross(forward, right), forward], axis=1)
    return CameraRig(intrinsics, distortion, "h36m", rotation, centre * 1000.0)
