"""What determines the result of a training run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from erd_cuda.modules.arguments import ROOTS
from erd_cuda.modules.packing import FEATURES
from erd_cuda.modules.regressor import BLOCKS

__all__ = ["TrainConfig"]


@dataclass(frozen=True)
class TrainConfig:
    """Architecture, schedule and seed. The defaults are the paper's.

    Two runs with equal configurations on equal data, on a CPU with the same number of threads, give
    the same model bit for bit. What is no matter of the method (where files go, progress bars, the
    device) is elsewhere.

    Attributes:
        stages: K, the number of refinement stages.
        width: Hidden width of a stage's regressor.
        block: "linear" (the paper) or "relu", see :class:`erd_cuda.ResidualRegressor`.
        features: The regressor's input: "residual" (the method), or the ablations "concat",
            "init2d", "proj2d".
        pca: Number of principal components of the z-scored 2D fed to lifter and stages; None for
            none.
        root: "given", "solve" (once, from the lifter's pose) or "solve_each_stage".
        dropout: Dropout of lifter and regressors.
        lifter_width: Hidden width of the lifter.
        lifter_blocks: Residual blocks of the lifter.
        lifter_epochs, lifter_batch_size, lifter_lr, lifter_lr_decay: Adam on the mean squared error
            of z-scored 3D; the learning rate is multiplied by the decay after every epoch.
        stage_epochs, stage_batch_size, stage_lr, stage_lr_decay, stage_decay_every: Adam on the
            mean squared error in mm^2 of the accumulated pose, one stage after the other; the
            learning rate is multiplied by the decay every ``stage_decay_every`` epochs and starts
            anew with each stage.
        seed: Seed of initialisation, shuffling and dropout.
    """

    stages: int = 4
    width: int = 256
    block: str = "linear"
    features: str = "residual"
    pca: int | None = None
    root: str = "given"
    dropout: float = 0.25
    lifter_width: int = 1024
    lifter_blocks: int = 2
    lifter_epochs: int = 200
    lifter_batch_size: int = 200
    lifter_lr: float = 1e-3
    lifter_lr_decay: float = 0.96
    stage_epochs: int = 5
    stage_batch_size: int = 200
    stage_lr: float = 1e-3
    stage_lr_decay: float = 0.96
    stage_decay_every: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "stages",
            "width",
            "lifter_width",
            "lifter_epochs",
            "stage_epochs",
            "stage_decay_every",
        ):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("lifter_batch_size", "stage_batch_size"):
            self._require(
                name, getattr(self, name) >= 2, "at least 2 (batch norm needs two samples)"
            )
        for name in ("lifter_lr", "stage_lr"):
            self._require(name, getattr(self, name) > 0, "positive")
        for name in ("lifter_lr_decay", "stage_lr_decay"):
            self._require(name, 0 < getattr(self, name) <= 1, "in (0, 1]")
        self._require("lifter_blocks", self.lifter_blocks >= 0, "at least 0")
        self._require("pca", self.pca is None or self.pca >= 1, "at least 1")
        self._require("dropout", 0 <= self.dropout < 1, "in [0, 1)")
        self._require("seed", 0 <= self.seed < 2**32, "in [0, 2**32)")
        for name, choices in (("block", BLOCKS), ("features", FEATURES), ("root", ROOTS)):
            self._require(name, getattr(self, name) in choices, "one of " + ", ".join(choices))

    def _require(self, name: str, condition: bool, expected: str) -> None:
        if not condition:
            raise ValueError(f"{name} must be {expected}, got {getattr(self, name)!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values by field name, for files."""
        return asdict(self)

    def differences(self, other: dict[str, Any]) -> list[str]:
        """Fields that have another value in ``other``, made by :meth:`to_dict`, as text."""
        return [
            f"{item.name} ({other.get(item.name)!r} there, {getattr(self, item.name)!r} here)"
            for item in fields(self)
            if other.get(item.name) != getattr(self, item.name)
        ]
