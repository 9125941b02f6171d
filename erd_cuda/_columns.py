"""The weights of all stages column by column, as the CPU kernels for few poses and bf16 read them.

csrc/core/weight_columns.h explains the layout; this is where it is made, once per model. NumPy
alone, so that it serves `erd_cuda.array` where torch is not installed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._fragments import rounded
from ._huge_pages import empty_for_reading

#: Rows are padded to multiples of this: kColumnPadding of the header.
PADDING = 16

#: Outputs of a tail's row: kTail of the header.
TAIL = 4

Array = NDArray[Any]


def weight_columns(
    w_in: Array,
    b_in: Array,
    w_hidden: Array | None,
    b_hidden: Array | None,
    w_out: Array,
    b_out: Array,
    precision: str = "fp32",
) -> Array:
    """Arranges the weights of all stages.

    Args:
        w_in: (K, H, F).
        b_in: (K, H).
        w_hidden: (K, 2, H, H), relu block only.
        b_hidden: (K, 2, H), relu block only.
        w_out: (K, 3J, H).
        b_out: (K, 3J).
        precision: "fp32" for the weights as they are, "bf16" for pairs of rounded ones, which takes
            float32 weights.

    Returns:
        One-dimensional, of the weights' dtype; for "bf16" int32, the bits of pairs and of float32
        biases.
    """
    stages = len(w_in)
    arrange = {"fp32": _columns, "bf16": _pair_columns}[precision]
    parts = [arrange(w_in, b_in)]
    if w_hidden is not None and b_hidden is not None:
        parts.append(arrange(w_hidden, b_hidden))
    parts.append(arrange(w_out, b_out))
    outputs = w_out.shape[1]
    last = outputs % PADDING
    is_float32 = precision == "fp32" and w_out.dtype == np.float32
    if is_float32 and outputs > PADDING and 0 < last <= TAIL:
        tail = _columns(w_out[:, -last:], b_out[:, -last:], TAIL).reshape(stages, -1)
        parts.append(np.pad(tail, ((0, 0), (0, -tail.shape[1] % PADDING))))
    rows = [part.reshape(stages, -1) for part in parts]
    arranged = empty_for_reading(sum(row.size for row in rows), rows[0].dtype)
    np.concatenate(rows, axis=1, out=arranged.reshape(stages, -1))
    return arranged


def _columns(weights: Array, biases: Array, padding: int = PADDING) -> Array:
    """(..., outputs, inputs) and (..., outputs) to (..., 1 + inputs, padded outputs)."""
    *stacked, outputs, inputs = weights.shape
    padded = -(-outputs // padding) * padding
    columns = np.zeros((*stacked, 1 + inputs, padded), weights.dtype)
    columns[..., 0, :outputs] = biases
    columns[..., 1:, :outputs] = np.swapaxes(weights, -1, -2)
    return columns


def _pair_columns(weights: Array, biases: Array) -> Array:
    """The same for float32 to (..., 1 + pairs of inputs, padded outputs), int32."""
    columns = _columns(weights, biases)
    if weights.shape[-1] % 2:
        columns = np.concatenate([columns, np.zeros_like(columns[..., :1, :])], axis=-2)
    (bits,) = rounded(columns[..., 1:, :], "bf16")
    first, second = (bits[..., i::2, :].astype(np.uint32) for i in range(2))
    bias = columns[..., :1, :].view(np.int32)
    return np.concatenate([bias, (first | second << 16).view(np.int32)], axis=-2)
