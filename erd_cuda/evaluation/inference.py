"""A trained model over many poses, in chunks, with any choice of root."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from erd_cuda.camera import Camera
from erd_cuda.ops import solve_root

if TYPE_CHECKING:
    from erd_cuda.modules import ERD

__all__ = ["CHUNK", "SOLVED_ROOTS", "StagedPoses", "solved_root", "staged_poses"]

CHUNK = 16_384
"""Poses per call: enough to keep every thread busy, few enough to bound the working memory."""

SOLVED_ROOTS = ("solve", "solve_each_stage")


@dataclass(frozen=True, eq=False)
class StagedPoses:
    """What a model makes of n poses.

    Attributes:
        stages: ``(K + 1, n, J, 3)`` mm, stage 0 is the initial pose.
        root: ``(n, 3)`` mm. The given root; or the one solved from the initial pose ("solve"),
            which all stages used; or the one solved from the refined pose ("solve_each_stage").
        status: ``(n,)`` int32, :class:`erd_cuda.RootStatus` of the initial pose's root solve; 0 for
            a given root.
    """

    stages: Tensor
    root: Tensor
    status: Tensor


@torch.no_grad()
def staged_poses(
    erd: ERD,
    keypoints: Tensor,
    camera: Camera,
    root: Tensor | str,
    confidence: Tensor | None = None,
    pose: Tensor | None = None,
    chunk: int = CHUNK,
    *,
    bone_length: Tensor | None = None,
    precision: str = "auto",
) -> Iterator[tuple[slice, StagedPoses]]:
    """Run the lifter and all stages, ``chunk`` poses at a time.

    The root is chosen here and not by the model, so that a model trained with given roots can be
    run with solved ones and the other way round.

    Args:
        erd: The model. It is put in eval mode.
        keypoints: ``(N, J, 2)`` px.
        camera: One camera for all poses or a batch of N.
        root: Given roots ``(N, 3)`` mm, or "solve", or "solve_each_stage".
        confidence: ``(N, J)`` or None.
        pose: Initial poses ``(N, J, 3)`` mm instead of the lifter's.
        chunk: Poses per call.
        bone_length: ``(N,)`` mm, sizes of the persons where they are known, see
            :meth:`erd_cuda.ERD.forward`; not positive where they are not.
        precision: Arithmetic of the stages, as in :func:`erd_cuda.refine`.

    Yields:
        The slice of the N poses, and what became of them.
    """
    erd.eval()
    for start in range(0, len(keypoints), chunk):
        part = slice(start, min(start + chunk, len(keypoints)))
        x, c = keypoints[part], None if confidence is None else confidence[part]
        view = camera[part] if camera.batch_shape else camera
        initial = erd.lift(x, c) if pose is None else pose[part]
        if bone_length is not None:
            initial = erd.scaled(initial, bone_length[part])
        used = root[part] if isinstance(root, Tensor) else root
        stages = erd(x, view, used, c, initial, return_stages=True, precision=precision)
        if isinstance(used, Tensor):
            solved, status = used, torch.zeros(len(x), dtype=torch.int32, device=x.device)
        else:
            solved, status = solved_root(erd, x, initial, view, c, used)
            if used == "solve_each_stage":
                solved, _ = solved_root(erd, x, stages[-1], view, c, used)
        yield part, StagedPoses(stages, solved, status)


def solved_root(
    erd: ERD,
    keypoints: Tensor,
    pose: Tensor,
    camera: Camera,
    confidence: Tensor | None,
    mode: str,
) -> tuple[Tensor, Tensor]:
    """The root a model uses, with the status that the model itself does not return.

    Args:
        erd: The model, for its root joint and for what confidences mean to it.
        keypoints, pose, camera, confidence: As in :func:`erd_cuda.solve_root`.
        mode: "solve": the pose's root joint, if it has one, counts as 0, as in the paper;
            "solve_each_stage": the pose as it is.

    Returns:
        root ``(..., 3)`` mm and status ``(...)`` int32.
    """
    if mode == "solve" and erd.root_joint is not None:
        pose = pose.clone()
        pose[..., erd.root_joint, :] = 0.0
    weights = erd.joint_weights(confidence)
    return solve_root(keypoints, pose, camera, weights, return_status=True)
