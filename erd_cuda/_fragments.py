"""Weights of collapsed regressors in the order in which tensor cores take them.

csrc/cuda/fragments.h explains the layout; this is where it is made, once per model. NumPy alone, so
that it serves `erd_cuda.array` where torch is not installed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._shapes import raw_features

Array = NDArray[np.float32]
Bits = NDArray[np.uint16]

MAX_JOINTS = 32
MAX_WIDTH = 512

#: Numbers of the precisions in csrc/core/calls.h.
PRECISIONS = {"fp32": 0, "split": 1, "fp16": 2, "bf16": 3}


@dataclass(frozen=True)
class Fragments:
    """What the tensor-core kernels read.

    Attributes:
        weights: 16-bit numbers, as their bits.
        biases: float32.
        feature_scale: power of two that the features are multiplied by.
    """

    weights: Bits
    biases: Array
    feature_scale: float


def fits_tensor_cores(block: str, features: str, joints: int, width: int) -> bool:
    """Whether regressors of these sizes have a tensor-core kernel."""
    return (
        (block == "relu" or raw_features(features, joints) == 2 * joints)
        and joints <= MAX_JOINTS
        and width % 16 == 0
        and width <= MAX_WIDTH
    )


def collapsed_fragments(
    w_in: Array, b_in: Array, w_out: Array, b_out: Array, precision: str
) -> Fragments:
    """Arranges the weights of all stages.

    Args:
        w_in: (K, H, 2J).
        b_in: (K, H).
        w_out: (K, 3J, H).
        b_out: (K, 3J).
        precision: "fp16", "bf16", or "split": two fp16 numbers a weight, the second what rounding
            left over.
    """
    stages, width, features = w_in.shape
    joints = features // 2
    per_lane = 5 if joints <= 20 else 8
    scale = input_scale(w_in)
    first = np.zeros((stages, width, 8 * per_lane), np.float32)
    first[:, :, :features] = w_in * scale
    second = _by_column(w_out, per_lane)
    parts = [
        np.concatenate(
            [_first_product(a, stages, width, per_lane), _second_product(b, stages, width)], axis=2
        )
        for a, b in zip(rounded(first, precision), rounded(second, precision), strict=True)
    ]
    return Fragments(
        weights=np.ascontiguousarray(np.stack(parts, axis=2).reshape(-1)),
        biases=np.concatenate(
            [_lane_order(b_in).reshape(stages, -1), _by_column(b_out[..., None], per_lane)[..., 0]],
            axis=1,
        )
        .reshape(-1)
        .astype(np.float32),
        feature_scale=1.0 / scale,
    )


def input_scale(w_in: Array) -> float:
    """A power of two that brings the largest input weight to between 1/4 and 1/2."""
    largest = float(np.abs(w_in).max(initial=0.0))
    if not 0 < largest < math.inf:
        return 1.0
    return 2.0 ** (-2 - math.floor(math.log2(largest)))


def rounded(values: Array, precision: str) -> list[Bits]:
    """The bits of the 16-bit numbers that stand for float32 ones: one each, two for "split"."""
    if precision == "bf16":
        return [_bf16_bits(values)]
    with np.errstate(over="ignore", invalid="ignore"):
        high = _fp16(values)
        if precision == "fp16":
            return [high.view(np.uint16)]
        return [high.view(np.uint16), _fp16(values - high.astype(np.float32)).view(np.uint16)]


def _fp16(values: Array) -> NDArray[np.float16]:
    return np.clip(values, -65504.0, 65504.0).astype(np.float16)


def _bf16_bits(values: Array) -> Bits:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    # To the nearest, ties to the even one; NaN must not be carried into infinity.
    nearest = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), bits >> 16 | 0x40, nearest).astype(np.uint16)


def _lane_order(b_in: Array) -> Array:
    # hidden unit 16 p + 8 side + 2 t + i  ->  [p][t][side][i]
    return b_in.reshape(len(b_in), -1, 2, 4, 2).transpose(0, 1, 3, 2, 4)


def _by_column(w_out: Array, per_lane: int) -> Array:
    """(K, 3J, ...) outputs to the columns of the second product, (K, columns, ...)."""
    stages, outputs, depth = w_out.shape
    by_joint = np.zeros((stages, per_lane, 4, 3, depth), w_out.dtype)
    by_joint.reshape(stages, 4 * per_lane, 3, depth)[:, : outputs // 3] = w_out.reshape(
        stages, outputs // 3, 3, depth
    )
    tiles = (3 * per_lane + 3) // 4 * 2
    # value v = 3 m + c of lane t  ->  tile v / 2, column 2 t + v % 2
    by_value = np.zeros((stages, 2 * tiles, 4, depth), w_out.dtype)
    by_value[:, : 3 * per_lane] = by_joint.transpose(0, 1, 3, 2, 4).reshape(stages, -1, 4, depth)
    columns = by_value.reshape(stages, tiles, 2, 4, depth).transpose(0, 1, 3, 2, 4)
    return columns.reshape(stages, 8 * tiles, depth)


def _first_product(bits: Bits, stages: int, width: int, per_lane: int) -> Any:
    """(K, H / 16, -1) fragments of (K, H, F) weights."""
    full = per_lane // 2 * 16
    # [k][p][side][g] x [step][half][t][i]  ->  [k][p] [step][g][t][side][half][i]
    steps = bits[:, :, :full].reshape(stages, width // 16, 2, 8, -1, 2, 4, 2)
    pieces = [steps.transpose(0, 1, 4, 3, 6, 2, 5, 7).reshape(stages, width // 16, -1)]
    if per_lane % 2:
        # [k][p][side][g] x [t][i]  ->  [k][p] [g][t][side][i]
        rest = bits[:, :, full:].reshape(stages, width // 16, 2, 8, 4, 2)
        pieces.append(rest.transpose(0, 1, 3, 4, 2, 5).reshape(stages, width // 16, -1))
    return np.concatenate(pieces, axis=2)


def _second_product(bits: Bits, stages: int, width: int) -> Any:
    """(K, H / 16, -1) fragments of (K, columns, H) weights."""
    # [k][pair][tile][g] x [p][half][t][i]  ->  [k][p] [pair][g][t][tile][half][i]
    tiles = bits.reshape(stages, -1, 2, 8, width // 16, 2, 4, 2)
    return tiles.transpose(0, 4, 1, 3, 6, 2, 5, 7).reshape(stages, width // 16, -1)
