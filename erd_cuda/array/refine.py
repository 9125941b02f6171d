"""The fused refiner: all stages of the descent in one call (paper, Eq. 1 and 2)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._definitions import BLOCKS, FEATURES, ROOTS
from .._fragments import PRECISIONS, Fragments
from .._refine_arguments import check_weights_fit, kernel_precision, root_mode
from .memory import address_of, as_array
from .native import native
from .rows import as_rows
from .weights import Weights

#: The kernels' row inputs, in the order of csrc/python/module.cpp.
_ROWS = ("keypoints", "pose", "root", "intrinsics", "distortion", "confidence")


def refine(
    keypoints: Any,
    pose: Any,
    root: Any,
    camera: Any,
    weights: Weights,
    confidence: Any = None,
    *,
    return_stages: bool = False,
    precision: str = "auto",
) -> Any:
    """Runs all stages of a trained model on a batch of poses.

    ``for k in 1..K:  pose = pose + R_k(features(keypoints, project(pose, root, camera)))``

    Args:
        keypoints: (..., J, 2) detected joints, px.
        pose: (..., J, 3) initial joints relative to the root, mm, from a lifting network.
        root: (..., 3) position of the root in the camera frame, mm; or ``"solve"`` to find it
            once, from the pose as given, or ``"solve_each_stage"`` to find it anew before every
            stage (see `solve_root`). A sample whose root cannot be found keeps its pose.
        camera: `Camera`, or (..., 4) ``fx, fy, cx, cy`` in px.
        weights: a trained model's, from `load_weights`.
        confidence: (..., J) weights of the joints; 1 if None. Not positive means missing, see
            `residual`. Stages trained without ``confidence_weights`` take all that are positive
            for 1.
        return_stages: return the pose after every stage, not only after the last.
        precision: arithmetic of the matrix products; poses and projections are always in the
            arrays' own dtype. "auto" is as exact as float32: on a GPU with tensor cores (compute
            capability 8.0 and up) by three products of fp16 parts, elsewhere plain. "fp32" is
            plain float32 everywhere. "bf16" and, on a GPU only, "fp16" round weights and
            activations to 16 bits and sum in float32, the fastest. Tensor cores serve up to 32
            joints, widths that are multiples of 16 up to 512 and every kind of features, "concat"
            and "residual+pose" in relu blocks only; other weights run in plain float32 whatever is
            asked for. A CPU multiplies all weights in bf16; without instructions for it (AVX-512
            BF16, ARM's bfdot) many poses take about twice as long as in float32.
            `erd_cuda.refine` says what each costs in millimetres, and when a pose's result is the
            same to the last bit.

    All arrays, the weights included, are float32 or all float64, on one device; batch dimensions
    broadcast.

    Returns:
        (..., J, 3) refined pose in mm, or (K, ..., J, 3) with ``return_stages=True``.

    Raises:
        TypeError: an argument has the wrong type or an unsupported or differing dtype.
        ValueError: shapes or devices do not fit, root or precision is an unknown word, or there is
            no such precision for these arrays.
    """
    if not isinstance(weights, Weights):
        raise TypeError(
            f"weights is a {type(weights).__name__}, expected the Weights that load_weights() "
            "returns"
        )
    if confidence is not None and not weights.confidence_weights:
        confidence = as_array("confidence", confidence)
        confidence = (confidence > 0).astype(confidence.dtype)
    arrays = {"keypoints": keypoints, "pose": pose, "confidence": confidence}
    mode = root_mode(root, "array")
    if mode == "given":
        arrays["root"] = root
    rows = as_rows(camera, **arrays)
    has = (weights.dtype, weights.device)
    check_weights_fit(weights, has, rows.joints, rows.dtype, rows.place.name)
    place = rows.place
    on_gpu = place.index is not None
    chosen = kernel_precision(precision, rows.dtype == np.float32, on_gpu, place.name)
    fragments = weights.for_tensor_cores(chosen) if on_gpu and chosen != "fp32" else None
    if on_gpu and fragments is None:
        chosen = "fp32"
    stages = (weights.stages,) if return_stages else ()
    shape = (*stages, *rows.batch_shape, rows.joints, 3)
    output = rows.place.empty(shape, rows.dtype)
    if rows.count > 0:
        native.refine(
            rows.scalar,
            rows.model,
            BLOCKS.index(weights.block),
            FEATURES.index(weights.features),
            ROOTS.index(mode),
            PRECISIONS[chosen],
            return_stages,
            rows.count,
            rows.joints,
            rows.slots(_ROWS),
            weights.for_kernels,
            _for_kernels(fragments) if on_gpu else _for_cpu(weights, chosen),
            weights.residual_limit,
            address_of(output),
            rows.place.for_kernels(),
        )
    return output


def _for_kernels(fragments: Fragments | None) -> tuple[int, int, float] | None:
    if fragments is None:
        return None
    return address_of(fragments.weights), address_of(fragments.biases), fragments.feature_scale


def _for_cpu(weights: Weights, precision: str) -> tuple[int, int, float]:
    return address_of(weights.pairs if precision == "bf16" else weights.columns), 0, 1.0
