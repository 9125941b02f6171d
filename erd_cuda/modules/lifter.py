"""What all lifting networks of this package share: pixels in, millimetres out, and the
normalisation in between that the ERD paper trains them with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from erd_cuda.modules.arguments import check_joints
from erd_cuda.modules.normalization import mean_and_std, scale_of


class Lifter(nn.Module):
    """Base of the networks from a 2D pose in pixels to a root-relative 3D pose in millimetres.

    A lifter owns its normalisation, so callers see pixels and millimetres only. Before
    `fit_normalization` all means are 0 and all deviations 1. A network is a subclass with `regress`
    and `config`.

    Args:
        num_joints: J, in and out.

    Attributes:
        mean2d, std2d: buffers (J, 2), px.
        mean3d, std3d: buffers (J, 3), mm. A coordinate that never varies in training (the root
            joint) has std 0 and is answered with its mean exactly.
    """

    mean2d: Tensor
    std2d: Tensor
    mean3d: Tensor
    std3d: Tensor

    def __init__(self, num_joints: int) -> None:
        super().__init__()
        self.num_joints = num_joints
        self.register_buffer("mean2d", torch.zeros(num_joints, 2))
        self.register_buffer("std2d", torch.ones(num_joints, 2))
        self.register_buffer("mean3d", torch.zeros(num_joints, 3))
        self.register_buffer("std3d", torch.ones(num_joints, 3))

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as a model file keeps them."""
        raise NotImplementedError

    def regress(self, z: Tensor) -> Tensor:
        """Z-scored 3D pose (..., 3 J) for normalised keypoints (..., F)."""
        raise NotImplementedError

    @torch.no_grad()
    def fit_normalization(self, keypoints: Tensor, pose: Tensor) -> None:
        """Take means and deviations from the training poses.

        Args:
            keypoints: (..., J, 2) px.
            pose: (..., J, 3) mm, root-relative.

        Raises:
            ValueError: wrong shape, no pose, or a NaN or infinity.
        """
        check_joints("keypoints", keypoints, self.num_joints, 2)
        check_joints("pose", pose, self.num_joints, 3)
        for name, values, mean, std in (
            ("keypoints", keypoints, self.mean2d, self.std2d),
            ("pose", pose, self.mean3d, self.std3d),
        ):
            fitted_mean, fitted_std = mean_and_std(name, values.reshape(-1, *mean.shape))
            mean.copy_(fitted_mean)
            std.copy_(fitted_std)

    def normalized(self, keypoints: Tensor) -> Tensor:
        """What `regress` takes: z-scored keypoints (..., 2 J), joint-major."""
        check_joints("keypoints", keypoints, self.num_joints, 2)
        return ((keypoints - self.mean2d) / scale_of(self.std2d)).flatten(-2)

    def normalize_pose(self, pose: Tensor) -> Tensor:
        """Z-scored 3D pose (..., 3 J), the target of `regress`; 0 where std3d is 0."""
        check_joints("pose", pose, self.num_joints, 3)
        return ((pose - self.mean3d) / scale_of(self.std3d)).flatten(-2)

    def forward(self, keypoints: Tensor) -> Tensor:
        """Root-relative 3D pose (..., J, 3) in mm for keypoints (..., J, 2) in px.

        Raises:
            ValueError: ``keypoints`` is not (..., J, 2).
        """
        z = self.regress(self.normalized(keypoints))
        return self.mean3d + self.std3d * z.unflatten(-1, (self.num_joints, 3))
