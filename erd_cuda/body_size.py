"""The size of a person, measured along the bones: one number that a single picture cannot tell.

Seen by one camera, a child nearby and an adult far away look alike. A lifter therefore answers with
the size that is usual in its training data, and a root solved from such a pose lies too near or too
far by the same share. A known size corrects both, as far as the person's proportions are those of
the training data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from erd_cuda.data.skeleton import Skeleton


def bone_length(pose: Tensor, skeleton: Skeleton) -> Tensor:
    """Total length (...) of a pose's bones, in the pose's unit.

    Args:
        pose: (..., J, 3), relative to anything.
        skeleton: which joints the bones join.

    Raises:
        ValueError: ``pose`` has another shape, or another number of joints than the skeleton.
    """
    if pose.ndim < 2 or tuple(pose.shape[-2:]) != (skeleton.num_joints, 3):
        raise ValueError(
            f"pose has shape {tuple(pose.shape)}, expected (..., {skeleton.num_joints}, 3) for the "
            f"skeleton {skeleton.name!r}."
        )
    parents, children = zip(*skeleton.bones, strict=True)
    bones = pose[..., children, :] - pose[..., parents, :]
    return torch.linalg.vector_norm(bones, dim=-1).sum(dim=-1)


def scaled_to(pose: Tensor, length: Tensor, skeleton: Skeleton) -> Tensor:
    """The pose (..., J, 3), scaled about its root so that its bones are ``length`` (...) long.

    A pose stays as it is where ``length`` is not positive, which stands for an unknown size, and
    where all its joints coincide.
    """
    own = bone_length(pose, skeleton)
    known = (length > 0) & (own > 0)
    scale = torch.where(known, length / torch.where(known, own, 1.0), 1.0)
    return pose * scale[..., None, None]
