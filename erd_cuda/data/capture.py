"""Capture, what every source of motion becomes first, and `assemble`, which makes it samples."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from erd_cuda.camera import Camera
from erd_cuda.data.dataset import LABELS, PoseDataset, name_list
from erd_cuda.data.extrinsics import CameraRig, CameraSet
from erd_cuda.data.keypoints import fill_missing, project_samples, with_confidence
from erd_cuda.data.skeleton import Skeleton, get_skeleton

Keypoints2D = dict[str, dict[str, list[NDArray[Any]]]]


@dataclass(eq=False)
class Detections:
    """2D keypoints read from a file.

    Attributes:
        source: the file's path, for messages.
        keypoints: by subject and action, an array (T, J, 2) or (T, J, 3) for each camera, px, third
            channel confidence.
        num_joints: number of joints J.
        symmetry: left and right joints as the file gives them, or None.
    """

    source: str
    keypoints: Keypoints2D
    num_joints: int
    symmetry: tuple[tuple[int, ...], tuple[int, ...]] | None

    def views(self, subject: str, action: str, cameras: int, frames: int) -> list[NDArray[Any]]:
        """The keypoints of each camera for one sequence, cut to ``frames``: detected 2D often runs
        on after the 3D.

        Raises:
            ValueError: the sequence is missing, has another number of cameras, or is shorter than
                the 3D.
        """
        views = self.keypoints.get(subject, {}).get(action)
        where = f"{self.source}: subject {subject!r}, action {action!r}"
        if views is None:
            # Leaving the sequence out would change the average that an evaluation prints, so that
            # is not done silently.
            raise ValueError(
                f"{where} has no 2D, but the 3D has it; choose others with subjects= or actions=."
            )
        if len(views) != cameras:
            raise ValueError(
                f"{where} has 2D of {len(views)} cameras, but {cameras} cameras are calibrated."
            )
        for camera, view in enumerate(views):
            if view.ndim != 3 or view.shape[1] != self.num_joints or view.shape[2] not in (2, 3):
                raise ValueError(
                    f"{where}, camera {camera}: expected 2D of shape (T, {self.num_joints}, 2 or "
                    f"3), got {view.shape}."
                )
            if len(view) < frames:
                raise ValueError(
                    f"{where}, camera {camera}: the 2D has {len(view)} frames, fewer than the "
                    f"3D's {frames}."
                )
        return [view[:frames] for view in views]


@dataclass(eq=False)
class Capture:
    """A data set as its files hold it: sequences of world coordinates and calibrated cameras.

    Attributes:
        name: name of the data set.
        source: what to call it in messages, usually the file's path.
        skeleton: what the joints are.
        fps: frames per second.
        positions: by subject and action, world coordinates (T, J, 3) in metres.
        splits: names of the subjects in each split.
        cameras: where the cameras stand, or None where nothing says so.
    """

    name: str
    source: str
    skeleton: Skeleton
    fps: float
    positions: dict[str, dict[str, NDArray[Any]]]
    splits: dict[str, list[str]]
    cameras: CameraSet | None

    def choose(
        self, split: str, subjects: Iterable[str] | None, actions: Iterable[str] | None
    ) -> list[tuple[str, str]]:
        """The (subject, action) pairs asked for; ``actions`` may name groups (``Walking``) or takes
        (``Walking 1``).

        Raises:
            ValueError: a subject or action does not exist, or nothing is left.
        """
        allowed = list(self.positions)
        if split != "all":
            if split not in self.splits:
                known = ", ".join(["all", *self.splits])
                raise ValueError(f"split: {self.source} has no split {split!r}; it has {known}.")
            allowed = [subject for subject in self.positions if subject in self.splits[split]]
        chosen = allowed if subjects is None else name_list("subjects", subjects)
        for subject in chosen:
            if subject not in allowed:
                known = ", ".join(allowed) or "none"
                raise ValueError(
                    f"subjects: {subject!r} is not among the {split} subjects of {self.source}: "
                    f"{known}."
                )
        # Always in the file's order: what is chosen decides the result, not the order of choosing.
        pairs = [
            (subject, action)
            for subject in allowed
            if subject in chosen
            for action in self.positions[subject]
        ]
        if actions is not None:
            wanted = name_list("actions", actions)
            for action in wanted:
                if not any(action in (key, action_group(key)) for _, key in pairs):
                    known = (
                        ", ".join(dict.fromkeys(action_group(key) for _, key in pairs)) or "none"
                    )
                    raise ValueError(
                        f"actions: {action!r} is not among the actions of {self.source}: {known}."
                    )
            pairs = [pair for pair in pairs if pair[1] in wanted or action_group(pair[1]) in wanted]
        if not pairs:
            raise ValueError(f"split: {self.source} has no sequences for split {split!r}.")
        return pairs


def action_group(key: str) -> str:
    """The action a take belongs to: its key up to the first space (``Walking 1``: ``Walking``)."""
    return key.split(" ")[0]


@dataclass
class _Rows:
    """Lists of per-sequence arrays that are concatenated at the end."""

    keypoints: list[NDArray[Any]] = field(default_factory=list)
    pose: list[NDArray[Any]] = field(default_factory=list)
    root: list[NDArray[Any]] = field(default_factory=list)
    intrinsics: list[NDArray[Any]] = field(default_factory=list)
    distortion: list[NDArray[Any]] = field(default_factory=list)
    subject: list[NDArray[Any]] = field(default_factory=list)
    action: list[NDArray[Any]] = field(default_factory=list)
    take: list[NDArray[Any]] = field(default_factory=list)
    view: list[NDArray[Any]] = field(default_factory=list)
    frame: list[NDArray[Any]] = field(default_factory=list)

    def joined(self, name: str, dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(np.concatenate(getattr(self, name))).to(dtype)


def assemble(
    capture: Capture,
    pairs: Sequence[tuple[str, str]],
    keypoints: str,
    detections: Detections | None = None,
    joints: int | str | None = None,
    stride: int = 1,
) -> PoseDataset:
    """PoseDataset of the chosen sequences as seen by all their cameras.

    Frames whose 3D is not finite are left out with a warning. A 2D keypoint that is not finite gets
    confidence 0 and the mean of the frame's other keypoints as its place, so that a lifter without
    a notion of missing joints gets numbers.

    Args:
        capture: the source.
        pairs: (subject, action) of the sequences, from `Capture.choose`.
        keypoints: ``"pinhole"`` or ``"distorted"`` projects the 3D; another name is that of
            ``detections``.
        detections: 2D from a file. Such 2D comes from real lenses, so the cameras keep their
            distortion.
        joints: number of joints, or skeleton, to reduce to: 16 drops Neck/Nose, 14 Hip and Spine
            too (poses stay relative to the Hip); None keeps what there is.
        stride: keep every stride-th frame of each sequence.

    Raises:
        ValueError: cameras are missing, joints do not fit, or ``"distorted"`` is asked of cameras
            without distortion.
    """
    if capture.cameras is None:
        raise ValueError(
            f"cameras: {capture.source} comes without camera parameters; pass cameras=PATH "
            f"(a camera JSON file, or HumanEva-I's own folder of calibrations)."
        )
    skeleton, keep3d, keep2d = _common_joints(capture, detections, joints)
    rows, model, dropped = _Rows(), "pinhole", 0
    subjects = list(dict.fromkeys(subject for subject, _ in pairs))
    actions = list(dict.fromkeys(action_group(action) for _, action in pairs))
    for take, (subject, action) in enumerate(pairs):
        rig = capture.cameras.rig(subject, action)
        if keypoints != "pinhole":
            model = _one_model(model, rig, keypoints, capture.cameras.source, first=take == 0)
        positions = capture.positions[subject][action]
        frames = np.arange(0, len(positions), stride)
        finite = np.isfinite(positions[frames]).all(axis=(1, 2))
        dropped += int((~finite).sum())
        frames = frames[finite]
        seen = rig.world_to_camera(positions[frames] * 1000.0)
        # The origin is the root of the 3D's skeleton, whether or not that joint is kept.
        origin = seen[:, :, capture.skeleton.root : capture.skeleton.root + 1]
        count = len(frames) * rig.count
        # take, and not an index list, which would leave the joints in front in memory.
        kept = np.take(seen, keep3d, axis=2)
        rows.pose.append((kept - origin).reshape(count, -1, 3).astype(np.float32))
        rows.root.append(origin.reshape(count, 3).astype(np.float32))
        rows.intrinsics.append(np.repeat(rig.intrinsics, len(frames), axis=0))
        if rig.distortion is not None:
            rows.distortion.append(np.repeat(rig.distortion, len(frames), axis=0))
        if detections is not None:
            views = detections.views(subject, action, rig.count, len(positions))
            rows.keypoints.append(with_confidence(views, frames, keep2d))
        rows.subject.append(np.full(count, subjects.index(subject)))
        rows.action.append(np.full(count, actions.index(action_group(action))))
        rows.take.append(np.full(count, take))
        rows.view.append(np.repeat(np.arange(rig.count), len(frames)))
        rows.frame.append(np.tile(frames, rig.count))
    if dropped:
        warnings.warn(
            f"{capture.source}: left out {dropped} frames whose 3D is not finite.", stacklevel=2
        )
    intrinsics = rows.joined("intrinsics", torch.float32)
    distortion = rows.joined("distortion", torch.float32) if model != "pinhole" else None
    camera = Camera(intrinsics, distortion, model)
    pose, root = rows.joined("pose", torch.float32), rows.joined("root", torch.float32)
    confidence = None
    if detections is None:
        points = project_samples(pose, root, camera)
    else:
        points, confidence = fill_missing(rows.joined("keypoints", torch.float32), intrinsics)
    return PoseDataset(
        keypoints=points,
        pose=pose,
        root=root,
        camera=camera,
        confidence=confidence,
        subjects=subjects,
        actions=actions,
        takes=[f"{subject}/{action}" for subject, action in pairs],
        skeleton=skeleton,
        name=capture.name,
        fps=capture.fps / stride,
        keypoint_source=keypoints,
        splits={split: list(names) for split, names in capture.splits.items()},
        **{name: rows.joined(name, dtype) for name, dtype in LABELS.items()},
    )


def _one_model(model: str, rig: CameraRig, keypoints: str, source: str, first: bool) -> str:
    if rig.distortion is None and keypoints == "distorted":
        raise ValueError(
            f"keypoints: 'distorted' was asked for, but the cameras of {source} have no distortion."
        )
    if not first and rig.model != model:
        raise ValueError(
            f"{source} mixes the camera models {model} and {rig.model}; one set can hold only one."
        )
    return rig.model


def _common_joints(
    capture: Capture, detections: Detections | None, joints: int | str | None
) -> tuple[Skeleton, list[int], list[int]]:
    """The skeleton of the samples, and the indices of its joints in the 3D and in the 2D."""
    have3d = capture.skeleton
    have2d = have3d
    if detections is not None:
        fitting = [each for each in _reductions(have3d) if each.num_joints == detections.num_joints]
        if not fitting:
            raise ValueError(
                f"{detections.source} has 2D of {detections.num_joints} joints, which does not "
                "fit the "
                f"{have3d.num_joints} joints of {capture.source}."
            )
        have2d = fitting[0]
        ours = (set(have2d.left), set(have2d.right))
        if (
            detections.symmetry is not None
            and tuple(set(side) for side in detections.symmetry) != ours
        ):
            raise ValueError(
                f"{detections.source} lists left and right joints that are not those of "
                f"{have2d.name}: its 2D is in "
                "another joint layout (COCO, say), whose joints cannot be compared with the 3D."
            )
    wanted = have2d if joints is None else get_skeleton(joints)
    fitting = [each for each in _reductions(have2d) if each.joints == wanted.joints]
    if not fitting:
        what = detections.source if detections is not None else capture.source
        raise ValueError(
            f"joints: {what} has the joints of {have2d.name}, which cannot give {wanted.name}."
        )
    chosen = fitting[0]
    return (
        chosen,
        [have3d.index(joint) for joint in chosen.joints],
        [have2d.index(joint) for joint in chosen.joints],
    )


def _reductions(skeleton: Skeleton) -> list[Skeleton]:
    """The layouts a skeleton's joints can give: itself, and 16 and 14 of Human3.6M's 17."""
    family = [get_skeleton(17), get_skeleton(16), get_skeleton(14)]
    for position, member in enumerate(family):
        if skeleton.joints == member.joints:
            return [skeleton, *family[position + 1 :]]
    return [skeleton]
