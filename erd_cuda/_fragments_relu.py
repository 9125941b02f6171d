"""Weights of regressors with the relu block in the order in which tensor cores take them.

csrc/cuda/refine_relu.cuh explains the layout. A layer (outputs, inputs) becomes steps of 16 inputs,
a step pairs of 16 x 8 tiles, and in a pair each lane's eight weights lie together.
"""

from __future__ import annotations

import math

import numpy as np

from ._fragments import Array, Bits, Fragments, rounded

#: The largest scaled weight of a layer lies between this and twice it. Weights far below it, and
#: what split precision's rounding leaves over, then still are normal fp16 numbers.
_LARGEST_WEIGHT = 2.0**12
#: Features saturate at a million pixels.
_FEATURE_SCALE = 2.0**-4
#: Activations are of order one; what rounding leaves over shall not fall below fp16's range.
_HIDDEN_SCALE = 2.0**2


def relu_fragments(
    w_in: Array,
    b_in: Array,
    w_hidden: Array,
    b_hidden: Array,
    w_out: Array,
    b_out: Array,
    precision: str,
) -> Fragments:
    """Arranges the weights of all stages.

    Args:
        w_in: (K, H, F), H a multiple of 16.
        b_in: (K, H).
        w_hidden: (K, 2, H, H).
        b_hidden: (K, 2, H).
        w_out: (K, 3J, H).
        b_out: (K, 3J).
        precision: "fp16", "bf16", or "split": two fp16 numbers a weight, the second what rounding
            left over.
    """
    # bfloat16 has float32's range: nothing to gain there.
    is_scaled = precision != "bf16"
    feature_scale = _FEATURE_SCALE if is_scaled else 1.0
    hidden_scale = _HIDDEN_SCALE if is_scaled else 1.0
    # A layer's sums have its inputs' scale times its weights'; its outputs shall have their own.
    input_scales = (feature_scale, hidden_scale, hidden_scale, hidden_scale)
    output_scales = (hidden_scale, hidden_scale, hidden_scale, 1.0)

    weights: list[Bits] = []
    biases: list[Array] = []
    for k in range(len(w_in)):
        scales = []
        layers = (w_in[k], w_hidden[k, 0], w_hidden[k, 1], w_out[k])
        for layer, before, after in zip(layers, input_scales, output_scales, strict=True):
            gain = _gain(layer) if is_scaled else 1.0
            weights.append(_arranged(layer * np.float32(gain), precision))
            scales.append(after / (before * gain))
        biases += [
            np.array(scales, np.float32),
            np.float32(hidden_scale) * np.concatenate([b_in[k], *b_hidden[k]]),
            np.pad(b_out[k], (0, -len(b_out[k]) % 16)),
        ]
    return Fragments(
        weights=np.concatenate(weights),
        biases=np.concatenate(biases).astype(np.float32),
        feature_scale=feature_scale,
    )


def _gain(layer: Array) -> float:
    """The power of two that brings the largest weight to _LARGEST_WEIGHT."""
    largest = float(np.abs(layer).max(initial=0.0))
    if not 0 < largest < math.inf:
        return 1.0
    # Larger gains would take the layer's scale out of float32's range.
    return 2.0 ** min(math.ceil(math.log2(_LARGEST_WEIGHT / largest)), 100)


def _arranged(layer: Array, precision: str) -> Bits:
    outputs, inputs = layer.shape
    padded = np.pad(layer, ((0, -outputs % 16), (0, -inputs % 16)))
    steps = padded.shape[1] // 16
    # [pair][side][column] x [step][half][t][i]  ->  [step] [pair][column][t][side][half][i]
    numbers = [
        bits.reshape(-1, 2, 8, steps, 2, 4, 2).transpose(3, 0, 2, 5, 1, 4, 6).reshape(steps, -1)
        for bits in rounded(padded, precision)
    ]
    return np.stack(numbers, axis=1).reshape(-1)
