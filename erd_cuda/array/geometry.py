"""Projection, 2D residual and root solve."""

from __future__ import annotations

from typing import Any, Literal, overload

import numpy as np

from .memory import address_of
from .native import native
from .rows import Rows, as_rows

_PROJECT, _RESIDUAL, _SOLVE_ROOT, _SOLVE_RESIDUAL = range(4)


def project(pose: Any, root: Any, camera: Any) -> Any:
    """Projects a 3D pose into the image (paper, Eq. 5).

    A joint that is not more than `MIN_DEPTH` in front of the camera is projected as if it were at
    that depth.

    Args:
        pose: (..., J, 3) joints relative to the root, mm, in the camera frame (x right, y down, z
            forward); J from 1 to 128.
        root: (..., 3) position of the root in the camera frame, mm.
        camera: `Camera`, or (..., 4) ``fx, fy, cx, cy`` in px for a pinhole camera.

    All are float32 or all float64, on one device; batch dimensions broadcast.

    Returns:
        (..., J, 2) image points in px.

    Raises:
        TypeError: an argument is no array or has an unsupported or differing dtype.
        ValueError: shapes or devices do not fit.
    """
    rows = as_rows(camera, pose=pose, root=root)
    return _run(_PROJECT, rows, rows.empty(rows.joints, 2))


def residual(
    keypoints: Any,
    pose: Any,
    root: Any,
    camera: Any,
    std: Any = None,
    confidence: Any = None,
) -> Any:
    """The 2D residual the regressors see (paper, Eq. 4), in one pass.

    ``confidence * (keypoints - project(pose, root, camera)) / std``

    Args:
        keypoints: (..., J, 2) detected joints, px.
        pose: (..., J, 3) joints relative to the root, mm; J from 1 to 128.
        root: (..., 3) position of the root in the camera frame, mm.
        camera: `Camera`, or (..., 4) ``fx, fy, cx, cy`` in px.
        std: (..., J, 2) scale of each coordinate in px; usually (J, 2), the training set's. 1 if
            None.
        confidence: (..., J) weight of each joint; 1 if None. A joint whose confidence is not
            positive (0, negative or NaN) is missing: its keypoint and position may be NaN, and its
            residual is exactly 0.

    All are float32 or all float64, on one device; batch dimensions broadcast.

    Returns:
        (..., J, 2), without unit if ``std`` is given, else px.

    Raises:
        TypeError: an argument is no array or has an unsupported or differing dtype.
        ValueError: shapes or devices do not fit.
    """
    rows = as_rows(
        camera, keypoints=keypoints, pose=pose, root=root, std=std, confidence=confidence
    )
    return _run(_RESIDUAL, rows, rows.empty(rows.joints, 2))


@overload
def solve_root(
    keypoints: Any,
    pose: Any,
    camera: Any,
    confidence: Any = None,
    return_status: Literal[False] = False,
) -> Any: ...


@overload
def solve_root(
    keypoints: Any,
    pose: Any,
    camera: Any,
    confidence: Any = None,
    *,
    return_status: Literal[True],
) -> tuple[Any, Any]: ...


def solve_root(
    keypoints: Any,
    pose: Any,
    camera: Any,
    confidence: Any = None,
    return_status: bool = False,
) -> Any | tuple[Any, Any]:
    """Finds the root position that best explains the keypoints (paper, section 3.3).

    The weighted least squares problem is that of `erd_cuda.solve_root`.

    Args:
        keypoints: (..., J, 2) detected joints, px.
        pose: (..., J, 3) joints relative to the root, mm; J from 1 to 128.
        camera: `Camera`, or (..., 4) ``fx, fy, cx, cy`` in px.
        confidence: (..., J) weights of the joints; 1 if None. Joints whose confidence is not
            positive take no part and may hold NaN.
        return_status: also return why a root could not be found.

    All are float32 or all float64, on one device; batch dimensions broadcast.

    Returns:
        (..., 3) root in mm. A sample whose problem is degenerate gets the root (0, 0, 0); a root
        behind the camera is returned as it is. Other samples are not affected, bit for bit.
        With ``return_status=True`` also a (...) int32 array of `RootStatus`.

    Raises:
        TypeError: an argument is no array or has an unsupported or differing dtype.
        ValueError: shapes or devices do not fit.
    """
    rows = as_rows(camera, keypoints=keypoints, pose=pose, confidence=confidence)
    status = rows.empty(dtype=np.int32)
    root = _run(_SOLVE_ROOT, rows, rows.empty(3), status)
    return (root, status) if return_status else root


@overload
def solve_residual(
    keypoints: Any,
    pose: Any,
    camera: Any,
    std: Any = None,
    confidence: Any = None,
    return_status: Literal[False] = False,
) -> tuple[Any, Any]: ...


@overload
def solve_residual(
    keypoints: Any,
    pose: Any,
    camera: Any,
    std: Any = None,
    confidence: Any = None,
    *,
    return_status: Literal[True],
) -> tuple[Any, Any, Any]: ...


def solve_residual(
    keypoints: Any,
    pose: Any,
    camera: Any,
    std: Any = None,
    confidence: Any = None,
    return_status: bool = False,
) -> tuple[Any, Any] | tuple[Any, Any, Any]:
    """The 2D residual of a pose whose root is solved for, in one pass over the data.

    The same as ``root = solve_root(keypoints, pose, camera, confidence)`` (paper, section 3.3)
    followed by ``residual(keypoints, pose, root, camera, std, confidence)`` (Eq. 4); the poses are
    read once instead of twice.

    Args:
        keypoints: (..., J, 2) detected joints, px.
        pose: (..., J, 3) joints relative to the root, mm; J from 1 to 128.
        camera: `Camera`, or (..., 4) ``fx, fy, cx, cy`` in px.
        std: (..., J, 2) scale of each coordinate in px; 1 if None.
        confidence: (..., J) weight of each joint, in the root's least squares and in the residual;
            1 if None. A joint whose confidence is not positive is missing, see `residual`.
        return_status: also return why a root could not be found.

    All are float32 or all float64, on one device; batch dimensions broadcast.

    Returns:
        The residual (..., J, 2), as of `residual`, and the root (..., 3) in mm, as of `solve_root`:
        (0, 0, 0) where it cannot be found. Both are parts of one array.
        With ``return_status=True`` also a (...) int32 array of `RootStatus`.

    Raises:
        TypeError: an argument is no array or has an unsupported or differing dtype.
        ValueError: shapes or devices do not fit.
    """
    rows = as_rows(camera, keypoints=keypoints, pose=pose, std=std, confidence=confidence)
    status = rows.empty(dtype=np.int32)
    width = 2 * rows.joints
    result = _run(_SOLVE_RESIDUAL, rows, rows.empty(width + 3), status)
    residuals = result[..., :width].reshape((*rows.batch_shape, rows.joints, 2))
    both = residuals, result[..., width:]
    return (*both, status) if return_status else both


def _run(function: int, rows: Rows, output: Any, status: Any = None) -> Any:
    if rows.count > 0:
        native.geometry(
            function,
            rows.scalar,
            rows.model,
            rows.count,
            rows.joints,
            rows.slots(),
            address_of(output),
            0 if status is None else address_of(status),
            rows.place.for_kernels(),
        )
    return output
