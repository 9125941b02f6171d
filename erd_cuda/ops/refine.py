"""The fused refiner: all stages of the descent in one call (paper, Eq. 1 and 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from .._definitions import FEATURES, ROOTS
from .._fragments import PRECISIONS
from .._library import operators
from .._refine_arguments import check_weights_fit, kernel_precision, root_mode
from .._tensor_plan import refine_tensors
from ..camera import Camera
from .arguments import as_rows
from .autograd import must_record
from .direct import can_go, go, lens
from .refine_autograd import ROWS, Options, Refine, Weights

if TYPE_CHECKING:
    from ..modules.packed import ArrangedWeights, PackedRegressors

_AUTOMATIC = 0  # RefineVariant: the op picks its kernel
_MODES = {name: number for number, name in enumerate(ROOTS) if name != "given"}


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
            plain float32 everywhere. "bf16" and, on a GPU only, "fp16" round weights and
            activations to 16 bits and sum in float32, the fastest; on a GPU under
            ``torch.autocast`` "auto" means these. Tensor cores serve up to 32 joints, widths that
            are multiples of 16 up to 512 and every kind of features, "concat" and "residual+pose"
            in relu blocks only; other weights run in plain float32 whatever is asked for. A CPU
            multiplies all weights in bf16; without instructions for it (AVX-512 BF16, ARM's bfdot)
            many poses take about twice as long as in float32.

    All tensors, the weights included, are float32 or all float64; batch dimensions broadcast.

    What a precision costs on the model cmu17-given-root, in mm (4,096 test poses of mocap17, true
    root; computed by the kernels' sources in an emulator): by how much the MPJPE changes against
    float64, and how far a joint then lies from its place in float64:

    - "auto" and "fp32": MPJPE 0.000; joints 0.0003 in the mean, 0.01 at most.
    - "fp16": MPJPE 0.001; joints 0.02 in the mean, 1.1 at most.
    - "bf16": MPJPE 0.003; joints 0.16 in the mean, 10.7 at most.

    A pose's result does not depend on the others of its batch, and within one kernel not on the
    batch's size or its place there, to the last bit (infinite weights apart: for a single pose the
    CPU does not multiply them by zero). On tensor cores linear blocks have two kernels
    that sum in different orders: one serves batches of up to 16 poses per multiprocessor of the
    GPU, the other larger ones.

    The first call on tensor cores with a model's weights arranges them on the CPU and copies them
    to the GPU, which waits for it: call once before capturing a CUDA graph. An
    :class:`erd_cuda.ERD` on a GPU does it in ``eval()`` and ``to()``, for every precision. Inside a
    compiled function it cannot be done: packed weights that have not been arranged before (those
    packed in the function itself never are) run in plain float32 whatever ``precision`` asks for,
    so call ``weights.for_tensor_cores("fp16")`` before, or "bf16", or "split" for "auto"; on a
    CPU call ``weights.for_cpu("bf16")`` for "bf16".

    Returns:
        (..., J, 3) refined pose in mm, or (K, ..., J, 3) with ``return_stages=True``.
        Differentiable twice in keypoints, pose, root, camera and confidence; the backward pass
        computes the stages again instead of keeping them. The packed weights take no gradient:
        train through :class:`erd_cuda.ERD` in train mode. On the CPU the memory of a few poses may
        be ours, as that of ``torch.from_numpy`` is NumPy's: ``resize_`` cannot make it larger.

    Raises:
        TypeError: an argument has the wrong type or an unsupported or differing dtype.
        ValueError: shapes or devices do not fit, root or precision is an unknown word, or there is
            no such precision for these tensors.
    """
    if not is_dynamo_compiling():
        refined: Tensor | None = refine_tensors(
            keypoints, pose, root, camera, weights, confidence, return_stages, precision
        )
        if refined is not None:
            return refined
        refined = _refine_planned(
            keypoints, pose, root, camera, weights, confidence, return_stages, precision
        )
        if refined is not None:
            return refined
    mode = root_mode(root, "tensor")
    if not hasattr(weights, "w_in"):
        raise TypeError(
            f"weights is a {type(weights).__name__}, expected the PackedRegressors that "
            "ERD.packed() returns"
        )
    if isinstance(confidence, Tensor) and not weights.confidence_weights:
        confidence = (confidence > 0).to(confidence.dtype)
    intrinsics, distortion, model = lens(camera)
    given = None if isinstance(root, str) else root
    tensors = (keypoints, pose, given, intrinsics, distortion, confidence)
    if can_go(pose, (*tensors, weights.w_in), keypoints) and pose.dtype in (
        torch.float32,
        torch.float64,
    ):
        stages, options = _prepared(weights, model, mode, return_stages, precision, pose)
        result = go(operators.refine, *tensors, *stages, *options)
        if result is not None:
            return result

    named = {"keypoints": keypoints, "pose": pose, "confidence": confidence}
    if mode == "given":
        named["root"] = given
    recorded = must_record([t for t in tensors if isinstance(t, Tensor)])
    rows = as_rows(camera, keep_strides=not recorded, **named)
    pose_rows = rows["pose"]
    assert pose_rows is not None
    has = (weights.w_in.dtype, weights.w_in.device)
    check_weights_fit(weights, has, rows.joints, pose_rows.dtype, pose_rows.device)
    # What is done under gradients is not worth a second copy of the weights, but for graphs, which
    # are recorded always.
    arrange = not recorded or torch.compiler.is_compiling()
    stages, options = _prepared(
        weights, rows.model, mode, return_stages, precision, pose_rows, arrange
    )
    inputs = [rows[name] for name in ROWS]
    if must_record((*inputs, *stages)):
        result = Refine.apply(*options, *inputs, *stages)
    else:
        result = operators.refine(*inputs, *stages, *options)
    shape = (*rows.batch_shape, rows.joints, 3)
    return result.reshape(result.shape[0], *shape) if return_stages else result.reshape(shape)


