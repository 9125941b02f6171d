"""Folders in mocap17's form: positions as VideoPose3D stores them, cameras and metadata as JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from erd_cuda.data.calibration import read_cameras, read_json
from erd_cuda.data.capture import Capture
from erd_cuda.data.skeleton import SKELETONS, Skeleton
from erd_cuda.data.videopose3d import read_positions


def mocap_capture(file: Path, cameras: str | os.PathLike[str] | None) -> Capture:
    """A capture from ``data_3d_NAME.npz`` with ``meta_NAME.json`` and ``cameras_NAME.json`` beside
    it.

    The metadata names the joints, their parents, the left and right joints, the subjects of the
    train and test split and the frame rate. Positions are metres, world, z up.

    Args:
        file: the ``data_3d_NAME.npz`` file.
        cameras: a camera file to take in place of the one beside it.

    Raises:
        FileNotFoundError: one of the files is missing.
        ValueError: one is damaged or not of this form.
    """
    name = file.stem.removeprefix("data_3d_")
    meta_file = file.parent / f"meta_{name}.json"
    meta = read_json(meta_file)
    if not isinstance(meta, Mapping):
        raise ValueError(
            f"{meta_file}: expected an object with subjects_train, joints, parents and so on."
        )
    positions = read_positions(file)
    try:
        skeleton = _skeleton(name, meta)
        splits = {
            split: [str(each) for each in meta[f"subjects_{split}"]] for split in ("train", "test")
        }
        fps = float(meta["fps"])
    except KeyError as error:
        raise ValueError(f"{meta_file} has no entry {error}.") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{meta_file}: {error}") from error
    both = sorted(set(splits["train"]) & set(splits["test"]))
    if both:
        raise ValueError(f"{meta_file}: {', '.join(both)} is listed for training and for testing.")
    joints = next(value.shape[1] for actions in positions.values() for value in actions.values())
    if joints != skeleton.num_joints:
        raise ValueError(
            f"{file} has positions of {joints} joints, but {meta_file} names {skeleton.num_joints}."
        )
    return Capture(
        name=name,
        source=str(file),
        skeleton=skeleton,
        fps=fps,
        positions=positions,
        splits=splits,
        cameras=read_cameras(file.parent / f"cameras_{name}.json" if cameras is None else cameras),
    )


def _skeleton(name: str, meta: Mapping[str, object]) -> Skeleton:
    described = Skeleton.from_dict(
        {
            "name": name,
            "joints": meta["joints"],
            "parents": meta["parents"],
            "left": meta["joints_left"],
            "right": meta["joints_right"],
        }
    )
    for known in SKELETONS.values():
        # A file whose joints lack the built-in layout's origin has an origin of its own.
        if known.origin is None and (known.joints, known.parents) == (
            described.joints,
            described.parents,
        ):
            return known
    return described
