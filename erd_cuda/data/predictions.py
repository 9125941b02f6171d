"""Poses that a lifter predicted elsewhere, from a file to the samples of a data set.

Two kinds of file are read:

- a pose file of this package whose ``pose`` is the prediction (`PoseDataset.save`, after
  ``dataclasses.replace(dataset, pose=predicted)``). Its samples know their take, view and frame, by
  which they are found; it may hold more of them, in any order;
- an ``.npz`` or ``.safetensors`` file with an array ``pose`` (N, J, 3), as ``erd-cuda refine``
  writes it: one row for each sample of the data set, in the data set's order.
"""

from __future__ import annotations

import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from erd_cuda.data.dataset import PoseDataset
from erd_cuda.data.posefile import is_pose_file, read_poses

# Lifters err by a tenth of a person's size; metres or centimetres for millimetres, and the camera's
# distance left in, are wrong by more than this.
_SIZE_RATIO = 4.0


def with_predictions(
    dataset: PoseDataset, predictions: str | os.PathLike[str] | Tensor
) -> PoseDataset:
    """The data set with a lifter's predictions as initial poses, `PoseDataset.initial`.

    Args:
        dataset: the N samples that were predicted.
        predictions: root-relative poses (N, J, 3) in mm in the axes of the sample's camera, of any
            floating point dtype, in the data set's order; or a file that holds them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is of no known kind or damaged, lacks samples, has other joints than
            the data set, holds NaN or infinity, or poses of a size that says other units, or not
            root-relative.
    """
    if isinstance(predictions, Tensor):
        source, poses = "predictions", predictions
    else:
        source = str(predictions)
        poses = _read(Path(predictions), dataset)
    expected = (len(dataset), dataset.num_joints, 3)
    if tuple(poses.shape) != expected or not poses.is_floating_point():
        raise ValueError(
            f"{source}: expected floating point poses of shape {expected} for the dataset "
            f"{dataset.name!r}, got {tuple(poses.shape)} of {poses.dtype}."
        )
    poses = poses.detach().to(dataset.pose)
    bad = ~poses.flatten(1).isfinite().all(dim=1)
    if bad.any():
        raise ValueError(
            f"{source}: {int(bad.sum())} of {len(poses)} poses are NaN or infinite (the first is "
            f"number {int(bad.nonzero()[0])})."
        )
    if len(poses):
        size, true_size = _size(poses), _size(dataset.pose)
        if not true_size / _SIZE_RATIO <= size <= true_size * _SIZE_RATIO:
            raise ValueError(
                f"{source}: half of the joints lie within {size:.3g} of the root, in the dataset "
                f"{dataset.name!r} within {true_size:.3g} mm; expected root-relative poses in mm."
            )
    return replace(dataset, initial=poses)


def _size(poses: Tensor) -> float:
    """Median distance of a joint from the origin; the median passes over a lifter's few misses."""
    return torch.linalg.vector_norm(poses, dim=-1).median().item()


def _read(path: Path, dataset: PoseDataset) -> Tensor:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix == ".npz":
        return _from_npz(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} must be an .npz or .safetensors file, going by its suffix")
    if is_pose_file(path):
        return _matched(path, read_poses(path), dataset)
    try:
        with safe_open(path, framework="pt") as file:
            names = [*file.keys()]
            if "pose" not in names:
                raise ValueError(f"{path} has no array pose; it holds {', '.join(names)}")
            return file.get_tensor("pose").clone()
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated, or not a safetensors file ({error})") from error


def _from_npz(path: Path) -> Tensor:
    # numpy takes whatever is no archive for a pickle.
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a readable .npz file")
    try:
        with np.load(path, allow_pickle=False) as file:
            if "pose" not in file.files:
                names = ", ".join(file.files) or "nothing"
                raise ValueError(f"{path} has no array pose; it holds {names}")
            poses = file["pose"]
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a readable .npz file") from error
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise ValueError(
            f"{path} holds Python objects (a pickle), which are not read; save plain arrays"
        ) from error
    if poses.dtype.kind not in "fiu":
        raise ValueError(f"pose in {path} must hold real numbers, got dtype {poses.dtype}")
    return torch.from_numpy(np.ascontiguousarray(poses, dtype=np.float32))


def _matched(path: Path, predicted: PoseDataset, dataset: PoseDataset) -> Tensor:
    """The predicted pose of each sample, found by take, view and frame."""
    ours, theirs = dataset.skeleton.joints, predicted.skeleton.joints
    if ours != theirs:
        raise ValueError(
            f"{path} has the joints {', '.join(theirs)}, but those of the dataset "
            f"{dataset.name!r} are {', '.join(ours)}"
        )
    row = {key: number for number, key in enumerate(_keys(predicted))}
    if len(row) < len(predicted):
        raise ValueError(f"{path} holds two predictions for the same take, view and frame")
    rows = []
    for take, view, frame in _keys(dataset):
        number = row.get((take, view, frame))
        if number is None:
            raise ValueError(
                f"{path} holds no prediction for frame {frame} of {take!r}, view {view}, of the "
                f"dataset {dataset.name!r}"
            )
        rows.append(number)
    return predicted.pose[torch.tensor(rows, dtype=torch.long)]


def _keys(dataset: PoseDataset) -> list[tuple[str, int, int]]:
    labels = (dataset.take.tolist(), dataset.view.tolist(), dataset.frame.tolist())
    return [(dataset.takes[take], view, frame) for take, view, frame in zip(*labels, strict=True)]
