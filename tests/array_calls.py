"""The cases of op_calls on NumPy or CuPy arrays instead of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from op_calls import Case
from torch import Tensor

import erd_cuda.array as ea
from erd_cuda import PackedRegressors


def as_arrays(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """NumPy arrays over the tensors' own memory, with their strides."""
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def as_weights(packed: PackedRegressors) -> ea.Weights:
    values = {field.name: getattr(packed, field.name) for field in fields(ea.Weights) if field.init}
    return ea.Weights(**{n: v.numpy() if isinstance(v, Tensor) else v for n, v in values.items()})


def array_call(
    case: Case, arrays: Mapping[str, Any], weights: ea.Weights | None = None, **options: Any
) -> Any:
    """The case's function on arrays, by position as the torch op is called."""
    camera = arrays["intrinsics"]
    if "distortion" in arrays:
        camera = ea.Camera(camera, arrays["distortion"], case.model)
    confidence = arrays.get("confidence")
    if case.op == "project":
        return ea.project(arrays["pose"], arrays["root"], camera)
    if case.op == "residual":
        return ea.residual(
            arrays["keypoints"],
            arrays["pose"],
            arrays["root"],
            camera,
            arrays.get("std"),
            confidence,
        )
    if case.op == "solve_root":
        return ea.solve_root(arrays["keypoints"], arrays["pose"], camera, confidence, **options)
    if case.op == "solve_residual":
        std = arrays.get("std")
        residual, root = ea.solve_residual(
            arrays["keypoints"], arrays["pose"], camera, std, confidence
        )
        return np.concatenate(
            [residual.reshape(*root.shape[:-1], 2 * residual.shape[-2]), root], axis=-1
        )
    root = arrays["root"] if case.root_mode == "given" else case.root_mode
    assert weights is not None
    return ea.refine(
        arrays["keypoints"], arrays["pose"], root, camera, weights, confidence, **options
    )


def same_bits(got: Any, want: Any) -> bool:
    """Whether two arrays agree in dtype, shape and every bit, NaN included."""
    got, want = np.asarray(got), np.asarray(want)
    return got.dtype == want.dtype and got.shape == want.shape and got.tobytes() == want.tobytes()
