"""A stage in float64 that rounds to bf16 where the CPU kernels do."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from erd_cuda import PackedRegressors
from erd_cuda.benchmarks import oracle
from erd_cuda.benchmarks.problems import Problem

Array = NDArray[np.float64]


def rounded(values: Array) -> Array:
    """torch's own rounding to bf16."""
    return torch.from_numpy(values.astype(np.float32)).bfloat16().double().numpy()


def features_of(weights: PackedRegressors, problem: Problem, weight: Array | None) -> Array:
    """As PackedRegressors describes them, of problem.pose: (N, F)."""
    mean = weights.mean2d.double().numpy()
    projection = oracle.project(problem.pose, problem.root, *problem.lens)
    present = 1.0 if weight is None else (weight > 0)[..., None]
    residual = oracle.residual(
        problem.keypoints, problem.pose, problem.root, *problem.lens, confidence=weight
    )
    measured = np.where(present, problem.keypoints - mean, 0.0)
    parts = {
        "residual": [residual],
        "init2d": [measured],
        "proj2d": [projection - mean],
        "concat": [measured, projection - mean],
        "residual+pose": [residual, problem.pose],
    }[weights.features]
    return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)


def increment_of(weights: PackedRegressors, k: int, features: Array) -> Array:
    """Stage k's step with weights, features and hidden units rounded, sums in float64: (N, 3J)."""

    def layer(x: Array, matrix: Tensor, bias: Tensor) -> Array:
        return x @ rounded(matrix.double().numpy()).T + bias.double().numpy()

    def relu(x: Array) -> Array:
        return np.maximum(x, 0.0)

    hidden = rounded(relu(layer(rounded(features), weights.w_in[k], weights.b_in[k])))
    if weights.w_hidden is not None and weights.b_hidden is not None:
        for matrix, bias in zip(weights.w_hidden[k], weights.b_hidden[k], strict=True):
            hidden = rounded(hidden + relu(layer(hidden, matrix, bias)))
    return layer(hidden, weights.w_out[k], weights.b_out[k])
