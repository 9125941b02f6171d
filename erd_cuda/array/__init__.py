"""The fused functions on NumPy arrays, and on CuPy arrays on the GPU, without torch.

`project`, `residual`, `solve_root`, `solve_residual` and `refine` are those of `erd_cuda`: the same
arguments, units, shapes and results from the same kernels, forward only. Arrays of CuPy are worked
on in CuPy's current stream, and results are CuPy arrays on the same GPU. Importing this package,
and all it does, needs NumPy and safetensors but no torch.
"""

from __future__ import annotations

from .._definitions import MIN_DEPTH, RootStatus
from .._model_file import bundled_models
from .camera import Camera
from .geometry import project, residual, solve_residual, solve_root
from .native import get_num_threads, set_num_threads
from .refine import refine
from .weights import Weights, load_weights

__all__ = [
    "MIN_DEPTH",
    "Camera",
    "RootStatus",
    "Weights",
    "bundled_models",
    "get_num_threads",
    "load_weights",
    "project",
    "refine",
    "residual",
    "set_num_threads",
    "solve_residual",
    "solve_root",
]
