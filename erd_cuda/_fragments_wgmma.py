"""Weights of collapsed regressors in the order in which Hopper's warpgroup products take them.

csrc/cuda/fragments_wgmma.h explains the layout; this is where it is made. Whoever wants that kernel
has to ask for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from erd_cuda._fragments import (
    Array,
    Bits,
    Fragments,
    fits_tensor_cores,
    input_scale,
    rounded,
)

MAX_JOINTS = 18
MAX_NARROW_JOINTS = 15
CHUNK = 64


def fits_wgmma(block: str, features: str, joints: int, width: int, precision: str) -> bool:
    """Whether collapsed regressors of these sizes have a warpgroup kernel."""
    return (
        block == "linear"
        and precision in ("fp16", "bf16")
        and joints <= MAX_JOINTS
        and fits_tensor_cores(block, features, joints, width)
    )


def wgmma_fragments(
    w_in: Array, b_in: Array, w_out: Array, b_out: Array, precision: str
) -> Fragments:
    """Arranges the weights of all stages.

    Args:
        w_in: (K, H, 2J).
        b_in: (K, H).
        w_out: (K, 3J, H).
        b_out: (K, 3J).
        precision: "fp16" or "bf16".
    """
    stages, width, features = w_in.shape
    joints = features // 2
    wide = joints > MAX_NARROW_JOINTS
    chunks = -(-width // (2 * CHUNK)) * 2
    scale = input_scale(w_in)

    depth = 48 if wide else 32
    first = np.zeros((stages, chunks * CHUNK, depth), np.uint16)
    first[:, :width, :features] = rounded(w_in * scale, precision)[0]
    ones = 2 * (MAX_JOINTS if wide else MAX_NARROW_JOINTS)
    bias = rounded(b_in, precision)[0]
    left_over = b_in - _values(bias, precision)
    first[:, :width, ones] = bias
    first[:, :width, ones + 1] = rounded(left_over, precision)[0]

    by_column = _by_column(w_out, wide)
    second = np.zeros((stages, by_column.shape[1], chunks * CHUNK), np.uint16)
    second[:, :, :width] = rounded(by_column, precision)[0]
    pieces = [_blocks(first.swapaxes(1, 2), chunks, axis=2), _blocks(second.swapaxes(1, 2), chunks)]
    return Fragments(
        weights=np.ascontiguousarray(np.concatenate(pieces, axis=2).reshape(-1)),
        biases=_by_column(b_out[..., None], wide).reshape(-1).astype(np.float32),
        feature_scale=1.0 / scale,
    )


def _values(bits: Bits, precision: str) -> Array:
    if precision == "bf16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(np.float16).astype(np.float32)


def _blocks(bits: Bits, chunks: int, axis: int = 1) -> Any:
    """(K, depth, columns) matrices, cut along ``axis`` into chunks, as (K, chunks, -1)."""
    parts = np.split(bits, chunks, axis=axis)
    ordered = []
    for part in parts:
        stages, depth, columns = part.shape
        # [k8][k] x [n8][n]  ->  [k8] [n8] [n][k]
        blocks = part.reshape(stages, depth // 8, 8, columns // 8, 8).transpose(0, 1, 3, 4, 2)
        ordered.append(blocks.reshape(stages, -1))
    return np.stack(ordered, axis=1)


def _by_column(w_out: Array, wide: bool) -> Array:
    """(K, 3J, ...) outputs to the columns of the second product, (K, columns, ...)."""
    stages, outputs, depth = w_out.shape
    by_joint = np.zeros((stages, MAX_JOINTS, 3, depth), w_out.dtype)
    by_joint[:, : outputs // 3] = w_out.reshape(stages, outputs // 3, 3, depth)
    # value v = 3 m + c of lane t  ->  tile v / 2, column 2 t + v % 2
    by_value = by_joint[:, :16].reshape(stages, 4, 4, 3, depth).transpose(0, 1, 3, 2, 4)
    columns = by_value.reshape(stages, 6, 2, 4, depth).transpose(0, 1, 3, 2, 4)
    columns = columns.reshape(stages, 48, depth)
    if not wide:
        return columns
    spare = np.zeros((stages, 8, depth), w_out.dtype)
    spare[:, :4] = by_joint[:, 16:, :2].reshape(stages, 4, depth)
    spare[:, 4::2] = by_joint[:, 16:, 2]
    return np.concatenate([columns, spare], axis=1)
