"""Taking the lens distortion out of 2D keypoints, so that Eq. 5's pinhole camera explains them.

The distortion models have no inverse in closed form. Newton's method finds one, and what it finds
is checked: projecting the ray with `erd_cuda.project` must give the keypoint back, and the ray must
lie before the point where the radial polynomial turns around. Beyond that point, where the image
folds over itself, a keypoint belongs to no ray of a real lens.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from erd_cuda.camera import Camera
from erd_cuda.data.dataset import PoseDataset
from erd_cuda.data.keypoints import BATCH, fill_gaps

_STEPS = 20  # Human3.6M's lenses need four or five
_TOLERANCE = 1e-4  # px between a keypoint and the projection of its ray
_RAY = 1000.0  # mm, depth at which a ray is projected for the check


def undistorted(dataset: PoseDataset) -> PoseDataset:
    """The same samples with 2D as pinhole cameras of the same intrinsics would have seen it.

    A joint with confidence 0 whose place cannot be undistorted moves to the mean of its sample's
    other joints, as missing joints are placed on reading.

    Raises:
        ValueError: the cameras have no distortion, or a keypoint that counts lies where the lens
            images nothing.
    """
    if dataset.camera.is_pinhole:
        raise ValueError(
            f"undistort: the 2D of {dataset.name} ({dataset.keypoint_source}) belongs to pinhole "
            "cameras, which have no distortion to take out."
        )
    points = undistort_points(dataset.keypoints, dataset.camera)
    known = points.isfinite().all(dim=-1)
    counts = known.new_ones(()) if dataset.confidence is None else dataset.confidence > 0
    refused = (counts & ~known).nonzero()
    if len(refused):
        sample, joint = refused[0].tolist()
        raise ValueError(_refusal(dataset, sample, joint, len(refused)))
    return replace(
        dataset,
        keypoints=fill_gaps(points, known, dataset.camera.intrinsics),
        camera=Camera.pinhole(dataset.camera.intrinsics),
        keypoint_source=f"{dataset.keypoint_source}, undistorted",
    )


def undistort_points(keypoints: Tensor, camera: Camera) -> Tensor:
    """Where pinhole cameras would have seen the keypoints of cameras with distortion.

    Computed in float64, checked by projecting back; for both distortion models of `Camera`.

    Args:
        keypoints: (N, J, 2) px, any floating dtype; J up to 128.
        camera: batch (N,) with model ``"opencv"`` or ``"h36m"``.

    Returns:
        (N, J, 2) px in the keypoints' dtype; NaN where no ray through the lens gives the keypoint.
    """
    parts = [
        _undistort(keypoints[start : start + BATCH].double(), camera[start : start + BATCH])
        for start in range(0, len(keypoints), BATCH)
    ]
    return torch.cat(parts).to(keypoints.dtype) if parts else keypoints.clone()


def _undistort(keypoints: Tensor, camera: Camera) -> Tensor:
    from erd_cuda.ops import project

    camera = camera.to(torch.float64)
    assert camera.distortion is not None
    focal, centre = camera.intrinsics[:, None, :2], camera.intrinsics[:, None, 2:]
    seen = (keypoints - centre) / focal
    radial, tangential, factor = _coefficients(camera.distortion, camera.model)
    ray = seen.clone()
    for _ in range(_STEPS):
        image, jacobian = _distorted(ray, radial, tangential, factor)
        step = _solve(jacobian, image - seen)
        ray = ray - step
        if not bool((step.abs() > 1e-14).any()):
            break
    _, jacobian = _distorted(ray, radial, tangential, factor)
    again = project(
        torch.nn.functional.pad(ray, (0, 1), value=1.0) * _RAY, ray.new_zeros(len(ray), 3), camera
    )
    sound = (
        ((again - keypoints).abs().amax(dim=-1) < _TOLERANCE)
        & (ray.square().sum(dim=-1) < _turning_points(radial)[:, None])
        & (_determinant(jacobian) > 0)
    )
    return torch.where(sound[..., None], ray * focal + centre, torch.nan)


def _coefficients(distortion: Tensor, model: str) -> tuple[Tensor, Tensor, float]:
    """Radial k1, k2, k3 (N, 3); the vector of the tangential terms (N, 2); and their factor in the
    part along the ray, which OpenCV has and Human3.6M has not.
    """
    if model == "h36m":
        return distortion[:, :3], distortion[:, 3:], 1.0
    # OpenCV's order is k1, k2, p1, p2, k3, and its p1 belongs to y.
    return distortion[:, [0, 1, 4]], distortion[:, [3, 2]], 2.0


def _distorted(
    ray: Tensor, radial: Tensor, tangential: Tensor, factor: float
) -> tuple[Tensor, Tensor]:
    """Normalised image points (N, J, 2) of rays (N, J, 2), and the Jacobian (N, J, 2, 2)."""
    k1, k2, k3 = (radial[:, index, None, None] for index in range(3))
    p = tangential[:, None]
    r2 = ray.square().sum(dim=-1, keepdim=True)
    along = 1 + r2 * (k1 + r2 * (k2 + r2 * k3)) + factor * (p * ray).sum(dim=-1, keepdim=True)
    image = ray * along + p * r2
    slope = 2 * (k1 + r2 * (2 * k2 + 3 * r2 * k3)) * ray + factor * p
    jacobian = (
        along[..., None] * torch.eye(2, dtype=ray.dtype)
        + ray[..., :, None] * slope[..., None, :]
        + 2 * p.expand_as(ray)[..., :, None] * ray[..., None, :]
    )
    return image, jacobian


def _determinant(matrix: Tensor) -> Tensor:
    return matrix[..., 0, 0] * matrix[..., 1, 1] - matrix[..., 0, 1] * matrix[..., 1, 0]


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Solutions (..., 2) of 2 x 2 systems by Cramer's rule; LAPACK would take a call for each."""
    x = matrix[..., 1, 1] * right[..., 0] - matrix[..., 0, 1] * right[..., 1]
    y = matrix[..., 0, 0] * right[..., 1] - matrix[..., 1, 0] * right[..., 0]
    return torch.stack([x, y], dim=-1) / _determinant(matrix)[..., None]


def _turning_points(radial: Tensor) -> Tensor:
    """Squared radius (N,) at which each lens' radial polynomial turns around; inf if it never does.

    r (1 + k1 r^2 + k2 r^4 + k3 r^6) turns where 1 + 3 k1 s + 5 k2 s^2 + 7 k3 s^3 = 0, s = r^2.
    """
    # Samples of one camera follow each other, so few polynomials are solved.
    lenses, which = radial.unique_consecutive(dim=0, return_inverse=True)
    limits = []
    for k1, k2, k3 in lenses.tolist():
        roots = np.roots([7 * k3, 5 * k2, 3 * k1, 1.0])
        real = roots.real[(np.abs(roots.imag) < 1e-9) & (roots.real > 0)]
        limits.append(float(real.min()) if len(real) else float("inf"))
    return radial.new_tensor(limits)[which]


def _refusal(dataset: PoseDataset, sample: int, joint: int, count: int) -> str:
    x, y = dataset.keypoints[sample, joint].tolist()
    take, view = dataset.takes[int(dataset.take[sample])], int(dataset.view[sample])
    others = "" if count == 1 else f" (and {count - 1} further keypoints)"
    return (
        f"undistort: {dataset.keypoint_source} has {dataset.skeleton.joints[joint]} of {take}, "
        f"camera {view}, frame {int(dataset.frame[sample])} at ({x:.1f}, {y:.1f}) px, where the "
        f"lens images nothing and its distortion cannot be undone{others}."
    )
