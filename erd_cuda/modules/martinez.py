"""The lifting network of Martinez et al., "A simple yet effective baseline for 3D human pose
estimation" (ICCV 2017), with the normalisation that the ERD paper trains it with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from erd_cuda.modules.arguments import check_count, check_dropout, check_joints
from erd_cuda.modules.normalization import mean_and_std, scale_of
from erd_cuda.modules.pca import PCA


class _Block(nn.Module):
    """h <- h + f(f(h)) with f = Dropout ReLU BatchNorm Linear."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(_layer(width, width, dropout) for _ in range(2)))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.layers(h)


def _layer(inputs: int, outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU(), nn.Dropout(dropout)
    )


class MartinezLifter(nn.Module):
    """From a 2D pose in pixels to a root-relative 3D pose in millimetres.

    It owns its normalisation, so callers see pixels and millimetres only. Before
    `fit_normalization` all means are 0 and all deviations 1.

    Args:
        num_joints: J, in and out.
        width: width of the hidden layers.
        blocks: number of residual blocks of two layers.
        dropout: dropout probability.
        pca: number of principal components the z-scored input is reduced to; None for no PCA.

    Attributes:
        mean2d, std2d: buffers (J, 2), px.
        mean3d, std3d: buffers (J, 3), mm. A coordinate that never varies in training (the root
            joint) has std 0 and is answered with its mean exactly.
    """

    mean2d: Tensor
    std2d: Tensor
    mean3d: Tensor
    std3d: Tensor

    def __init__(
        self,
        num_joints: int = 17,
        width: int = 1024,
        blocks: int = 2,
        dropout: float = 0.25,
        pca: int | None = None,
    ) -> None:
        super().__init__()
        check_count("num_joints", num_joints)
        check_count("width", width)
        check_count("blocks", blocks, least=0)
        check_dropout(dropout)
        self.num_joints = num_joints
        self.width = width
        self.num_blocks = blocks
        self.dropout = dropout
        self.pca = None if pca is None else PCA(pca, 2 * num_joints)
        self.register_buffer("mean2d", torch.zeros(num_joints, 2))
        self.register_buffer("std2d", torch.ones(num_joints, 2))
        self.register_buffer("mean3d", torch.zeros(num_joints, 3))
        self.register_buffer("std3d", torch.ones(num_joints, 3))
        self.input = _layer(2 * num_joints if pca is None else pca, width, dropout)
        self.blocks = nn.Sequential(*(_Block(width, dropout) for _ in range(blocks)))
        self.output = nn.Linear(width, 3 * num_joints)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as a model file keeps them."""
        return {
            "num_joints": self.num_joints,
            "width": self.width,
            "blocks": self.num_blocks,
            "dropout": self.dropout,
            "pca": None if self.pca is None else self.pca.components,
        }

    @torch.no_grad()
    def fit_normalization(self, keypoints: Tensor, pose: Tensor) -> None:
        """Take means, deviations and the PCA from the training poses.

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
        if self.pca is not None:
            self.pca.fit(self._z_scores(keypoints).reshape(-1, 2 * self.num_joints))

    def normalized(self, keypoints: Tensor) -> Tensor:
        """What `regress` takes: z-scored (and PCA'd) keypoints, (..., F), F = 2 J or ``pca``."""
        check_joints("keypoints", keypoints, self.num_joints, 2)
        z = self._z_scores(keypoints)
        return z if self.pca is None else self.pca(z)

    def normalize_pose(self, pose: Tensor) -> Tensor:
        """Z-scored 3D pose (..., 3 J), the target of `regress`; 0 where std3d is 0."""
        check_joints("pose", pose, self.num_joints, 3)
        return ((pose - self.mean3d) / scale_of(self.std3d)).flatten(-2)

    def regress(self, z: Tensor) -> Tensor:
        """Z-scored 3D pose (..., 3 J) for normalised keypoints (..., F)."""
        h = self.input(z.reshape(-1, z.shape[-1]))
        return self.output(self.blocks(h)).reshape(*z.shape[:-1], 3 * self.num_joints)

    def forward(self, keypoints: Tensor) -> Tensor:
        """Root-relative 3D pose (..., J, 3) in mm for keypoints (..., J, 2) in px.

        Raises:
            ValueError: ``keypoints`` is not (..., J, 2).
        """
        z = self.regress(self.normalized(keypoints))
        return self.mean3d + self.std3d * z.unflatten(-1, (self.num_joints, 3))

    def _z_scores(self, keypoints: Tensor) -> Tensor:
        return ((keypoints - self.mean2d) / scale_of(self.std2d)).flatten(-2)
