"""MPJPE of every pose after every stage, and what to say about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from tabulate import tabulate
from torch import Tensor

from erd_cuda.evaluation import mpjpe, staged_poses

if TYPE_CHECKING:
    from erd_cuda.data import PoseDataset
    from erd_cuda.modules import ERD

__all__ = ["StageErrors", "measure_errors", "root_of"]


@dataclass(frozen=True, eq=False)
class StageErrors:
    """Errors of the lifter and of every stage on some poses.

    Attributes:
        dataset: the N poses measured.
        per_pose: (N, K + 1) float32 MPJPE in mm; column 0 is the lifter, column k is stage k.
    """

    dataset: PoseDataset
    per_pose: Tensor

    def actions(self) -> list[str]:
        """Names of the actions that have poses, in the data set's order."""
        present = self.dataset.action.unique().tolist()
        return [self.dataset.actions[index] for index in present]

    def means(self) -> Tensor:
        """Mean error of each action, (A, K + 1) float64 in mm."""
        rows = [
            self.per_pose[self.dataset.action == index].double().mean(dim=0)
            for index in self.dataset.action.unique().tolist()
        ]
        return torch.stack(rows)

    def mean(self) -> Tensor:
        """Mean over the actions' means (K + 1,), the convention of Human3.6M's tables."""
        return self.means().mean(dim=0)

    def table(self) -> str:
        """A row per action and one for their mean: poses, lifter, stages, change in percent."""
        stages = self.per_pose.shape[1] - 1
        counts = [
            int((self.dataset.action == index).sum())
            for index in self.dataset.action.unique().tolist()
        ]
        rows = []
        for name, count, row in zip(
            [*self.actions(), "mean over actions"],
            [*counts, sum(counts)],
            [*self.means(), self.mean()],
            strict=True,
        ):
            numbers = [f"{value:.1f}" for value in row.tolist()]
            rows.append([name, f"{count:,}", *numbers, f"{100 * (row[-1] / row[0] - 1):+.1f} %"])
        headers = [
            "action",
            "poses",
            "lifter",
            *(f"stage {k + 1}" for k in range(stages)),
            "change",
        ]
        alignment = ("left", *["right"] * (stages + 3))
        return tabulate(rows, headers, tablefmt="simple", colalign=alignment, disable_numparse=True)

    def verdict(self) -> str:
        """In one sentence, where the stages helped and where they did not."""
        means, mean = self.means(), self.mean()
        worse = [
            name for name, row in zip(self.actions(), means, strict=True) if not row[-1] < row[0]
        ]
        change = f"{mean[0]:.1f} to {mean[-1]:.1f} mm on average"
        if not worse:
            return f"The last stage is better than the lifter for every action: {change}."
        return (
            f"The last stage is better than the lifter for {len(means) - len(worse)} of "
            f"{len(means)} actions ({change}); it is no better for {', '.join(worse)}."
        )


def measure_errors(erd: ERD, dataset: PoseDataset) -> StageErrors:
    """Run the model over a data set with the kind of root it was made for.

    Raises:
        ValueError: the model has no lifter, or another number of joints than the data.
    """
    if dataset.num_joints != erd.num_joints:
        raise ValueError(
            f"the model has {erd.num_joints} joints but the data set {dataset.name!r} has "
            f"{dataset.num_joints}"
        )
    parts = [
        mpjpe(result.stages, dataset.pose[part].expand_as(result.stages), erd.root_joint).T
        for part, result in staged_poses(
            erd, dataset.keypoints, dataset.camera, root_of(erd, dataset), dataset.confidence
        )
    ]
    return StageErrors(dataset, torch.cat(parts))


def root_of(erd: ERD, dataset: PoseDataset) -> Tensor | str:
    """The data's roots for a model made for given ones, else how the model solves for them."""
    return dataset.root if erd.root == "given" else erd.root
