"""The weights of all stages column by column, as the CPU kernel for few poses reads them.

csrc/core/weight_columns.h explains the layout; this is where it is made, once per model. NumPy
alone, so that it serves `erd_cuda.array` where torch is not installed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Rows are padded to multiples of this: kColumnPadding of the header.
PADDING = 16

Array = NDArray[Any]


def weight_columns(
    w_in: Array,
    b_in: Array,
    w_hidden: Array | None,
    b_hidden: Array | None,
    w_out: Array,
    b_out: Array,
) -> Array:
    """Arranges the weights of all stages.

    Args:
        w_in: (K, H, F).
        b_in: (K, H).
        w_hidden: (K, 2, H, H), relu block only.
        b_hidden: (K, 2, H), relu block only.
        w_out: (K, 3J, H).
        b_out: (K, 3J).

    Returns:
        One-dimensional, of the weights' dtype.
    """
    stages = len(w_in)
    parts = [_columns(w_in, b_in)]
    if w_hidden is not None and b_hidden is not None:
        parts.append(_columns(w_hidden, b_hidden))
    parts.append(_columns(w_out, b_out))
    return np.concatenate([part.reshape(stages, -1) for part in parts], axis=1).reshape(-1)


def _columns(weights: Array, biases: Array) -> Array:
    """(..., outputs, inputs) and (..., outputs) to (..., 1 + inputs, padded outputs)."""
    *stacked, outputs, inputs = weights.shape
    padded = -(-outputs // PADDING) * PADDING
    columns = np.zeros((*stacked, 1 + inputs, padded), weights.dtype)
    columns[..., 0, :outputs] = biases
    columns[..., 1:, :outputs] = np.swapaxes(weights, -1, -2)
    return columns
