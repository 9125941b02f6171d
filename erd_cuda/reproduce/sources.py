"""The data of a reproduction: a benchmark seen with true and with detected 2D, and HumanEva-I."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from erd_cuda.camera import Camera
from erd_cuda.data import DetectorNoise, PoseDataset, load_dataset

from .jobs import DET2D, DET2D_BARE, GT2D, LENS2D, LENS2D_PINHOLE, Schedule

__all__ = ["Source", "Sources"]


def _bare(data: PoseDataset) -> PoseDataset:
    return replace(data, confidence=None)


def _as_pinhole(data: PoseDataset) -> PoseDataset:
    return replace(data, camera=Camera.pinhole(data.camera.intrinsics))


#: Kinds of 2D that are made of another.
_MADE_OF = {DET2D_BARE: (DET2D, _bare), LENS2D_PINHOLE: (LENS2D, _as_pinhole)}


@dataclass
class Source:
    """One data set with both kinds of 2D.

    Attributes:
        path: what `load_dataset` takes.
        detections: a detector's name, whose file lies beside the poses; None: `noise` is made.
        noise: mean error in px of the simulated detector where there are no detections.
        cameras: see `load_dataset`.
        actions: those to keep if the data have them; () for all.
        same_detector: another source, whose simulated detector this one has: it errs by as much of
            a person's size in the picture, not by as many px.
    """

    path: str
    detections: str | None = None
    noise: float = 6.7
    cameras: Path | None = None
    actions: tuple[str, ...] = ()
    same_detector: Source | None = None
    _loaded: dict[tuple[str, str, int | None], PoseDataset] = field(default_factory=dict)
    _hashes: dict[tuple[str, str, int | None], str] = field(default_factory=dict)

    def load(self, split: str, kind: str, most_poses: int | None = None) -> PoseDataset:
        """The samples of a split with one kind of 2D, at most `most_poses`, evenly thinned."""
        if kind in _MADE_OF:
            origin, change = _MADE_OF[kind]
            return change(self.load(split, origin, most_poses))
        asked = (split, kind, most_poses)
        if asked not in self._loaded:
            data = self._load(split, kind)
            if most_poses is not None and len(data) > most_poses:
                data = data[:: math.ceil(len(data) / most_poses)]
            self._loaded[asked] = data
        return self._loaded[asked]

    def _load(self, split: str, kind: str) -> PoseDataset:
        keypoints = {GT2D: None, LENS2D: "distorted", DET2D: self.detections}[kind]
        data = load_dataset(self.path, split, keypoints=keypoints, cameras=self.cameras)
        kept = [name for name in data.actions if name in self.actions]
        if kept:
            data = data.select(actions=kept)
        if kind != DET2D or self.detections is not None:
            return data
        scale = None if self.same_detector is None else self.same_detector.detector_scale()
        return DetectorNoise(self.noise).apply(data, scale=scale)

    def detector_scale(self) -> float:
        """Width of the simulated detector's Gaussian as a share of a person's size."""
        return DetectorNoise(self.noise).calibrated(self.load("test", GT2D))

    def content_hash(self, split: str, kind: str, most_poses: int | None = None) -> str:
        """Of the samples that `load` gives; computed once, since it takes seconds."""
        asked = (split, kind, most_poses)
        if asked not in self._hashes:
            self._hashes[asked] = self.load(split, kind, most_poses).content_hash()
        return self._hashes[asked]

    def kinds(self) -> frozenset[str]:
        """The kinds of 2D that there are: confidences and lenses are not in all data."""
        found = {GT2D, DET2D}
        if self.detections is None or self.load("test", DET2D).confidence is not None:
            found |= {DET2D_BARE}
        try:
            lens = self.load("test", LENS2D).camera.distortion
        except ValueError:  # a pose file of pinhole 2D
            lens = None
        return frozenset(found if lens is None else found | {LENS2D, LENS2D_PINHOLE})

    def describe(self) -> dict[str, Any]:
        """For the configuration that stands beside the results."""
        facts: dict[str, Any] = {"path": Path(self.path).name}
        if self.actions:
            facts["actions"] = list(self.actions)
        if self.detections is None:
            px = self.noise if self.same_detector is None else self.same_detector.noise
            on = "" if self.same_detector is None else f"_on_{Path(self.same_detector.path).name}"
            return facts | {f"simulated_detector_px{on}": px}
        return facts | {"detector": self.detections}


@dataclass
class Sources:
    """All data of a reproduction, by name."""

    by_name: dict[str, Source]

    def train(self, name: str, kind: str, schedule: Schedule) -> PoseDataset:
        """The training split."""
        return self.by_name[name].load("train", kind, schedule.most_poses)

    def test(self, name: str, kind: str) -> PoseDataset:
        """The test split, whole. Nothing but evaluation asks for it."""
        return self.by_name[name].load("test", kind)

    def hashes(self, name: str, kind: str, schedule: Schedule) -> tuple[str, str]:
        """Content hashes of `train` and `test`."""
        source = self.by_name[name]
        train = source.content_hash("train", kind, schedule.most_poses)
        return train, source.content_hash("test", kind)