def _refine_planned(
    keypoints: Tensor,
    pose: Tensor,
    root: Tensor | str,
    camera: Camera | Tensor,
    weights: PackedRegressors,
    confidence: Tensor | None,
    return_stages: bool,
    precision: str,
) -> Tensor | None:
    """A short way, for the CPU: None where it does not lead to the answer."""
    if precision not in ("auto", "fp32", "bf16") or not hasattr(weights, "plan"):
        return None
    if precision != "auto" and weights.w_in.dtype != torch.float32:
        return None
    if confidence is not None and not weights.confidence_weights:
        return None
    given, mode = (None, _MODES.get(root, -1)) if isinstance(root, str) else (root, 0)
    intrinsics, distortion, model = lens(camera)
    tensors = (keypoints, pose, given, intrinsics, distortion, confidence)
    if not (can_go(pose, tensors, keypoints) and pose.is_cpu):
        return None
    plan = weights.plan("bf16" if precision == "bf16" else "fp32")
    if plan is None:
        return None
    refined: Tensor | None = go(
        operators.refine_planned, *tensors, plan, model, mode, return_stages
    )
    return refined


def _prepared(
    weights: PackedRegressors,
    model: int,
    mode: str,
    return_stages: bool,
    precision: str,
    pose: Tensor,
    arrange: bool = True,
) -> tuple[Weights, Options]:
    """The op's arguments but for the samples'.

    Args:
        arrange: on the CPU, add float32 weights in the order of the kernel for few poses.
    """
    chosen, arranged = _arithmetic(precision, weights, pose, arrange)
    scale = None if arranged is None else arranged.feature_scale
    stages = Weights(
        weights.w_in,
        weights.b_in,
        weights.w_hidden,
        weights.b_hidden,
        weights.w_out,
        weights.b_out,
        weights.mean2d,
        None if arranged is None else arranged.weights,
        None if arranged is None else arranged.biases,
    )
    options = Options(
        model,
        FEATURES.index(weights.features),
        ROOTS.index(mode),
        return_stages,
        1.0 if scale is None else scale,
        chosen,
        _AUTOMATIC,
        weights.residual_limit,
    )
    return stages, options


def _arithmetic(
    precision: str, weights: PackedRegressors, pose: Tensor, arrange: bool
) -> tuple[int, ArrangedWeights | None]:
    """The op's number for a precision, with the weights that it needs in another form."""
    automatic = "split"
    if pose.is_cuda and torch.is_autocast_enabled("cuda"):
        automatic = "bf16" if torch.get_autocast_dtype("cuda") == torch.bfloat16 else "fp16"
    float32 = pose.dtype == torch.float32
    chosen = kernel_precision(precision, float32, pose.is_cuda, pose.device, automatic)
    if chosen == "fp32":
        columns = weights.for_cpu() if arrange and not pose.is_cuda else None
        return PRECISIONS["fp32"], columns
    if chosen == "bf16" and not pose.is_cuda:
        arranged = weights.for_cpu("bf16")
    else:
        arranged = weights.for_tensor_cores(chosen)
    return PRECISIONS["fp32" if arranged is None else chosen], arranged


@torch.library.register_fake("erd_cuda::refine")
def _(keypoints: Tensor, pose: Tensor, *arguments: Any) -> Tensor:
    every_stage, w_in = arguments[-5], arguments[4]
    return pose.new_empty(w_in.shape[0], *pose.shape) if every_stage else pose.new_empty(pose.shape)
