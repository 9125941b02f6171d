"""VideoPose3D's .npz files of Human3.6M and HumanEva-I: 3D positions, detected or projected 2D."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from erd_cuda.data.calibration import read_cameras
from erd_cuda.data.capture import Capture, Detections
from erd_cuda.data.dataset import PoseDataset
from erd_cuda.data.extrinsics import CameraSet
from erd_cuda.data.skeleton import h36m17, humaneva15
from erd_cuda.data.unpickle import read_npz

# The 17 of Human3.6M's 32 joints that move, in the order of h36m17.
_H36M_JOINTS = [0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27]
_H36M_SPLITS = {"train": ["S1", "S5", "S6", "S7", "S8"], "test": ["S9", "S11"]}
_HUMANEVA_FOLDERS = {"train": "Train/", "test": "Validate/"}

H36M = "Human3.6M"
"""Name of the data set that the reader gives it."""

DRIFTED_TAKES = ("S9/Greeting", "S9/SittingDown 1", "S9/Waiting 1")
"""Takes of Human3.6M whose 3D is shifted against the images."""


def read_positions(path: str | os.PathLike[str]) -> dict[str, dict[str, NDArray[Any]]]:
    """World coordinates (T, J, 3), metres, by subject and action, from a ``data_3d_*.npz`` file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, holds a pickle of something else than arrays, or is not of this
            form.
    """
    tree = read_npz(path, required=["positions_3d"])["positions_3d"]
    joints = None
    for subject, action, value in _leaves(tree, path, "positions_3d"):
        if not _is_floats(value) or value.ndim != 3 or value.shape[2] != 3:
            shape = getattr(value, "shape", type(value).__name__)
            raise ValueError(
                f"{path}: positions_3d of subject {subject!r}, action {action!r} must be floats "
                "of shape (T, J, 3), "
                f"got {shape}."
            )
        joints = value.shape[1] if joints is None else joints
        if value.shape[1] != joints:
            raise ValueError(
                f"{path}: positions_3d of subject {subject!r}, action {action!r} has "
                f"{value.shape[1]} joints, "
                f"other sequences have {joints}."
            )
    if joints is None:
        raise ValueError(f"{path}: positions_3d holds no sequences.")
    positions: dict[str, dict[str, NDArray[Any]]] = tree
    return positions


def read_detections(path: str | os.PathLike[str]) -> Detections:
    """2D keypoints from a ``data_2d_*.npz`` file: an array for each camera, by subject and action.

    The number of joints is the metadata's ``num_joints``: Human3.6M's files exist with 17 and, by
    SemGCN, with 16 joints under one name. Files without metadata are counted.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, holds a pickle of something else than arrays, or is not of this
            form.
    """
    content = read_npz(path, required=["positions_2d"], optional=["metadata"])
    tree, metadata = content["positions_2d"], content.get("metadata", {})
    if not isinstance(metadata, dict):
        raise ValueError(f"{path}: metadata must be a dictionary, got {type(metadata).__name__}.")
    joints = metadata.get("num_joints")
    for subject, action, views in _leaves(tree, path, "positions_2d"):
        if isinstance(views, np.ndarray) and views.ndim == 4:
            tree[subject][action] = views = list(
                views
            )  # cameras of equal length, saved as one array
        if not isinstance(views, (list, tuple)) or not all(
            _is_floats(view) and view.ndim == 3 for view in views
        ):
            raise ValueError(
                f"{path}: positions_2d of subject {subject!r}, action {action!r} must be a list "
                "with an array "
                "(T, J, 2) for each camera."
            )
        if joints is None and len(views):
            joints = views[0].shape[1]
    if isinstance(joints, bool) or not isinstance(joints, int):
        raise ValueError(
            f"{path}: the number of joints (metadata's num_joints) is {joints!r:.60}, not a number."
        )
    symmetry = metadata.get("keypoints_symmetry")
    if symmetry is not None:
        try:
            left, right = (tuple(int(joint) for joint in side) for side in symmetry)
        except (TypeError, ValueError):
            raise ValueError(
                f"{path}: metadata's keypoints_symmetry must be two lists of joint indices."
            ) from None
        symmetry = (left, right)
    return Detections(source=str(path), keypoints=tree, num_joints=joints, symmetry=symmetry)


def without_drifted_takes(dataset: PoseDataset) -> PoseDataset | None:
    """Human3.6M's test set without `DRIFTED_TAKES`, or None if that leaves everything or nothing.

    Published figures differ in whether they count them, so an evaluation reports both.
    """
    drifted = [index for index, name in enumerate(dataset.takes) if name in DRIFTED_TAKES]
    keep = ~torch.isin(dataset.take.long(), torch.tensor(drifted, dtype=torch.long))
    return None if keep.all() or not keep.any() else dataset[keep]


def h36m_capture(file: Path, cameras: str | os.PathLike[str] | None) -> Capture:
    """Human3.6M from ``data_3d_h36m.npz`` (32 joints, of which 17 are kept, or those 17).

    Its cameras come from ``cameras``, or from ``cameras_h36m.json`` beside the file where there is
    one.

    Raises:
        FileNotFoundError, ValueError: a file is missing, damaged or not of this form.
    """
    positions = read_positions(file)
    _check_joints(file, positions, {32, 17})
    for actions in positions.values():
        for action, value in actions.items():
            if value.shape[1] == 32:
                actions[action] = value[:, _H36M_JOINTS]
    beside = file.parent / "cameras_h36m.json"
    if cameras is None and beside.is_file():
        cameras = beside
    return Capture(
        name=H36M,
        source=str(file),
        skeleton=h36m17,
        fps=50.0,
        positions=positions,
        splits=_H36M_SPLITS,
        cameras=_cameras(cameras),
    )


def humaneva_capture(file: Path, cameras: str | os.PathLike[str] | None) -> Capture:
    """HumanEva-I from ``data_3d_humaneva15.npz``. The .npz files carry no intrinsics: ``cameras``
    must say them.

    Raises:
        FileNotFoundError, ValueError: a file is missing, damaged or not of this form.
    """
    positions = read_positions(file)
    _check_joints(file, positions, {15})
    splits = {
        split: [subject for subject in positions if subject.startswith(folder)]
        for split, folder in _HUMANEVA_FOLDERS.items()
    }
    return Capture(
        name="HumanEva-I",
        source=str(file),
        skeleton=humaneva15,
        fps=60.0,
        positions=positions,
        splits=splits,
        cameras=_cameras(cameras),
    )


def _cameras(path: str | os.PathLike[str] | None) -> CameraSet | None:
    return None if path is None else read_cameras(path)


def _check_joints(
    file: Path, positions: dict[str, dict[str, NDArray[Any]]], known: set[int]
) -> None:
    found = next(value.shape[1] for actions in positions.values() for value in actions.values())
    if found not in known:
        counts = " or ".join(str(count) for count in sorted(known))
        raise ValueError(f"{file}: expected positions of {counts} joints, got {found}.")


def _is_floats(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _leaves(tree: Any, path: str | os.PathLike[str], key: str) -> list[tuple[str, str, Any]]:
    """(subject, action, value) of a dictionary of dictionaries."""
    leaves = []
    if not isinstance(tree, dict):
        raise ValueError(
            f"{path}: {key} must be a dictionary by subject, got {type(tree).__name__}."
        )
    for subject, actions in tree.items():
        if not isinstance(subject, str) or not isinstance(actions, dict):
            raise ValueError(f"{path}: {key} must hold a dictionary by action for each subject.")
        for action, value in actions.items():
            if not isinstance(action, str):
                raise ValueError(
                    f"{path}: {key} of subject {subject!r} has an action that is no text: "
                    f"{action!r:.60}."
                )
            leaves.append((subject, action, value))
    return leaves
