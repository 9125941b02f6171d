"""What a stage's regressor sees (paper equation 4 and table 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from erd_cuda import ops
from erd_cuda.camera import Camera, as_camera
from erd_cuda.modules.normalization import scale_of
from erd_cuda.modules.pca import PCA
from erd_cuda.ops.limit import clipped


def stage_features(
    features: str,
    keypoints: Tensor,
    pose: Tensor,
    root: Tensor,
    camera: Camera | Tensor,
    confidence: Tensor | None,
    mean2d: Tensor,
    std2d: Tensor,
    pca: PCA | None,
    pose_statistics: tuple[Tensor, Tensor] | None = None,
    residual_limit: float | None = None,
) -> Tensor:
    """Z-scored features (..., F), flattened joint-major and reduced by the PCA.

    Args:
        features: "residual", "concat", "init2d", "proj2d" or "residual+pose".
        keypoints: (..., J, 2) px.
        pose: (..., J, 3) mm, the pose before the stage.
        root: (..., 3) mm.
        camera: `Camera` or intrinsics (..., 4).
        confidence: (..., J) or None; scales the residual, and where it is not positive the
            residual and init2d are 0.
        mean2d, std2d: (J, 2) px.
        pca: applied to each half of "concat" separately, and not to the pose; its mean cancels from
            the residual.
        pose_statistics: mean3d and std3d, (J, 3) mm, for "residual+pose".
        residual_limit: px, the most that each coordinate of a residual counts; None for any.
    """
    scale = scale_of(std2d)
    if features in ("residual", "residual+pose"):
        z = ops.residual(keypoints, pose, root, camera, std=scale, confidence=confidence)
        if residual_limit is not None:
            bound = residual_limit / scale
            if confidence is not None:
                bound = bound * confidence[..., None]
            z = clipped(z, bound)
        z = z.flatten(-2)
        z = z if pca is None else pca.rotate(z)
        if pose_statistics is None:
            return z
        mean3d, std3d = pose_statistics
        z3d = ((pose - mean3d) / scale_of(std3d)).flatten(-2)
        return torch.cat([z, z3d.expand(*z.shape[:-1], z3d.shape[-1])], dim=-1)
    parts = []
    if features != "proj2d":
        z = (keypoints - mean2d) / scale
        if confidence is not None:
            z = torch.where((confidence > 0)[..., None], z, 0.0)
        parts.append(z.flatten(-2))
    if features != "init2d":
        z = (ops.project(pose, root, camera) - mean2d) / scale
        parts.append(z.flatten(-2))
    if pca is not None:
        parts = [pca(z) for z in parts]
    # All inputs' batch, as in the fused op, also where a feature does not look at all of them.
    batch = torch.broadcast_shapes(
        keypoints.shape[:-2],
        pose.shape[:-2],
        root.shape[:-1],
        as_camera(camera).batch_shape,
        () if confidence is None else confidence.shape[:-1],
    )
    return torch.cat([z.expand(*batch, z.shape[-1]) for z in parts], dim=-1)


def confidence_where(usable: Tensor, confidence: Tensor | None, pose: Tensor) -> Tensor:
    """Confidence (..., J), 0 in samples that are not usable: their NaNs then reach no gradient.

    Args:
        usable: (...), bool.
        confidence: (..., J), or None for 1.
        pose: (..., J, 3), for the number of joints and the dtype.
    """
    if confidence is None:
        confidence = pose.new_ones(pose.shape[-2])
    return torch.where(usable[..., None], confidence, 0.0)
