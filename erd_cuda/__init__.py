"""Explicit Residual Descent: 3D human poses sharpened by their own 2D residual, in fused kernels.

Importing this package is cheap: torch and the compiled operators are loaded when the first name
that needs them is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .body_size import bone_length
    from .build import build_info
    from .camera import Camera
    from .data import PoseDataset, Skeleton, get_skeleton, load_dataset
    from .modules import (
        ERD,
        PCA,
        LCNLifter,
        Lifter,
        MartinezLifter,
        PackedRegressors,
        ResidualRegressor,
        SemGCNLifter,
        bundled_models,
    )
    from .ops import MIN_DEPTH, RootStatus, project, residual, solve_residual, solve_root
    from .ops.refine import refine

_HOMES = {
    "Camera": "camera",
    "ERD": "modules",
    "LCNLifter": "modules",
    "Lifter": "modules",
    "MIN_DEPTH": "_definitions",
    "MartinezLifter": "modules",
    "PCA": "modules",
    "PackedRegressors": "modules",
    "PoseDataset": "data",
    "ResidualRegressor": "modules",
    "RootStatus": "_definitions",
    "SemGCNLifter": "modules",
    "Skeleton": "data",
    "bone_length": "body_size",
    "build_info": "build",
    "bundled_models": "_model_file",
    "get_skeleton": "data",
    "load_dataset": "data",
    "project": "ops",
    "refine": "ops",
    "residual": "ops",
    "solve_residual": "ops",
    "solve_root": "ops",
}

__all__ = [
    "ERD",
    "MIN_DEPTH",
    "PCA",
    "Camera",
    "LCNLifter",
    "Lifter",
    "MartinezLifter",
    "PackedRegressors",
    "PoseDataset",
    "ResidualRegressor",
    "RootStatus",
    "SemGCNLifter",
    "Skeleton",
    "__version__",
    "bone_length",
    "build_info",
    "bundled_models",
    "get_skeleton",
    "load_dataset",
    "project",
    "refine",
    "residual",
    "solve_residual",
    "solve_root",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'erd_cuda' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
