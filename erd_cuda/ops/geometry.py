"""Projection, 2D residual, root solve, and the residual with the root solved for."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from .._definitions import MIN_DEPTH, RootStatus
from .._library import operators
from ..camera import Camera
from .arguments import as_rows
from .autograd import run
from .direct import can_go, go, lens

__all__ = ["MIN_DEPTH", "RootStatus", "project", "residual", "solve_residual", "solve_root"]


def project(pose: Tensor, root: Tensor, camera: Camera | Tensor) -> Tensor:
    """Projects a 3D pose into the image (paper, Eq. 5).

    A joint that is not more than :data:`MIN_DEPTH` in front of the camera is projected as if it
    were at that depth; its gradient with respect to depth is zero.

    Args:
        pose: (..., J, 3) joints relative to the root, mm, in the camera frame (x right, y down, z
            forward); J from 1 to 128.
        root: (..., 3) position of the root in the camera frame, mm.
        camera: :class:`Camera`, or (..., 4) ``fx, fy, cx, cy`` in px for a pinhole camera.

    All are float32 or all float64; batch dimensions broadcast.

    Returns:
        (..., J, 2) image points in px. Differentiable twice in every argument.

    Raises:
        TypeError: an argument is no tensor or has an unsupported or differing dtype.
        ValueError: shapes or devices do not fit.
    """
    intrinsics, distortion, model = lens(camera)
    if can_go(pose, (pose, root, intrinsics, distortion)):
        pixels = go(operators.project, pose, root, intrinsics, distortion, model)
        if pixels is not None:
            return pixels
    rows = as_rows(camera, pose=pose, root=root)
    pixels = run("project", rows.model, rows.slots())
    return rows.unflatten(pixels, rows.joints, 2)


def residual(
    keypoints: Tensor,
    pose: Tensor,
    root: Tensor,
    camera: Camera | Tensor,
    std: Tensor | None = None,
    confidence: Tensor | None = None,
) -> Tensor:
    """The 2D residual the regressors see (paper, Eq. 4), in one pass.

    ``confidence * (keypoints - project(pose, root, camera)) / std``

    Args:
        keypoints: (..., J, 2) detected joints, px.
        pose: (..., J, 3) joints relative to the root, mm; J from 1 to 128.
        root: (..., 3) position of the root in the camera frame, mm.
        camera: :class:`Camera`, or (..., 4) ``fx, fy, cx, cy`` in px.
        std: (..., J, 2) scale of each coordinate in px; usually (J, 2), the training set's. 1 if
            None.
        confidence: (..., J) weight of each joint; 1 if None. A joint whose confidence is not
            positive (0, negative or NaN) is missing: its keypoint and position may be NaN, its
            residual is exactly 0, and no gradient passes through it.

    All are float32 or all float64; batch dimensions broadcast.

    Returns:
        (..., J, 2), without unit if ``std`` is given, else px. Differentiable twice in every
        argument.

    Raises:
        TypeError: an argument is no tensor or has an unsupported or differing dtype.
        ValueError: shapes or devices do not fit.
    """
    intrinsics, distortion, model = lens(camera)
    tensors = (keypoints, pose, root, intrinsics, distortion, std, confidence)
    if can_go(pose, tensors, keypoints) and (std is None or std.shape[-2:-1] == pose.shape[1:2]):
        result = go(operators.residual, *tensors, model)
        if result is not None:
            return result
    rows = as_rows(
        camera, keypoints=keypoints, pose=pose, root=root, std=std, confidence=confidence
    )
    result = run("residual", rows.model, rows.slots())
    return rows.unflatten(result, rows.joints, 2)


@overload
def solve_root(
    keypoints: Tensor,
    pose: Tensor,
    camera: Camera | Tensor,
    confidence: Tensor | None = None,
    return_status: Literal[False] = False,
) -> Tensor: ...


@overload
def solve_root(
    keypoints: Tensor,
    pose: Tensor,
    camera: Camera | Tensor,
    confidence: Tensor | None = None,
    *,
    return_status: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def solve_root(
    keypoints: Tensor,
    pose: Tensor,
    camera: Camera | Tensor,
    confidence: Tensor | None = None,
    return_status: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Finds the root position that best explains the keypoints (paper, section 3.3).

    With u the undistorted, normalised image point of joint p, Eq. 5 multiplied out is linear in
    the root t, and the weighted least squares problem

    ``min_t  sum_j c_j [fx^2 (t_x - u_x t_z - u_x p_z + p_x)^2 + fy^2 (t_y - u_y t_z - u_y p_z +
    p_y)^2]``

    has a closed form with one division. The paper solves the same problem by SVD.

    Args:
        keypoints: (..., J, 2) detected joints, px.
        pose: (..., J, 3) joints relative to the root, mm; J from 1 to 128.
        camera: :class:`Camera`, or (..., 4) ``fx, fy, cx, cy`` in px.
        confidence: (..., J) weights c of the joints; 1 if None. Joints whose confidence is not
            positive take no part and may hold NaN.
        return_status: also return why a root could not be found.

    All are float32 or all float64; batch dimensions broadcast.

    Returns:
        (..., 3) root in mm, differentiable twice in every argument. A sample whose problem is
        degenerate gets the root (0, 0, 0) and zero gradients; a root behind the camera is returned
        as it is. Other samples are not affected, bit for bit.
        With ``return_status=True`` also a (...) int32 tensor of :class:`RootStatus`.

    Raises:
        TypeError: an argument is no tensor or has an unsupported or differing dtype.
        ValueError: shapes or devices do not fit.
    """
    intrinsics, distortion, model = lens(camera)
    tensors = (keypoints, pose, intrinsics, distortion, confidence)
    if can_go(pose, tensors, keypoints):
        solved = go(operators.solve_root, *tensors, model)
        if solved is not None:
            return solved if return_status else solved[0]
    rows = as_rows(camera, keypoints=keypoints, pose=pose, confidence=confidence)
    root, status = run("solve_root", rows.model, rows.slots())
    root = rows.unflatten(root, 3)
    return (root, rows.unflatten(status)) if return_status else root


