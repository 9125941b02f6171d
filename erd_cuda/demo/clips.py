"""Choosing one clip per action, by a rule that flatters nobody, and making it ready to be shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from erd_cuda.camera import Camera
from erd_cuda.demo.errors import StageErrors, root_of
from erd_cuda.evaluation import staged_poses
from erd_cuda.viewer import PoseSequence
from erd_cuda.viewer.gravity import estimate_up

if TYPE_CHECKING:
    from erd_cuda.data import PoseDataset
    from erd_cuda.modules import ERD

__all__ = ["SECONDS", "Clip", "choose_clips"]

ACTIONS = 12  # clips at most; each adds about 0.2 MB to the page
SECONDS = 5.0  # of each


@dataclass(frozen=True, eq=False)
class Clip:
    """A sequence to show.

    Attributes:
        sequence: the frames with every stage's poses.
        frame: the frame whose errors are closest to the clip's means, for a still picture.
    """

    sequence: PoseSequence
    frame: int


def choose_clips(erd: ERD, dataset: PoseDataset, errors: StageErrors) -> list[Clip]:
    """One clip per action: of all takes and cameras, the one with the median refined error.

    Args:
        erd: the model.
        dataset: whole takes, every frame.
        errors: errors of the data set's poses, or of a part spread evenly over it.

    Returns:
        At most 12 clips of at most 5 seconds, from the middle of their takes.
    """
    chosen = []
    for action in dataset.action.unique().tolist()[:ACTIONS]:
        take, view = _median_take(errors, action)
        whole = dataset[(dataset.take == take) & (dataset.view == view)]
        length = min(len(whole), round(SECONDS * dataset.fps))
        start = (len(whole) - length) // 2
        up = estimate_up(whole.pose + whole.root[:, None], dataset.fps)
        chosen.append(_clip(erd, whole[start : start + length], dataset.actions[action], up))
    return chosen


def _median_take(errors: StageErrors, action: int) -> tuple[int, int]:
    """Take and view of the sequence of an action whose mean refined error is the median one."""
    dataset = errors.dataset
    of_action = dataset.action == action
    sequence = torch.stack((dataset.take[of_action].long(), dataset.view[of_action].long()), dim=1)
    pairs, index = sequence.unique(dim=0, return_inverse=True)
    refined = errors.per_pose[of_action, -1].double()
    sums = torch.zeros(len(pairs), dtype=torch.float64).index_add_(0, index, refined)
    means = sums / torch.bincount(index, minlength=len(pairs))
    take, view = pairs[means.argsort()[(len(pairs) - 1) // 2]].tolist()
    return take, view


def _clip(erd: ERD, frames: PoseDataset, title: str, up: Tensor) -> Clip:
    results = [
        result
        for _, result in staged_poses(
            erd, frames.keypoints, frames.camera, root_of(erd, frames), frames.confidence
        )
    ]
    solved = torch.cat([result.status for result in results]) == 0
    root = torch.cat([result.root for result in results])
    keypoints = frames.keypoints
    if frames.confidence is not None:
        keypoints = torch.where((frames.confidence > 0)[..., None], keypoints, torch.nan)
    sequence = PoseSequence(
        title=title,
        skeleton=frames.skeleton,
        fps=frames.fps,
        keypoints=keypoints,
        stages=torch.cat([result.stages for result in results], dim=1),
        # Where the root could not be solved the pose is shown at its true place.
        root=torch.where(solved[:, None], root, frames.root),
        camera=_one_camera(frames.camera),
        truth=frames.pose,
        up=up,
    )
    errors = sequence.errors()
    assert errors is not None
    ends = errors[[0, -1]]
    typical = abs(ends - ends.mean(axis=1, keepdims=True)).sum(axis=0).argmin()
    return Clip(sequence, int(typical))


def _one_camera(camera: Camera) -> Camera:
    """The camera of a sequence, which is the same in every frame."""
    return camera[0] if camera.batch_shape else camera
