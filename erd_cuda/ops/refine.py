"""The fused refiner: all stages of the descent in one call (paper, Eq. 1 and 2)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._definitions import FEATURES, ROOTS
from .._fragments import PRECISIONS
from .._library import operators
from .._refine_arguments import check_weights_fit, kernel_precision, root_mode
from ..camera import Camera
from .arguments import as_rows
from .autograd import must_record
from .refine_autograd import ROWS, Options, Refine, Weights

if TYPE_CHECKING:
    from ..modules.packing import PackedRegressors, TensorCoreWeights

_AUTOMATIC = 0  # RefineVariant: the op picks its kernel


def refine(
    keypoints: Tensor,
    pose: Tensor,
    root: Tensor | str,
    camera: Camera | Tensor,
    weights: PackedRegressors,
    confidence: Tensor | None = None,
    *,
    return_stages: bool = False,
    precision: str = "auto",
) -> Tensor:
    """Runs all stages of a trained model on a batch of poses.

    ``for k in 1..K:  pose = pose + R_k(features(keypoints, project(pose, root, camera)))``

    Args:
        keypoints: (..., J, 2) detected joints, px.
        pose: (..., J, 3) initial joints relative to the root, mm, from a lifting network.
        root: (..., 3) position of the root in the camera frame, mm; or ``"solve"`` to find it
            once, from the pose as given, or ``"solve_each_stage"`` to find it anew before every
            stage (see :func:`erd_cuda.solve_root`). A sample whose root cannot be found keeps its
            pose.
        camera: :class:`Camera`, or (..., 4) ``fx, fy, cx, cy`` in px.
        weights: the packed regressors of a trained model, from :meth:`erd_cuda.ERD.packed`.
        confidence: (..., J) weights of the joints; 1 if None. Not positive means missing, see
            :func:`erd_cuda.residual`. Stages trained without ``confidence_weights`` take all that
            are positive for 1.
        return_stages: return the pose after every stage, not only after the last.
        precision: arithmetic of the matrix products; poses and projections are always in the
            tensors' own dtype. "auto" is as exact as float32: on a GPU with tensor cores (compute
            capability 8.0 and up) by three products of fp16 parts, elsewhere plain. "fp32" is
            plain float32 everywhere. "fp16" and "bf16", on a GPU only, round weights and
            activations to 16 bits, the fastest; under ``torch.autocast`` "auto" means these.
            Tensor cores serve up to 32 joints, widths that are multiples of 16 up to 512 and every
            kind of features, "concat" and "residual+pose" in relu blocks only; other weights run in
            plain float32 whatever is asked for.

    All tensors, the weights included, are float32 or all float64; batch dimensions broadcast.

    What a precision costs on the model cmu17-given-root, in mm (4,096 test poses of mocap17, true
    root; computed by the kernels' sources in an emulator): by how much the MPJPE changes against
    float64, and how far a joint then lies from its place in float64:

    - "auto" and "fp32": MPJPE 0.000; joints 0.0003 in the mean, 0.01 at most.
    - "fp16": MPJPE 0.001; joints 0.02 in the mean, 1.1 at most.
    - "bf16": MPJPE 0.003; joints 0.16 in the mean, 10.7 at most.

    A pose's result does not depend on the others of its batch, and within one kernel not on the
    batch's size or its place there, to the last bit. On tensor cores linear blocks have two kernels
    that sum in different orders: one serves batches of up to 16 poses per multiprocessor of the
    GPU, the other larger ones.

    The first call on tensor cores with a model's weights arranges them on the CPU and copies them
    to the GPU, which waits for it: call once before capturing a CUDA graph. An
    :class:`erd_cuda.ERD` on a GPU does it in ``eval()`` and ``to()``, for every precision. Inside a
    compiled function it cannot be done: packed weights that have not been arranged before (those
    packed in the function itself never are) run in plain float32 whatever ``precision`` asks for,
    so call ``weights.for_tensor_cores("fp16")`` before, or "bf16", or "split" for "auto".

    Returns:
        (..., J, 3) refined pose in mm, or (K, ..., J, 3) with ``return_stages=True``.
        Differentiable twice in keypoints, pose, root, camera and confidence; the backward pass
        computes the stages again instead of keeping them. The packed weights take no gradient:
        train through :class:`erd_cuda.ERD` in train mode.

    Raises:
        TypeError: an argument has the wrong type or an unsupported or differing dtype.
        ValueError: shapes or devices do not fit, root or precision is an unknown word, or there is
            no such precision for these tensors.
    """
    mode = root_mode(root, "tensor")
    if not hasattr(weights, "w_in"):
        raise TypeError(
            f"weights is a {type(weights).__name__}, expected the PackedRegressors that "
            "ERD.packed() returns"
        )
    if isinstance(confidence, Tensor) and not weights.confidence_weights:
        confidence = (confidence > 0).to(confidence.dtype)
    tensors = {"keypoints": keypoints, "pose": pose, "confidence": confidence}
    if not isinstance(root, str):
        tensors["root"] = root
    lens = (camera.intrinsics, camera.distortion) if isinstance(camera, Camera) else (camera,)
    recorded = must_record([t for t in (*tensors.values(), *lens) if isinstance(t, Tensor)])
    rows = as_rows(camera, keep_strides=not recorded, **tensors)
    pose_rows = rows["pose"]
    assert pose_rows is not None
    has = (weights.w_in.dtype, weights.w_in.device)
    check_weights_fit(weights, has, rows.joints, pose_rows.dtype, pose_rows.device)
    chosen, fragments = _arithmetic(precision, weights, pose_rows)
    options = Options(
        rows.model,
        FEATURES.index(weights.features),
        ROOTS.index(mode),
        return_stages,
        1.0 if fragments is None else fragments.feature_scale,
        chosen,
        _AUTOMATIC,
        weights.residual_limit,
    )
    stages = Weights(
        weights.w_in,
        weights.b_in,
        weights.w_hidden,
        weights.b_hidden,
        weights.w_out,
        weights.b_out,
        weights.mean2d,
        None if fragments is None else fragments.weights,
        None if fragments is None else fragments.biases,
    )
    inputs = [rows[name] for name in ROWS]
    if must_record((*inputs, *stages)):
        result = Refine.apply(*options, *inputs, *stages)
    else:
        result = operators.refine(*inputs, *stages, *options)
    shape = (*rows.batch_shape, rows.joints, 3)
    return result.reshape(result.shape[0], *shape) if return_stages else result.reshape(shape)


def _arithmetic(
    precision: str, weights: PackedRegressors, pose: Tensor
) -> tuple[int, TensorCoreWeights | None]:
    """The op's number for a precision, with the weights that it needs in another form."""
    automatic = "split"
    if pose.is_cuda and torch.is_autocast_enabled("cuda"):
        automatic = "bf16" if torch.get_autocast_dtype("cuda") == torch.bfloat16 else "fp16"
    float32 = pose.dtype == torch.float32
    chosen = kernel_precision(precision, float32, pose.is_cuda, pose.device, automatic)
    fragments = None if chosen == "fp32" else weights.for_tensor_cores(chosen)
    return PRECISIONS["fp32" if fragments is None else chosen], fragments


@torch.library.register_fake("erd_cuda::refine")
def _(keypoints: Tensor, pose: Tensor, *arguments: Any) -> Tensor:
    every_stage, w_in = arguments[-5], arguments[4]
    shape = (pose.shape[0], math.prod(pose.shape[1:]))
    return pose.new_empty(w_in.shape[0], *shape) if every_stage else pose.new_empty(shape)
