"""The algebra that turns a trained regressor into the fused operator's matrices.

With dropout off, BatchNorm, z-scoring and PCA are affine and fold into a regressor's first layer.
In the linear block everything behind the one ReLU is affine too, so its three matrices become one:
W_out (I + W_b) (I + W_a).

Written with operators only, so the same lines serve torch's tensors and NumPy's arrays; callers
pass float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class Affine(NamedTuple):
    """x -> weight x + bias."""

    weight: Any  # (outputs, inputs)
    bias: Any  # (outputs,)


class Norm(NamedTuple):
    """BatchNorm with running statistics; all (width,)."""

    weight: Any
    bias: Any
    running_mean: Any
    running_var: Any
    eps: float


class Principal(NamedTuple):
    """z -> basis (z - mean)."""

    mean: Any  # (features,)
    basis: Any  # (components, features)


class Spread(NamedTuple):
    """v -> (v - mean) / scale; both (coordinates,)."""

    mean: Any
    scale: Any


def fold_input(
    layer: Affine,
    norm: Norm,
    scale: Any,
    pca: Principal | None,
    features: str,
    pose: Spread | None = None,
) -> tuple[list[Any], Any]:
    """norm(layer(pca(f / scale))) as one affine map of the features f in pixels.

    In "residual+pose" the layer's last inputs are the z-scores of a pose in millimetres, which pass
    by the PCA.

    Args:
        layer: the regressor's first layer.
        norm: the BatchNorm behind it.
        scale: (2 J,) px, what one pose's coordinates are divided by.
        pca: what reduces each 2D pose's z-scores, or None.
        features: one of `erd_cuda._definitions.FEATURES`.
        pose: z-scores of the 3 J coordinates in "residual+pose"; None for the others.

    Returns:
        The weight's columns, (width, 2 J) for each 2D pose in f ("concat" sees two, the others
        one), then (width, 3 J) for a 3D pose, and the bias (width,).
    """
    gain = norm.weight / (norm.running_var + norm.eps) ** 0.5
    weight = gain[:, None] * layer.weight
    bias = gain * (layer.bias - norm.running_mean) + norm.bias
    # "concat" sees keypoints and projection through the same normalisation, one after the other.
    poses = 2 if features == "concat" else 1
    width = scale.shape[0] if pca is None else pca.basis.shape[0]
    columns = []
    for i in range(poses):
        part = weight[:, i * width : (i + 1) * width]
        if pca is not None:
            # In a residual the mean has cancelled already.
            if features not in ("residual", "residual+pose"):
                bias = bias - part @ (pca.basis @ pca.mean)
            part = part @ pca.basis
        columns.append(part / scale)
    if pose is not None:
        part = weight[:, width:] / pose.scale
        bias = bias - part @ pose.mean
        columns.append(part)
    return columns, bias


def collapse_output(output: Affine, hidden: Sequence[Affine]) -> Affine:
    """output(h) after h <- h + layer(h) for each hidden layer, as one affine map of h."""
    weight, bias = output
    for layer in reversed(hidden):
        bias = bias + weight @ layer.bias
        weight = weight + weight @ layer.weight
    return Affine(weight, bias)
