"""Procedural human motion: people with adult bone lengths doing everyday things, seen by four
cameras.

For tests and demonstrations, where real captures may not be shipped. It is plausible, not measured:
a network trained on it alone knows only these few actions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from erd_cuda.data.capture import Capture, assemble
from erd_cuda.data.dataset import PoseDataset, name_list
from erd_cuda.data.extrinsics import CameraRig, CameraSet
from erd_cuda.data.kinematics import (
    Array,
    Body,
    forward_kinematics,
    random_body,
    rotation,
    within_limits,
)
from erd_cuda.data.motion import Motion, Style, random_style
from erd_cuda.data.motions import MOTIONS
from erd_cuda.data.skeleton import h36m17
from erd_cuda.data.studio import into_box, random_lenses, random_rig

_FEET = [h36m17.index("LFoot"), h36m17.index("RFoot")]


def synthetic_motion(
    *,
    train_subjects: int = 8,
    test_subjects: int = 2,
    takes: int = 1,
    seconds: float = 6.0,
    fps: float = 30.0,
    actions: Sequence[str] | None = None,
    keypoints: str = "pinhole",
    split: str = "all",
    seed: int = 0,
) -> PoseDataset:
    """Poses of procedural people over Human3.6M's 17 joints, as seen by four cameras.

    Every person has own bone lengths and habits; test subjects are other people than training
    subjects. Equal arguments give equal data, and a subject's motion does not depend on how many
    others there are.

    Args:
        train_subjects: number of people in the train split.
        test_subjects: number of people in the test split.
        takes: takes of each action by each person.
        seconds: length of a take.
        fps: frames per second.
        actions: names out of `MOTIONS`; None for all.
        keypoints: ``"pinhole"`` or ``"distorted"``, as in `load_dataset`.
        split: ``"train"``, ``"test"`` or ``"all"``.
        seed: seed of everything random.

    Raises:
        ValueError: a number is not positive, or an action or split does not exist.
    """
    if keypoints not in ("pinhole", "distorted"):
        raise ValueError(
            f"keypoints: synthetic motion is 'pinhole' or 'distorted', got {keypoints!r}."
        )
    capture = synthetic_capture(
        train_subjects=train_subjects,
        test_subjects=test_subjects,
        takes=takes,
        seconds=seconds,
        fps=fps,
        actions=actions,
        seed=seed,
    )
    return assemble(capture, capture.choose(split, None, None), keypoints)


def synthetic_capture(
    *,
    train_subjects: int = 8,
    test_subjects: int = 2,
    takes: int = 1,
    seconds: float = 6.0,
    fps: float = 30.0,
    actions: Sequence[str] | None = None,
    seed: int = 0,
) -> Capture:
    """World coordinates and cameras of `synthetic_motion`; same arguments and errors."""
    if train_subjects < 0 or test_subjects < 0 or train_subjects + test_subjects < 1:
        raise ValueError(
            f"train_subjects, test_subjects: expected at least one, got {train_subjects}, "
            f"{test_subjects}."
        )
    if takes < 1:
        raise ValueError(f"takes: expected at least 1, got {takes}.")
    if not (fps > 0 and seconds * fps >= 2):
        raise ValueError(
            f"seconds, fps: a take needs at least 2 frames, got {seconds} s at {fps} fps."
        )
    chosen = list(MOTIONS) if actions is None else name_list("actions", actions)
    for action in chosen:
        if action not in MOTIONS:
            raise ValueError(
                f"actions: {action!r} is not among the synthetic actions: {', '.join(MOTIONS)}."
            )
    time = np.arange(round(seconds * fps)) / fps
    splits = {
        "train": [f"Train{number + 1}" for number in range(train_subjects)],
        "test": [f"Test{number + 1}" for number in range(test_subjects)],
    }
    positions: dict[str, dict[str, np.ndarray]] = {}
    rigs: dict[str | tuple[str, str], CameraRig] = {}
    for code, names in enumerate(splits.values()):
        for number, subject in enumerate(names):
            rng = np.random.default_rng([seed, code, number])
            body, style = random_body(rng), random_style(rng)
            lenses = random_lenses(rng)
            positions[subject] = {}
            for action in chosen:
                for take in range(1, takes + 1):
                    # A stream of its own for each take: leaving actions out does not change the
                    # others.
                    own = np.random.default_rng(
                        [seed, code, number, list(MOTIONS).index(action), take]
                    )
                    world = perform(own, action, body, style, time)
                    positions[subject][f"{action} {take}"] = world.astype(np.float32)
                    rigs[subject, f"{action} {take}"] = random_rig(
                        own, *lenses, world[:, h36m17.root]
                    )
    return Capture(
        name="synthetic",
        source="synthetic motion",
        skeleton=h36m17,
        fps=fps,
        positions=positions,
        splits=splits,
        cameras=CameraSet("synthetic motion", rigs),
    )


def perform(rng: np.random.Generator, action: str, body: Body, style: Style, time: Array) -> Array:
    """One person doing one thing at the times (T,) in seconds.

    Returns:
        World coordinates (T, 17, 3) in metres, z up, the ground at 0.
    """
    motion = MOTIONS[action](rng, style, time)
    pelvis = rotation(2, motion.heading) @ rotation(1, motion.lean) @ rotation(0, motion.roll)
    relative = forward_kinematics(body, within_limits(motion.angles), pelvis)
    return relative + _root_path(relative, motion, body, time)[:, None]


def _root_path(relative: Array, motion: Motion, body: Body, time: Array) -> Array:
    """Where the hip is (T, 3): the lower foot stands on the ground and does not slide."""
    feet = relative[:, _FEET]
    step = time[1] - time[0]
    lowest = feet[..., 2].min(axis=1, keepdims=True)
    weight = np.exp(
        (lowest - feet[..., 2]) / 0.015
    )  # about 1 for the supporting foot; 1.5 cm to hand over
    weight /= weight.sum(axis=1, keepdims=True)
    height = body.ankle_height - (weight * feet[..., 2]).sum(axis=1) + motion.lift
    sliding = np.gradient(feet[..., :2], step, axis=0)
    velocity = _smooth(-(weight[..., None] * sliding).sum(axis=1), 0.05 / step)
    path = np.cumsum(velocity, axis=0) * step
    if motion.treadmill:
        path = path - _smooth(path, 0.4 / step)
    path = into_box(path)
    return np.concatenate([path, _smooth(height[:, None], 0.03 / step)], axis=1)


def _smooth(values: Array, frames: float) -> Array:
    """Gaussian average over time of (T, D); beyond the ends the values are point-reflected."""
    reach = min(int(np.ceil(3.0 * frames)), len(values) - 1)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / frames) ** 2)
    kernel /= kernel.sum()
    before = 2.0 * values[:1] - values[reach:0:-1]
    after = 2.0 * values[-1:] - values[-2 : -reach - 2 : -1]
    padded = np.concatenate([before, values, after])
    return np.stack([np.convolve(column, kernel, mode="valid") for column in padded.T], axis=1)
