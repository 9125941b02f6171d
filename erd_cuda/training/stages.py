"""Poses on their way through the stages: what stage k sees, and what it hands on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from erd_cuda.evaluation.inference import solved_root
from erd_cuda.evaluation.metrics import mpjpe

if TYPE_CHECKING:
    from erd_cuda.data import PoseDataset
    from erd_cuda.modules import ERD

__all__ = ["StagedData", "lifted_poses"]

CHUNK = 16_384


@torch.no_grad()
def lifted_poses(erd: ERD, data: PoseDataset) -> Tensor:
    """The data's initial poses ``(N, J, 3)`` mm, or the lifter's in eval mode, chunk by chunk."""
    if data.initial is not None:
        return data.initial
    erd.eval()
    parts = (data[start : start + CHUNK] for start in range(0, len(data), CHUNK))
    return torch.cat([erd.lift(part.keypoints, part.confidence) for part in parts])


class StagedData:
    """A dataset with the current pose of every sample.

    The stages before the one being trained are frozen, so a stage's input features do not change
    while it is trained: they are computed once, and a training step is the regressor alone.

    Attributes:
        pose: ``(N, J, 3)`` mm, the pose before the stage at hand.
        features: ``(n, F)`` input of the stage's regressor, of the n samples whose root is known.
        increments: ``(n, 3J)`` mm, what the stage should add: truth minus pose.
    """

    def __init__(self, erd: ERD, data: PoseDataset, pose: Tensor) -> None:
        self._erd = erd
        self._data = data
        self._root = data.root
        self._usable: Tensor | None = None
        self.pose = pose
        self.features = self.increments = torch.empty(0)

    @torch.no_grad()
    def prepare(self, k: int) -> None:
        """Compute features and increments for stage ``k`` (from 0), solving the root first where it
        is due.

        Samples whose root cannot be solved are left out: at inference they keep their pose, too.
        """
        erd, data = self._erd, self._data
        if erd.root == "solve_each_stage" or (erd.root == "solve" and k == 0):
            self._root, status = solved_root(
                erd, data.keypoints, self.pose, data.camera, data.confidence, erd.root
            )
            usable = (status == 0).nonzero().squeeze(1)
            self._usable = None if len(usable) == len(data) else usable
        features = []
        for start in range(0, len(data), CHUNK):
            rows = slice(start, start + CHUNK)
            part = data[rows]
            features.append(
                erd.features_of(
                    part.keypoints, self.pose[rows], self._root[rows], part.camera, part.confidence
                )
            )
        self.features = self._select(torch.cat(features))
        self.increments = self._select((data.pose - self.pose).flatten(1))

    @torch.no_grad()
    def advance(self, k: int) -> None:
        """Move the poses through stage ``k`` in eval mode."""
        increment = self._increment(k)
        if self._usable is None:
            self.pose = self.pose + increment
        else:
            self.pose = self.pose.index_add(0, self._usable, increment)

    @torch.no_grad()
    def mpjpe(self, k: int) -> float:
        """Mean error in mm after stage ``k`` in eval mode, over all samples of known root."""
        target = self.increments.view(len(self.increments), -1, 3)
        return mpjpe(self._increment(k), target, self._erd.root_joint).double().mean().item()

    def _increment(self, k: int) -> Tensor:
        regressor = self._erd.regressors[k].eval()
        out = torch.cat([regressor(part) for part in self.features.split(CHUNK)])
        return out.view(len(out), -1, 3)

    def _select(self, values: Tensor) -> Tensor:
        return values.contiguous() if self._usable is None else values.index_select(0, self._usable)
