"""load_dataset: one entry point for every source of poses."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from erd_cuda.data.capture import Capture, Detections, action_group, assemble
from erd_cuda.data.dataset import PoseDataset, name_list
from erd_cuda.data.mocap17 import mocap_capture
from erd_cuda.data.posefile import SUFFIX, read_poses
from erd_cuda.data.synthetic import synthetic_capture
from erd_cuda.data.undistort import undistorted
from erd_cuda.data.videopose3d import (
    DRIFTED_TAKES,
    h36m_capture,
    humaneva_capture,
    read_detections,
)

_NONE_BUT_DRIFTED = "drifted: of {}, the chosen subjects and actions have drifted takes only."


def load_dataset(
    path: str | os.PathLike[str],
    split: str,
    *,
    keypoints: str | None = None,
    subjects: Iterable[str] | None = None,
    actions: Iterable[str] | None = None,
    cameras: str | os.PathLike[str] | None = None,
    joints: int | str | None = None,
    stride: int = 1,
    undistort: bool = False,
    drifted: bool = True,
) -> PoseDataset:
    """Poses with 2D keypoints and cameras, from files or generated.

    Args:
        path: one of

            - a folder with ``data_3d_NAME.npz`` (or that file itself, where the folder has
            several): ``h36m`` and
              ``humaneva15`` are VideoPose3D's files; any other NAME needs ``cameras_NAME.json`` and
              ``meta_NAME.json`` beside it, as mocap17 has them;
            - a pose file of this package (``.safetensors``, see ``erd-cuda convert``);
            - ``"synthetic"`` or ``"synthetic:SEED"``: procedural motion, see `synthetic_motion`.
        split: ``"train"``, ``"test"`` or ``"all"``: by subject. Human3.6M: S1, S5, S6, S7, S8
            against S9, S11; HumanEva-I: ``Train/*`` against ``Validate/*``; others as their
            metadata says.
        keypoints: ``"pinhole"`` projects the 3D without lens distortion, ``"distorted"`` with the
            cameras' own; any other name reads ``data_2d_NAME_<keypoints>.npz`` (``"gt"``,
            ``"cpn_ft_h36m_dbb"``). None means ``"pinhole"``, and for a pose file whatever it holds.
        subjects: names of the subjects to keep, out of the split's.
        actions: names of action groups (``"Walking"``) or takes (``"Walking 1"``) to keep.
        cameras: camera JSON file, or HumanEva-I's own folder with ``S1/Calibration_Data/C1.cal``;
            needed for HumanEva-I, and for Human3.6M unless ``cameras_h36m.json`` lies in the
            folder.
        joints: 16 (or ``"h36m16"``) drops Neck/Nose from Human3.6M's 17 joints, 14 (``"h36m14"``)
            Hip and Spine too; poses stay relative to the Hip. None keeps what the 2D has.
        stride: keep every stride-th frame.
        undistort: take the lens distortion out of the 2D, see `undistorted`; the cameras are then
            pinholes. For 2D that comes from a file, or ``"distorted"``.
        drifted: False leaves out the three takes of Human3.6M's S9 whose 3D has drifted
            (`DRIFTED_TAKES`).

    Raises:
        FileNotFoundError: ``path`` or a file that belongs to it does not exist.
        ValueError: a file is damaged, truncated or of another form; 2D and 3D do not fit; a name
            does not exist.
    """
    if split not in ("train", "test", "all"):
        raise ValueError(f"split: expected 'train', 'test' or 'all', got {split!r}.")
    if isinstance(stride, bool) or not isinstance(stride, int) or stride < 1:
        raise ValueError(f"stride: expected a positive integer, got {stride!r}.")
    text = os.fspath(path)
    if text.endswith(SUFFIX):
        if cameras is not None or joints is not None:
            raise ValueError(
                "cameras and joints are fixed in a pose file; convert its source anew to change "
                "them."
            )
        dataset = _from_pose_file(text, split, keypoints, subjects, actions, stride, drifted)
        return undistorted(dataset) if undistort else dataset
    capture, file = open_capture(path, cameras)
    keypoints = "pinhole" if keypoints is None else keypoints
    detections = None
    if keypoints not in ("pinhole", "distorted"):
        detections = _read_detections(capture, file, keypoints)
    pairs = capture.choose(split, subjects, actions)
    if not drifted:
        pairs = [pair for pair in pairs if "/".join(pair) not in DRIFTED_TAKES]
        if not pairs:
            raise ValueError(_NONE_BUT_DRIFTED.format(capture.source))
    dataset = assemble(capture, pairs, keypoints, detections, joints, stride)
    return undistorted(dataset) if undistort else dataset


def open_capture(
    path: str | os.PathLike[str], cameras: str | os.PathLike[str] | None = None
) -> tuple[Capture, Path | None]:
    """The sequences of a data set in world coordinates, and the file they are from, None for
    synthetic motion.

    Args and errors are `load_dataset`'s; a pose file has no world coordinates and is refused.
    """
    text = os.fspath(path)
    if text.endswith(SUFFIX):
        raise ValueError(f"path: {text} is a pose file, which has no world coordinates.")
    if text == "synthetic" or text.startswith("synthetic:"):
        if cameras is not None:
            raise ValueError("cameras: synthetic motion brings its own cameras.")
        return _synthetic(text), None
    file = _find_positions(Path(path))
    readers = {"data_3d_h36m": h36m_capture, "data_3d_humaneva15": humaneva_capture}
    return readers.get(file.stem, mocap_capture)(file, cameras), file


def _synthetic(text: str) -> Capture:
    seed = text.removeprefix("synthetic").removeprefix(":") or "0"
    if not seed.isdecimal():
        raise ValueError(
            f"path: expected 'synthetic' or 'synthetic:SEED' with a number as seed, got {text!r}."
        )
    return synthetic_capture(seed=int(seed))


def _find_positions(path: Path) -> Path:
    if path.is_file():
        if path.suffix != ".npz" or not path.name.startswith("data_3d_"):
            raise ValueError(
                f"path: {path} is neither a data_3d_NAME.npz file nor a pose file ({SUFFIX})."
            )
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"path: {path} does not exist.")
    files = sorted(path.glob("data_3d_*.npz"))
    if not files:
        raise FileNotFoundError(f"path: the folder {path} has no data_3d_NAME.npz file.")
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ValueError(
            f"path: the folder {path} has several data sets ({names}); pass the path of one of "
            "them."
        )
    return files[0]


def _read_detections(capture: Capture, file: Path | None, keypoints: str) -> Detections:
    if file is None:
        raise ValueError(
            f"keypoints: {capture.name} motion is 'pinhole' or 'distorted', got {keypoints!r}."
        )
    prefix = file.stem.replace("data_3d_", "data_2d_", 1) + "_"
    wanted = file.parent / f"{prefix}{keypoints}.npz"
    if not wanted.is_file():
        found = [
            each.stem.removeprefix(prefix) for each in sorted(file.parent.glob(f"{prefix}*.npz"))
        ]
        known = ", ".join(["pinhole", "distorted", *found])
        raise FileNotFoundError(f"keypoints: {wanted} does not exist; there are {known}.")
    return read_detections(wanted)


def _from_pose_file(
    path: str,
    split: str,
    keypoints: str | None,
    subjects: Iterable[str] | None,
    actions: Iterable[str] | None,
    stride: int,
    drifted: bool,
) -> PoseDataset:
    dataset = read_poses(path)
    if keypoints not in (None, dataset.keypoint_source):
        raise ValueError(
            f"keypoints: {path} holds 2D of the kind {dataset.keypoint_source!r}, not "
            f"{keypoints!r}."
        )
    if split != "all":
        if split not in dataset.splits:
            raise ValueError(
                f"split: {path} does not say which subjects are for {split}; use split='all'."
            )
        dataset = dataset.select(
            subjects=[name for name in dataset.splits[split] if name in dataset.subjects]
        )
    if subjects is not None:
        present = {dataset.subjects[index] for index in dataset.subject.unique().tolist()}
        subjects = name_list("subjects", subjects)
        for subject in subjects:
            if subject not in present:
                known = ", ".join(sorted(present)) or "none"
                raise ValueError(
                    f"subjects: {subject!r} is not among the {split} subjects of {path}: {known}."
                )
        dataset = dataset.select(subjects=subjects)
    if actions is not None:
        wanted = name_list("actions", actions)
        keys = {
            take: take.removeprefix(_owner(take, dataset.subjects) + "/") for take in dataset.takes
        }
        takes = [take for take, key in keys.items() if key in wanted or action_group(key) in wanted]
        unknown = [
            each
            for each in wanted
            if not any(each in (key, action_group(key)) for key in keys.values())
        ]
        if unknown:
            raise ValueError(
                f"actions: {unknown[0]!r} is not among the actions of {path}: "
                f"{', '.join(dataset.actions)}."
            )
        dataset = dataset.select(takes=takes)
    if not drifted:
        kept = [take for take in dataset.takes if take not in DRIFTED_TAKES]
        if not kept:
            raise ValueError(_NONE_BUT_DRIFTED.format(path))
        dataset = dataset.select(takes=kept)
    if stride > 1:
        dataset = dataset[_position_in_sequence(dataset) % stride == 0]
        dataset.fps /= stride
    if not len(dataset):
        raise ValueError(
            f"split: {path} has no samples for split {split!r} with the chosen subjects and "
            "actions."
        )
    return dataset


def _owner(take: str, subjects: list[str]) -> str:
    """The subject of a take called ``subject/key``; HumanEva's subjects hold a slash themselves."""
    return max((subject for subject in subjects if take.startswith(subject + "/")), key=len)


def _position_in_sequence(dataset: PoseDataset) -> Tensor:
    """How many samples back from each sample its run of one take and one view began."""
    position = torch.arange(len(dataset))
    changes = torch.ones(len(dataset), dtype=torch.bool)
    changes[1:] = (dataset.take[1:] != dataset.take[:-1]) | (dataset.view[1:] != dataset.view[:-1])
    return position - torch.where(changes, position, 0).cummax(dim=0).values
