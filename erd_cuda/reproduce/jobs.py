"""What has to be trained: one job is one model, named by everything that determines it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from erd_cuda._version import __version__
from erd_cuda.training import TrainConfig

__all__ = [
    "DET2D",
    "DET2D_BARE",
    "GT2D",
    "INPUTS",
    "LENS2D",
    "LENS2D_PINHOLE",
    "LIFTERS",
    "Job",
    "Schedule",
    "in_order",
]

#: The paper's two inputs: the truth projected by pinholes, and detections.
GT2D, DET2D = "GT2D", "DET2D"
INPUTS = (GT2D, DET2D)
#: Detections that do not even say which joints are missing: they lie at the mean of the others.
DET2D_BARE = "DET2D, no confidences"
#: The truth seen through the cameras' lenses, with these cameras, or taken for a pinhole's picture.
LENS2D, LENS2D_PINHOLE = "lens", "lens ignored"
#: An input that differs from another only in its cameras, which no lifter sees, has its lifter.
_LIFTED_FROM = {LENS2D_PINHOLE: LENS2D}
LIFTERS = ("martinez", "lcn", "semgcn")

# Costs in batches of a stage, as measured on two CPU cores; they only serve the display of the time
# that is left.
_LIFTER_BATCH = {"martinez": 22.0, "lcn": 33.0, "semgcn": 60.0}
_MARTINEZ_WIDTH = 1024
_EVALUATION = 0.05  # of one test pose, through lifter and stages and twice


@dataclass(frozen=True)
class Schedule:
    """How long and how wide, for all jobs of a reproduction.

    Attributes:
        seeds: one model each.
        most_poses: training poses beyond this are thinned out evenly; None for all.
        stages: K.
        lifter_epochs, lifter_lr_decay, stage_epochs: as in `TrainConfig`.
        martinez_width: hidden width of Martinez et al.'s lifter; the others have their own.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    most_poses: int | None = None
    stages: int = 4
    lifter_epochs: int = 200
    lifter_lr_decay: float = 0.96
    martinez_width: int = 1024
    stage_epochs: int = 5


@dataclass(frozen=True)
class Job:
    """One model: a lifter and its stages.

    Attributes:
        source: name of the data, see `sources.Sources`.
        input: the kind of 2D, such as "GT2D".
        lifter: "martinez", "lcn" or "semgcn".
        features, root, block, confidence_weights, residual_limit: of the stages, as in
            `TrainConfig`.
        pca: components for lifter and stages, or None.
        seed: of initialisation, shuffling and dropout.
    """

    source: str
    input: str
    lifter: str = "martinez"
    features: str = "residual"
    root: str = "given"
    block: str = "linear"
    confidence_weights: bool = False
    residual_limit: float | None = None
    pca: int | None = None
    seed: int = 0

    @property
    def base(self) -> Job:
        """The job whose lifter this one's stages are built on: trained once, shared by all."""
        seen = _LIFTED_FROM.get(self.input, self.input)
        return Job(self.source, seen, self.lifter, pca=self.pca, seed=self.seed)

    @property
    def title(self) -> str:
        """For the progress display."""
        parts = [self.source, self.input, self.lifter]
        parts += [self.features] if self.features != "residual" else []
        parts += ["solved root"] if self.root != "given" else []
        parts += [self.block] if self.block != "linear" else []
        parts += ["confidence weights"] if self.confidence_weights else []
        if self.residual_limit is not None:
            parts.append(f"residual limit {self.residual_limit:g} px")
        parts += [f"pca {self.pca}"] if self.pca is not None else []
        return " ".join([*parts, f"seed {self.seed}"])

    def config(self, schedule: Schedule) -> TrainConfig:
        """What `erd_cuda.training.train` is called with."""
        return TrainConfig(
            stages=schedule.stages,
            block=self.block,
            features=self.features,
            pca=self.pca,
            root=self.root,
            confidence_weights=self.confidence_weights,
            residual_limit=self.residual_limit,
            lifter=self.lifter,
            lifter_width=schedule.martinez_width if self.lifter == "martinez" else None,
            lifter_epochs=schedule.lifter_epochs,
            lifter_lr_decay=schedule.lifter_lr_decay,
            stage_epochs=schedule.stage_epochs,
            seed=self.seed,
        )

    def key(self, schedule: Schedule, train_hash: str, test_hash: str) -> str:
        """Names the job's folder: other settings, data or program versions have another."""
        # Settings that are new since a model was trained must not make it stale, so what is at its
        # default does not count.
        content: dict[str, Any] = {
            "job": _changes(asdict(self), _FIRST_JOB),
            "config": _changes(self.config(schedule).to_dict(), _DEFAULTS),
            "train": train_hash,
            "test": test_hash,
            "version": __version__,
            "method": _METHOD,
        }
        text = json.dumps(content, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def lifter_batch_cost(self, schedule: Schedule) -> float:
        """Of one batch of the lifter, in units of a stage's batch."""
        cost = _LIFTER_BATCH[self.lifter]
        if self.lifter == "martinez":
            cost *= (schedule.martinez_width / _MARTINEZ_WIDTH) ** 2
        return cost

    def cost(self, schedule: Schedule, batches: int, test_poses: int) -> float:
        """Of training and evaluation, in units of a stage's batch."""
        cost = schedule.stages * schedule.stage_epochs * batches + _EVALUATION * test_poses
        if self == self.base:
            cost += schedule.lifter_epochs * batches * self.lifter_batch_cost(schedule)
        return cost


#: Raised whenever equal settings and data no longer give the same model or the same errors.
_METHOD = 2
_DEFAULTS = TrainConfig().to_dict()
_FIRST_JOB = asdict(Job("main", GT2D))


def _changes(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value != defaults[name]}


def in_order(jobs: list[Job]) -> list[Job]:
    """Every job once, the one it builds on before it."""
    return list(dict.fromkeys(step for job in jobs for step in (job.base, job)))
