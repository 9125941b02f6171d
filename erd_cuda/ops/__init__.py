"""The operators: projection, 2D residual, root solve and the fused refiner."""

from .geometry import MIN_DEPTH, RootStatus, project, residual, solve_residual, solve_root
from .refine import refine

__all__ = [
    "MIN_DEPTH",
    "RootStatus",
    "project",
    "refine",
    "residual",
    "solve_residual",
    "solve_root",
]