@overload
def solve_residual(
    keypoints: Tensor,
    pose: Tensor,
    camera: Camera | Tensor,
    std: Tensor | None = None,
    confidence: Tensor | None = None,
    return_status: Literal[False] = False,
) -> tuple[Tensor, Tensor]: ...


@overload
def solve_residual(
    keypoints: Tensor,
    pose: Tensor,
    camera: Camera | Tensor,
    std: Tensor | None = None,
    confidence: Tensor | None = None,
    *,
    return_status: Literal[True],
) -> tuple[Tensor, Tensor, Tensor]: ...


def solve_residual(
    keypoints: Tensor,
    pose: Tensor,
    camera: Camera | Tensor,
    std: Tensor | None = None,
    confidence: Tensor | None = None,
    return_status: bool = False,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:
    """The 2D residual of a pose whose root is solved for, in one pass over the data.

    The same as ``root = solve_root(keypoints, pose, camera, confidence)`` (paper, section 3.3)
    followed by ``residual(keypoints, pose, root, camera, std, confidence)`` (Eq. 4), gradients
    through the root included; the poses are read once instead of twice.

    Args:
        keypoints: (..., J, 2) detected joints, px.
        pose: (..., J, 3) joints relative to the root, mm; J from 1 to 128.
        camera: :class:`Camera`, or (..., 4) ``fx, fy, cx, cy`` in px.
        std: (..., J, 2) scale of each coordinate in px; 1 if None.
        confidence: (..., J) weight of each joint, in the root's least squares and in the residual;
            1 if None. A joint whose confidence is not positive is missing, see :func:`residual`.
        return_status: also return why a root could not be found.

    All are float32 or all float64; batch dimensions broadcast.

    Returns:
        The residual (..., J, 2), as of :func:`residual`, and the root (..., 3) in mm, as of
        :func:`solve_root`: (0, 0, 0) where it cannot be found, with no gradient through it. Both
        are parts of one tensor and differentiable twice in every argument.
        With ``return_status=True`` also a (...) int32 tensor of :class:`RootStatus`.

    Raises:
        TypeError: an argument is no tensor or has an unsupported or differing dtype.
        ValueError: shapes or devices do not fit.
    """
    rows = as_rows(camera, keypoints=keypoints, pose=pose, std=std, confidence=confidence)
    result, status = run("solve_residual", rows.model, rows.slots())
    residual_rows, root_rows = result.split([2 * rows.joints, 3], dim=1)
    both = rows.unflatten(residual_rows, rows.joints, 2), rows.unflatten(root_rows, 3)
    return (*both, rows.unflatten(status)) if return_status else both
