"""PoseDataset: poses, 2D keypoints, cameras and labels as tensors, one row per sample."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from erd_cuda.body_size import bone_length
from erd_cuda.camera import Camera
from erd_cuda.data.skeleton import Skeleton

LABELS = {
    "subject": torch.int16,
    "action": torch.int16,
    "take": torch.int32,
    "view": torch.int8,
    "frame": torch.int32,
}


@dataclass(eq=False)
class PoseDataset:
    """N samples: one pose seen by one camera each. Sequences are stored take by take, view by view,
    in time order.

    Attributes:
        keypoints: (N, J, 2) float32, px.
        pose: (N, J, 3) float32, mm, relative to the root joint, in the axes of the sample's camera.
        root: (N, 3) float32, mm, the root joint in the camera frame.
        camera: batch (N,).
        confidence: (N, J) float32, or None where every joint counts fully; 0 marks a missing joint.
        subject: (N,) int16, index into `subjects`.
        action: (N,) int16, index into `actions`.
        take: (N,) int32, index into `takes`.
        view: (N,) int8, number of the camera.
        frame: (N,) int32, number of the frame within its take.
        subjects: names of the subjects.
        actions: names of the action groups: a take's key up to its first space.
        takes: names of the recorded sequences, ``subject/key``, such as ``S9/Walking 1``.
        skeleton: what the J joints are.
        name: name of the data set, for titles.
        fps: frames per second of the sequences.
        keypoint_source: where the 2D comes from: ``"pinhole"``, ``"distorted"`` or a detector's
            name.
        splits: names of the subjects in each split, such as ``{"train": [...], "test": [...]}``.
        initial: (N, J, 3) float32, mm, root-relative like `pose`, or None: what a lifter predicted
            for the samples. Training and evaluation then begin with these poses and run no lifter;
            `with_predictions` takes them from a file.

    Raises:
        ValueError: tensors do not fit each other.
        TypeError: a tensor has the wrong dtype.
    """

    keypoints: Tensor
    pose: Tensor
    root: Tensor
    camera: Camera
    confidence: Tensor | None
    subject: Tensor
    action: Tensor
    take: Tensor
    view: Tensor
    frame: Tensor
    subjects: list[str]
    actions: list[str]
    takes: list[str]
    skeleton: Skeleton
    name: str
    fps: float
    keypoint_source: str = "pinhole"
    splits: dict[str, list[str]] = field(default_factory=dict)
    initial: Tensor | None = None

    def __post_init__(self) -> None:
        count, joints = len(self.pose), self.skeleton.num_joints
        expected = {"keypoints": (count, joints, 2), "pose": (count, joints, 3), "root": (count, 3)}
        if self.confidence is not None:
            expected["confidence"] = (count, joints)
        if self.initial is not None:
            expected["initial"] = (count, joints, 3)
        for name, shape in expected.items():
            _check(name, getattr(self, name), shape, torch.float32)
        for name, dtype in LABELS.items():
            _check(name, getattr(self, name), (count,), dtype)
        if tuple(self.camera.batch_shape) != (count,):
            raise ValueError(
                f"camera: expected batch shape ({count},), got {tuple(self.camera.batch_shape)}."
            )
        for name, names in (
            ("subject", self.subjects),
            ("action", self.actions),
            ("take", self.takes),
        ):
            labels = getattr(self, name)
            if count and not 0 <= int(labels.min()) <= int(labels.max()) < len(names):
                raise ValueError(
                    f"{name}: indices must be from 0 to {len(names) - 1}, the names given in "
                    f"{name}s."
                )

    def __len__(self) -> int:
        return len(self.pose)

    @property
    def num_joints(self) -> int:
        """Number of joints J."""
        return self.skeleton.num_joints

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> PoseDataset:
        """The samples at an index, slice, list of indices or mask, always as a PoseDataset.

        Slices share memory with this data set.
        """
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"index {index} is out of range for {len(self)} samples.")
            start = index % len(self)
            index = slice(start, start + 1)
        elif not isinstance(index, slice):
            index = torch.as_tensor(index, device=self.pose.device)
            if index.dtype == torch.bool and index.shape != (len(self),):
                raise ValueError(
                    f"index: a mask must have shape ({len(self)},), got {tuple(index.shape)}."
                )
            if index.dtype != torch.bool:
                index = index.long().reshape(-1)
        rows: dict[str, Any] = {name: value[index] for name, value in self._rows().items()}
        return replace(self, camera=self.camera[index], **rows)

    def to(self, device: torch.device | str) -> PoseDataset:
        """The same samples with all tensors on ``device``."""
        rows: dict[str, Any] = {name: value.to(device) for name, value in self._rows().items()}
        return replace(self, camera=self.camera.to(device), **rows)

    def _rows(self) -> dict[str, Tensor]:
        """All tensors of N rows but the camera's."""
        rows = {name: getattr(self, name) for name in (*_ROWS, *_OPTIONAL_ROWS)}
        return {name: value for name, value in rows.items() if value is not None}

    def select(
        self,
        subjects: Iterable[str] | None = None,
        actions: Iterable[str] | None = None,
        takes: Iterable[str] | None = None,
    ) -> PoseDataset:
        """The samples of the named subjects, action groups and takes (each None for all).

        Names that no chosen sample uses are dropped from the lists of names.

        Raises:
            ValueError: the data set does not know a name.
            TypeError: a single string was given for a list of names.
        """
        keep = torch.ones(len(self), dtype=torch.bool, device=self.pose.device)
        for argument, wanted, names, labels in (
            ("subjects", subjects, self.subjects, self.subject),
            ("actions", actions, self.actions, self.action),
            ("takes", takes, self.takes, self.take),
        ):
            if wanted is None:
                continue
            chosen = torch.zeros(len(names), dtype=torch.bool, device=labels.device)
            for name in name_list(argument, wanted):
                if name not in names:
                    known = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
                    raise ValueError(
                        f"{argument}: {name!r} is not in {self.name}, which has {known}."
                    )
                chosen[names.index(name)] = True
            keep &= chosen[labels.long()]
        return self[keep]._with_used_names()

    def _with_used_names(self) -> PoseDataset:
        """The same samples, knowing only the names they use, in order of appearance."""
        changes: dict[str, Any] = {}
        for label in ("subject", "action", "take"):
            names: list[str] = getattr(self, label + "s")
            order = list(dict.fromkeys(getattr(self, label).unique_consecutive().tolist()))
            changes[label + "s"] = [names[old] for old in order]
            changes[label] = _relabelled(self, label, changes[label + "s"])
        return replace(self, **changes)

    def person_size(self) -> Tensor:
        """Mean total bone length (N,) in mm of each sample's subject, from the true poses."""
        length = bone_length(self.pose.double(), self.skeleton)
        subject = self.subject.long()
        total = length.new_zeros(len(self.subjects)).index_add_(0, subject, length)
        count = torch.bincount(subject, minlength=len(self.subjects))
        return (total / count)[subject].to(self.pose.dtype)

    def sequence(self, take: str, view: int = 0) -> PoseDataset:
        """One take as one camera saw it, in time order.

        Raises:
            ValueError: there is no such take or view.
        """
        chosen = self.select(takes=[take])
        views = chosen.view.unique().tolist()
        if view not in views:
            raise ValueError(f"view: take {take!r} has the views {views}, not {view}.")
        return chosen[chosen.view == view]

    @classmethod
    def concat(cls, datasets: Sequence[PoseDataset]) -> PoseDataset:
        """All samples of several data sets, one after another; equal names of subjects, actions and
        takes merge.

        Name, fps and splits are merged too: the first name and fps are kept, the subjects of equal
            splits are united.

        Raises:
            ValueError: there are none, or skeletons, camera models or keypoint sources differ, or
                only some have initial poses.
        """
        parts = list(datasets)
        if not parts:
            raise ValueError("datasets: expected at least one PoseDataset, got none.")
        first = parts[0]
        for part in parts[1:]:
            for what, ours, theirs in (
                ("skeleton", first.skeleton.joints, part.skeleton.joints),
                ("camera model", first.camera.model, part.camera.model),
                ("keypoint source", first.keypoint_source, part.keypoint_source),
            ):
                if ours != theirs:
                    raise ValueError(
                        f"datasets: {first.name} and {part.name} differ in their {what}: {ours} "
                        f"and {theirs}."
                    )
            if (part.initial is None) != (first.initial is None):
                raise ValueError(
                    f"datasets: {first.name} and {part.name} must both have initial poses, or "
                    "neither."
                )
        merged: dict[str, Any] = {
            name: torch.cat([getattr(part, name) for part in parts])
            for name in ("keypoints", "pose", "root", "view", "frame")
        }
        if first.initial is not None:
            merged["initial"] = torch.cat(
                [part.initial for part in parts if part.initial is not None]
            )
        for label in ("subject", "action", "take"):
            names = list(
                dict.fromkeys(name for part in parts for name in getattr(part, label + "s"))
            )
            merged[label + "s"] = names
            merged[label] = torch.cat([_relabelled(part, label, names) for part in parts])
        if any(part.confidence is not None for part in parts):
            merged["confidence"] = torch.cat(
                [
                    torch.ones_like(part.pose[..., 0])
                    if part.confidence is None
                    else part.confidence
                    for part in parts
                ]
            )
        distortions = [
            part.camera.distortion for part in parts if part.camera.distortion is not None
        ]
        camera = Camera(
            torch.cat([part.camera.intrinsics for part in parts]),
            torch.cat(distortions) if distortions else None,
            first.camera.model,
        )
        splits = {
            split: list(
                dict.fromkeys(name for part in parts for name in part.splits.get(split, []))
            )
            for split in dict.fromkeys(split for part in parts for split in part.splits)
        }
        return replace(first, camera=camera, splits=splits, **merged)

    def metadata(self) -> dict[str, Any]:
        """Everything but the tensors, JSON-ready."""
        return {
            "name": self.name,
            "fps": self.fps,
            "camera_model": self.camera.model,
            "keypoint_source": self.keypoint_source,
            "skeleton": self.skeleton.to_dict(),
            "subjects": self.subjects,
            "actions": self.actions,
            "takes": self.takes,
            "splits": self.splits,
        }

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that are not None, the camera's as ``intrinsics`` and ``distortion``."""
        table = self._rows() | {"intrinsics": self.camera.intrinsics}
        if self.camera.distortion is not None:
            table["distortion"] = self.camera.distortion
        return table

    def content_hash(self) -> str:
        """Hexadecimal digest of all samples and names but the data set's own.

        Equal data give equal digests, whichever file they came from.
        """
        digest = hashlib.sha256()
        metadata = self.metadata()
        del metadata["name"]
        digest.update(json.dumps(metadata, sort_keys=True).encode())
        for name, tensor in sorted(self.tensors().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a pose file; see `erd_cuda.data.posefile`."""
        from erd_cuda.data.posefile import write_poses

        write_poses(path, self)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> PoseDataset:
        """Read what `save` wrote; see `erd_cuda.data.posefile`."""
        from erd_cuda.data.posefile import read_poses

        return read_poses(path)


_ROWS = ("keypoints", "pose", "root", *LABELS)
_OPTIONAL_ROWS = ("confidence", "initial")


def name_list(argument: str, names: Iterable[str]) -> list[str]:
    """Names as a list, each once; a lone string would be taken letter by letter and is refused."""
    if isinstance(names, str):
        raise TypeError(f"{argument}: expected a list of names, got the single string {names!r}.")
    return list(dict.fromkeys(names))


def _check(name: str, tensor: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}.")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}.")
    if tensor.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {dtype}, got {tensor.dtype}.")


def _relabelled(part: PoseDataset, label: str, names: list[str]) -> Tensor:
    """The part's labels as indices into the merged names."""
    old: Tensor = getattr(part, label)
    position = {name: index for index, name in enumerate(names)}
    # Names that no sample uses may be missing from the new list; their entry is never looked up.
    entries = [position.get(name, -1) for name in getattr(part, label + "s")]
    table = torch.tensor(entries, dtype=old.dtype, device=old.device)
    return table[old.long()]
