"""A data set in HumanEva-I's file formats made from other motion, for where HumanEva-I is missing.

Three people, three actions, three cameras of 640 x 480 px that stay where they are for each person,
60 frames a second; train and test are parts of the same recordings by the same people, as in
HumanEva-I. What people do, and so how large errors are, is not HumanEva-I's.
"""

from __future__ import annotations

import json
import math
import os
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erd_cuda._files import replacing, write_text
from erd_cuda.data.capture import Capture, action_group
from erd_cuda.data.load import open_capture
from erd_cuda.data.skeleton import h36m17, humaneva15

__all__ = ["write_stand_in"]

Array = NDArray[Any]

_FPS = 60.0
_PEOPLE = 3
_ACTIONS = 3
_CAMERAS = 3
_JOINTS_OF_H36M = {
    "Pelvis": "Hip",
    "LAnkle": "LFoot",
    "RAnkle": "RFoot",
}
"""HumanEva's joints that Human3.6M calls otherwise. All others have the same name in both."""


def write_stand_in(
    source: str | os.PathLike[str], folder: str | os.PathLike[str], seed: int = 0
) -> Path:
    """Write VideoPose3D's ``data_3d_humaneva15.npz`` and HumanEva-I's own calibrations, such as
    ``S1/Calibration_Data/C1.cal``.

    Out of the source's training subjects (its test subjects stay unseen), the three people and
    three actions are taken of which the rarest is longest. Each take is cut in the middle: its
    first half goes to ``Train/S1`` and so on, the rest to ``Validate/S1``. Every take is moved to
    the middle of the cameras. Actions keep the source's names, ``stand_in.json`` says whose motion
    it is. ``load_dataset(folder, split, cameras=folder)`` reads the result.

    Args:
        source: motion of Human3.6M's 17 joints: a folder, a file or ``"synthetic"``, as
            `erd_cuda.data.load_dataset` takes them, but no pose file.
        folder: where to write; made if it does not exist, but its parent must.
        seed: seed of the cameras' places.

    Returns:
        ``folder``.

    Raises:
        FileNotFoundError: the source, or the folder's parent, does not exist.
        ValueError: the source has other joints, or no three training subjects with three actions
            in common.
    """
    capture, _ = open_capture(source)
    if capture.skeleton.joints != h36m17.joints:
        raise ValueError(
            f"source: expected the 17 joints of Human3.6M, but {capture.source} has those of "
            f"{capture.skeleton.name}."
        )
    people, actions = _choose(capture)
    target = Path(folder)
    target.mkdir(exist_ok=True)
    positions: dict[str, dict[str, Array]] = {
        f"{part}/S{number}": {} for part in ("Train", "Validate") for number in (1, 2, 3)
    }
    rng = np.random.default_rng(seed)
    for number, person in enumerate(people, start=1):
        reach = 0.0
        for action in actions:
            for count, take in enumerate(_takes(capture, person, action), start=1):
                motion = _in_the_middle(_as_humaneva(take, capture.fps))
                reach = max(reach, float(np.nanmax(np.abs(motion[:, humaneva15.root, :2]))))
                half = len(motion) // 2
                key = f"{action} {count} chunk0"
                positions[f"Train/S{number}"][key] = motion[:half]
                positions[f"Validate/S{number}"][key] = motion[half:]
        _write_calibrations(target / f"S{number}" / "Calibration_Data", rng, reach)
    origin = {
        "note": "Not HumanEva-I: other motion in its file formats.",
        "source": capture.name,
        "subjects": {f"S{number}": person for number, person in enumerate(people, start=1)},
        "actions": actions,
    }
    write_text(target / "stand_in.json", json.dumps(origin, indent=1) + "\n")
    # Last, because readers look for this file: where it is, all the others are.
    with replacing(target / "data_3d_humaneva15.npz") as temporary:
        np.savez_compressed(temporary, positions_3d=np.array(positions, dtype=object))
    return target


