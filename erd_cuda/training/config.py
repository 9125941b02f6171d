"""What determines the result of a training run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from erd_cuda._definitions import FEATURES, LIFTER_SIZES
from erd_cuda._shapes import limit_setting
from erd_cuda.modules.arguments import ROOTS
from erd_cuda.modules.lifters import check_pca
from erd_cuda.modules.regressor import BLOCKS

__all__ = ["RECIPES", "TrainConfig"]

#: Settings by the name of a recipe: those of `TrainConfig` that differ from the paper's. "best" was
#: chosen on subjects held out of the training subjects, in pictures of Human3.6M's size:
#: confidences, where the data have them, weigh the joints, no coordinate of a residual counts more
#: than 25 px, and two stages do (two more change the error by at most 1.4 %, up or down).
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {},
    "best": {"stages": 2, "confidence_weights": True, "residual_limit": 25.0},
}


@dataclass(frozen=True)
class TrainConfig:
    """Architecture, schedule and seed. The defaults are the paper's, `RECIPES` has a better one.

    Two runs with equal configurations on equal data, on a CPU with the same number of threads, give
    the same model bit for bit. What is no matter of the method (where files go, progress bars, the
    device) is elsewhere.

    Attributes:
        stages: K, the number of refinement stages.
        width: Hidden width of a stage's regressor.
        block: "linear" (the paper) or "relu", see :class:`erd_cuda.ResidualRegressor`.
        features: The regressor's input: "residual" (the method), the ablations "concat", "init2d",
            "proj2d", or "residual+pose" (not in the paper: the current pose beside the residual).
        pca: Number of principal components of the z-scored 2D fed to lifter and stages; None for
            none. The lifters that look at joints, all but "martinez", cannot take them.
        root: "given", "solve" (once, from the lifter's pose) or "solve_each_stage".
        dropout: Dropout of lifter and regressors; SemGCN has none.
        confidence_weights: Whether the stages weigh the joints by the data's confidences. The paper
            has none: without weights, confidences only mark missing joints, those of 0.
        residual_limit: Px, the most that each coordinate of a residual counts; None, the paper's,
            for any. Features without a residual know no limit.
        lifter: The lifter to train: "martinez", "lcn", "semgcn", or "semgcn-nonlocal" for SemGCN
            with non-local layers.
        lifter_width: Hidden width of the lifter, for the graph networks channels of a joint. None
            for the lifter's own, and then replaced by it: 1024 for Martinez et al., 64 for LCN, 128
            for SemGCN.
        lifter_blocks: Residual blocks of the lifter; None for its own: 2, 3 and 4.
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
    confidence_weights: bool = False
    residual_limit: float | None = None
    lifter: str = "martinez"
    lifter_width: int | None = None
    lifter_blocks: int | None = None
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
        self._require("lifter", self.lifter in LIFTER_SIZES, "one of " + ", ".join(LIFTER_SIZES))
        for name, own in zip(
            ("lifter_width", "lifter_blocks"), LIFTER_SIZES[self.lifter], strict=True
        ):
            if getattr(self, name) is None:
                object.__setattr__(self, name, own)
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
        self._require("lifter_blocks", (self.lifter_blocks or 0) >= 0, "at least 0")
        self._require("pca", self.pca is None or self.pca >= 1, "at least 1")
        check_pca(self.lifter, self.pca)
        self._require("dropout", 0 <= self.dropout < 1, "in [0, 1)")
        object.__setattr__(self, "residual_limit", limit_setting(self.residual_limit))
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
        """Fields that have another value in ``other``, made by :meth:`to_dict`, as text.

        What an earlier version had no field for is as it was then: at its default, but for
        confidences, which always weighed.
        """
        before = {item.name: item.default for item in fields(self)} | {"confidence_weights": True}
        there = before | {name: other[name] for name in before if name in other}
        return [
            f"{name} ({value!r} there, {getattr(self, name)!r} here)"
            for name, value in there.items()
            if value != getattr(self, name)
        ]
