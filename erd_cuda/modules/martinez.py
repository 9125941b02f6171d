"""The lifting network of Martinez et al., "A simple yet effective baseline for 3D human pose
estimation" (ICCV 2017), in the form that the ERD paper trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from erd_cuda.modules.arguments import check_count, check_dropout
from erd_cuda.modules.lifter import Lifter
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


class MartinezLifter(Lifter):
    """From a 2D pose in pixels to a root-relative 3D pose in millimetres, fully connected.

    `Lifter` describes the normalisation. 4.3 million parameters with the defaults.

    Args:
        num_joints: J, in and out.
        width: width of the hidden layers.
        blocks: number of residual blocks of two layers.
        dropout: dropout probability.
        pca: number of principal components the z-scored input is reduced to; None for no PCA.
    """

    def __init__(
        self,
        num_joints: int = 17,
        width: int = 1024,
        blocks: int = 2,
        dropout: float = 0.25,
        pca: int | None = None,
    ) -> None:
        check_count("num_joints", num_joints)
        check_count("width", width)
        check_count("blocks", blocks, least=0)
        check_dropout(dropout)
        super().__init__(num_joints)
        self.width = width
        self.num_blocks = blocks
        self.dropout = dropout
        self.pca = None if pca is None else PCA(pca, 2 * num_joints)
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
        """Take means, deviations and the PCA from the training poses, see `Lifter`."""
        super().fit_normalization(keypoints, pose)
        if self.pca is not None:
            self.pca.fit(super().normalized(keypoints).reshape(-1, 2 * self.num_joints))

    def normalized(self, keypoints: Tensor) -> Tensor:
        """What `regress` takes: z-scored (and PCA'd) keypoints, (..., F), F = 2 J or ``pca``."""
        z = super().normalized(keypoints)
        return z if self.pca is None else self.pca(z)

    def regress(self, z: Tensor) -> Tensor:
        """Z-scored 3D pose (..., 3 J) for normalised keypoints (..., F)."""
        h = self.input(z.reshape(-1, z.shape[-1]))
        return self.output(self.blocks(h)).reshape(*z.shape[:-1], 3 * self.num_joints)