def _choose(capture: Capture) -> tuple[list[str], list[str]]:
    """The three training subjects and three action groups whose rarest pair has most frames."""
    subjects = [name for name in capture.positions if name in capture.splits.get("train", [])]
    frames: dict[str, dict[str, int]] = {name: {} for name in subjects}
    for name in subjects:
        for key, value in capture.positions[name].items():
            if _can_be_cut(value, capture.fps):
                group = action_group(key)
                frames[name][group] = frames[name].get(group, 0) + len(value)
    best: tuple[int, list[str], list[str]] = (0, [], [])
    for people in combinations(subjects, _PEOPLE):
        common = set.intersection(*(set(frames[name]) for name in people))
        rarest = {group: min(frames[name][group] for name in people) for group in common}
        # Ties go by name, so that the choice does not hang on the order of a set.
        longest = sorted(rarest, key=lambda group: (-rarest[group], group))[:_ACTIONS]
        if len(longest) == _ACTIONS and rarest[longest[-1]] > best[0]:
            best = (rarest[longest[-1]], list(people), sorted(longest))
    if not best[1]:
        raise ValueError(
            f"source: {capture.source} has no {_PEOPLE} training subjects with {_ACTIONS} actions "
            "in common."
        )
    return best[1], best[2]


def _takes(capture: Capture, person: str, action: str) -> list[Array]:
    return [
        value
        for key, value in capture.positions[person].items()
        if action_group(key) == action and _can_be_cut(value, capture.fps)
    ]


def _can_be_cut(take: Array, fps: float) -> bool:
    """Whether a take gives at least one frame to either half."""
    return _frames(len(take), fps) >= 2


def _frames(count: int, fps: float) -> int:
    """Number of frames, at 60 a second, that ``count`` frames at another rate give."""
    return math.floor((count - 1) / fps * _FPS + 1e-9) + 1


def _as_humaneva(positions: Array, fps: float) -> Array:
    """World coordinates (T, 17, 3) at another rate as (T', 15, 3) at 60 frames a second."""
    names = [_JOINTS_OF_H36M.get(joint, joint) for joint in humaneva15.joints]
    joints = positions[:, [h36m17.index(name) for name in names]].astype(np.float64)
    at = np.arange(_frames(len(joints), fps)) * (fps / _FPS)
    before = np.minimum(at.astype(int), len(joints) - 2)
    weight = (at - before)[:, None, None]
    return np.asarray(joints[before] * (1.0 - weight) + joints[before + 1] * weight)


def _in_the_middle(motion: Array) -> Array:
    """The motion in float32 with the pelvis' path around the world's origin."""
    path = motion[:, humaneva15.root, :2]
    middle = (np.nanmin(path, axis=0) + np.nanmax(path, axis=0)) / 2.0
    return (motion - [*middle, 0.0]).astype(np.float32)


def _write_calibrations(folder: Path, rng: np.random.Generator, reach: float) -> None:
    """Three cameras 120 +- 15 degrees apart, 1.2 to 1.8 m high, that look at the origin.

    Args:
        folder: where C1.cal, C2.cal and C3.cal go.
        rng: for places and lenses.
        reach: how far from the origin the pelvis comes along x or y, metres. The cameras stand 4 m
            away from that, where a person fits into the picture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    azimuth = np.radians(
        rng.uniform(0.0, 360.0) + 360.0 / _CAMERAS * np.arange(_CAMERAS) + rng.uniform(-15, 15, 3)
    )
    for number in range(_CAMERAS):
        distance = reach + rng.uniform(4.0, 4.5)
        centre = np.array(
            [
                distance * np.cos(azimuth[number]),
                distance * np.sin(azimuth[number]),
                rng.uniform(1.2, 1.8),
            ]
        )
        forward = np.array([0.0, 0.0, 0.9]) - centre
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        rotation = np.stack([right, np.cross(forward, right), forward])
        focal = rng.uniform(735.0, 765.0)
        numbers = [
            *(focal, focal * rng.uniform(0.998, 1.002)),
            *(320.0 + rng.uniform(-8.0, 8.0), 240.0 + rng.uniform(-8.0, 8.0)),
            0.0,
            *(rng.uniform(-0.25, -0.15), rng.uniform(0.1, 0.25)),
            *(rng.uniform(-1e-3, 1e-3), rng.uniform(-1e-3, 1e-3), 0.0),
            *rotation.ravel(),
            *(-rotation @ centre * 1000.0),
        ]
        text = "".join(f"{value:.12g}\n" for value in numbers)
        write_text(folder / f"C{number + 1}.cal", text)
