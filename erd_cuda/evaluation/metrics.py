"""Errors between predicted and true 3D poses, one number a pose.

All three metrics take poses of any batch shape and return the error of every pose in the poses' own
unit (millimetres in this package). Averaging is left to the caller, because the field averages per
action first.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["mpjpe", "n_mpjpe", "p_mpjpe", "pose_errors"]


def mpjpe(prediction: Tensor, target: Tensor, root_joint: int | None = 0) -> Tensor:
    """Mean per-joint position error after moving both root joints to the origin ("Protocol 1").

    ``mean over j of | (p_j - p_root) - (q_j - q_root) |``

    Args:
        prediction: Poses ``(..., J, 3)``, float32 or float64.
        target: True poses ``(..., J, 3)``, same shape, dtype and device.
        root_joint: Index of the joint both poses are aligned at; None to compare them as they are,
            for skeletons whose origin is no joint (:attr:`erd_cuda.data.Skeleton.root_joint`).

    Returns:
        Error of every pose ``(...)``, in the poses' unit. A pose with a NaN has the error NaN.

    Raises:
        ValueError: The shapes differ, are not ``(..., J, 3)``, or ``root_joint`` is not a joint.
        TypeError: The dtypes differ or are not float32 or float64.
    """
    _check(prediction, target, root_joint)
    return _mean_distance(_rooted(prediction, root_joint), _rooted(target, root_joint))


def n_mpjpe(prediction: Tensor, target: Tensor, root_joint: int | None = 0) -> Tensor:
    """Normalised MPJPE: as :func:`mpjpe`, after the prediction is scaled to fit the target best.

    With both poses root-aligned, ``s = sum_j p_j . q_j / sum_j |p_j|^2`` minimises ``sum_j |s p_j -
    q_j|^2`` (Rhodin et al., CVPR 2018). A prediction without extent keeps the scale 0.

    Args, returns and errors are those of :func:`mpjpe`.
    """
    _check(prediction, target, root_joint)
    prediction, target = _rooted(prediction, root_joint), _rooted(target, root_joint)
    scale = _safe_ratio(_dot(prediction, target), _dot(prediction, prediction))
    return _mean_distance(scale[..., None, None] * prediction, target)


def p_mpjpe(prediction: Tensor, target: Tensor) -> Tensor:
    """MPJPE after the best similarity (rotation, translation, scale), reflections excluded
    ("Protocol 2").

    Procrustes by the singular value decomposition of the 3 x 3 covariance of the centred poses
    (Umeyama, PAMI 1991): with ``P^T Q = U S V^T`` the rotation is ``U D V^T``, where ``D`` flips
    the axis of the smallest singular value if ``U V^T`` is a reflection, and the scale is ``trace(S
    D) / |P|^2``. A prediction without extent is moved to the target's centre.

    Args:
        prediction: Poses ``(..., J, 3)``, float32 or float64.
        target: True poses ``(..., J, 3)``, same shape, dtype and device.

    Returns:
        Error of every pose ``(...)``, in the poses' unit. A pose with a NaN or infinity has the
        error NaN and leaves the others alone.

    Raises:
        ValueError: The shapes differ or are not ``(..., J, 3)``.
        TypeError: The dtypes differ or are not float32 or float64.
    """
    _check(prediction, target, 0)
    prediction = prediction - prediction.mean(dim=-2, keepdim=True)
    target = target - target.mean(dim=-2, keepdim=True)
    covariance = prediction.mT @ target
    # One non-finite matrix would make LAPACK refuse the whole batch.
    finite = covariance.isfinite().all(dim=-1).all(dim=-1)
    u, singular, vh = torch.linalg.svd(torch.where(finite[..., None, None], covariance, 0.0))
    reflected = torch.linalg.det(u) * torch.linalg.det(vh) < 0
    sign = torch.ones_like(singular)
    sign[..., 2] = torch.where(reflected, -1.0, 1.0)
    rotation = (u * sign[..., None, :]) @ vh
    scale = _safe_ratio((singular * sign).sum(dim=-1), _dot(prediction, prediction))
    error = _mean_distance(scale[..., None, None] * (prediction @ rotation), target)
    return torch.where(finite, error, torch.nan)


def pose_errors(
    prediction: Tensor, target: Tensor, root_joint: int | None = 0
) -> dict[str, Tensor]:
    """All three errors by the name the field uses; arguments as :func:`mpjpe`'s."""
    return {
        "MPJPE": mpjpe(prediction, target, root_joint),
        "P-MPJPE": p_mpjpe(prediction, target),
        "N-MPJPE": n_mpjpe(prediction, target, root_joint),
    }


def _check(prediction: Tensor, target: Tensor, root_joint: int | None) -> None:
    for name, value in (("prediction", prediction), ("target", target)):
        if value.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{name} must be float32 or float64, got {value.dtype}")
        if value.ndim < 2 or value.shape[-1] != 3 or value.shape[-2] == 0:
            raise ValueError(f"{name} must have the shape (..., J, 3), got {tuple(value.shape)}")
    if prediction.dtype != target.dtype:
        raise TypeError(f"prediction is {prediction.dtype} but target is {target.dtype}")
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction and target must have the same shape, got {tuple(prediction.shape)} and "
            f"{tuple(target.shape)}"
        )
    if root_joint is not None and not 0 <= root_joint < target.shape[-2]:
        raise ValueError(f"root_joint must be in [0, {target.shape[-2] - 1}], got {root_joint}")


def _rooted(pose: Tensor, root_joint: int | None) -> Tensor:
    return pose if root_joint is None else pose - pose[..., root_joint : root_joint + 1, :]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=(-2, -1))


def _safe_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    empty = denominator == 0
    return torch.where(empty, 0.0, numerator / torch.where(empty, 1.0, denominator))


def _mean_distance(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vector_norm(a - b, dim=-1).mean(dim=-1)
