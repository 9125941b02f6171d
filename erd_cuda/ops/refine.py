"""The fused refiner: all stages of the descent in one call (paper, Eq. 1 and 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from .._fragments import PRECISIONS
from .._library import operators
from ..camera import Camera
from .arguments import SLOTS, as_rows
from .autograd import (
    INPUTS,
    Geometry,
    GeometryBackward,
    as_bits,
    flatten_vmap,
    must_record,
    spread,
    unflatten_vmap,
)

if TYPE_CHECKING:
    from ..modules.packing import PackedRegressors, TensorCoreWeights

# Numbers of the options in csrc/core/calls.h.
_FEATURES = {"residual": 0, "concat": 1, "init2d": 2, "proj2d": 3}
_ROOT_MODES = {"given": 0, "solve": 1, "solve_each_stage": 2}
_RESIDUAL, _CONCAT, _INIT2D = range(3)
_GIVEN, _SOLVE, _SOLVE_EACH_STAGE = range(3)

#: What a caller may ask of the refiner's arithmetic.
PRECISION_NAMES = ("auto", "fp32", "fp16", "bf16")
_AUTOMATIC = 0  # RefineVariant: the op picks its kernel

#: The op's row inputs, in the order of its schema.
_ROWS = ("keypoints", "pose", "root", "intrinsics", "distortion", "confidence")


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
            :func:`erd_cuda.residual`.
        return_stages: return the pose after every stage, not only after the last.
        precision: arithmetic of the matrix products; poses and projections are always in the
            tensors' own dtype. "auto" is as exact as float32: on a GPU with tensor cores (compute
            capability 8.0 and up) by three products of fp16 parts, elsewhere plain. "fp32" is
            plain float32 everywhere. "fp16" and "bf16", on a GPU only, round weights and
            activations to 16 bits, the fastest; under ``torch.autocast`` "auto" means these.
            Tensor cores serve up to 32 joints, widths that are multiples of 16 up to 512 and every
            kind of features but "concat"; other sizes run in plain float32 whatever is asked for.

    All tensors, the weights included, are float32 or all float64; batch dimensions broadcast.

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
    if isinstance(root, str):
        if root not in ("solve", "solve_each_stage"):
            raise ValueError(
                f"root is {root!r}, expected a (..., 3) tensor, 'solve' or 'solve_each_stage'"
            )
        mode, given_root = _ROOT_MODES[root], None
    else:
        mode, given_root = _ROOT_MODES["given"], root
        if given_root is None:
            raise TypeError(
                "root is None, expected a (..., 3) tensor, 'solve' or 'solve_each_stage'"
            )
    tensors = {"keypoints": keypoints, "pose": pose, "confidence": confidence}
    if given_root is not None:
        tensors["root"] = given_root
    lens = (camera.intrinsics, camera.distortion) if isinstance(camera, Camera) else (camera,)
    recorded = must_record([t for t in (*tensors.values(), *lens) if isinstance(t, Tensor)])
    rows = as_rows(camera, keep_strides=not recorded, **tensors)
    pose_rows = rows["pose"]
    assert pose_rows is not None
    _check_weights(weights, rows.joints, pose_rows)
    chosen, fragments = _arithmetic(precision, weights, pose_rows)
    options = _Options(
        rows.model,
        _FEATURES[weights.features],
        mode,
        return_stages,
        1.0 if fragments is None else fragments.feature_scale,
        chosen,
        _AUTOMATIC,
    )
    stages = _Weights(
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
    inputs = [rows[name] for name in _ROWS]
    if must_record((*inputs, *stages)):
        result = Refine.apply(*options, *inputs, *stages)
    else:
        result = operators.refine(*inputs, *stages, *options)
    shape = (*rows.batch_shape, rows.joints, 3)
    return result.reshape(result.shape[0], *shape) if return_stages else result.reshape(shape)


def _check_weights(weights: Any, joints: int, pose: Tensor) -> None:
    if not hasattr(weights, "w_in"):
        raise TypeError(
            f"weights is a {type(weights).__name__}, expected the PackedRegressors that "
            "ERD.packed() returns"
        )
    if weights.num_joints != joints:
        raise ValueError(f"weights are for {weights.num_joints} joints, pose has {joints}")
    if weights.w_in.dtype != pose.dtype:
        raise TypeError(
            f"weights have dtype {weights.w_in.dtype}, expected {pose.dtype} like pose: use "
            "weights.to(pose.dtype)"
        )
    if weights.w_in.device != pose.device:
        raise ValueError(
            f"weights are on {weights.w_in.device}, expected {pose.device} like pose: use "
            "weights.to(pose.device)"
        )


def _arithmetic(
    precision: str, weights: PackedRegressors, pose: Tensor
) -> tuple[int, TensorCoreWeights | None]:
    """The op's number for a precision, with the weights that it needs in another form."""
    if precision not in PRECISION_NAMES:
        raise ValueError(f"precision is {precision!r}, expected one of {PRECISION_NAMES}")
    if precision in ("fp16", "bf16") and not pose.is_cuda:
        raise ValueError(
            f"precision is {precision!r}, which needs tensors on a CUDA device; pose is on "
            f"{pose.device}"
        )
    if pose.dtype != torch.float32:
        if precision != "auto":
            raise ValueError(f"precision is {precision!r}, expected 'auto' for float64 tensors")
        precision = "fp32"
    if precision == "fp32" or not pose.is_cuda:
        return PRECISIONS["fp32"], None
    if precision == "auto":
        precision = "split"
        if torch.is_autocast_enabled(pose.device.type):
            half = torch.get_autocast_dtype(pose.device.type)
            precision = "bf16" if half == torch.bfloat16 else "fp16"
    fragments = weights.for_tensor_cores(precision)
    return PRECISIONS["fp32" if fragments is None else precision], fragments


class _Options(NamedTuple):
    model: int
    features: int
    root_mode: int
    every_stage: bool
    feature_scale: float
    precision: int
    variant: int


class _Weights(NamedTuple):
    w_in: Tensor
    b_in: Tensor
    w_hidden: Tensor | None
    b_hidden: Tensor | None
    w_out: Tensor
    b_out: Tensor
    mean2d: Tensor
    fragments: Tensor | None
    fragment_biases: Tensor | None


class Refine(Function):
    """``apply(*options, *rows, *weights)`` runs the fused op."""

    @staticmethod
    def forward(
        model: int,
        features: int,
        root_mode: int,
        every_stage: bool,
        feature_scale: float,
        precision: int,
        variant: int,
        keypoints: Tensor,
        pose: Tensor,
        root: Tensor | None,
        intrinsics: Tensor,
        distortion: Tensor | None,
        confidence: Tensor | None,
        w_in: Tensor,
        b_in: Tensor,
        w_hidden: Tensor | None,
        b_hidden: Tensor | None,
        w_out: Tensor,
        b_out: Tensor,
        mean2d: Tensor,
        fragments: Tensor | None,
        fragment_biases: Tensor | None,
    ) -> Tensor:
        rows = (keypoints, pose, root, intrinsics, distortion, confidence)
        weights = (w_in, b_in, w_hidden, b_hidden, w_out, b_out, mean2d)
        tensor_cores = (fragments, fragment_biases)
        options = (model, features, root_mode, every_stage, feature_scale, precision, variant)
        return operators.refine(*rows, *weights, *tensor_cores, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        options, rows, weights = _split(inputs)
        if any(w is not None and w.requires_grad for w in weights):
            raise ValueError(
                "weights require a gradient, but packed weights take none: detach them, or train "
                "through ERD in train mode"
            )
        ctx.options = options
        ctx.save_for_backward(*rows, *weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        _, rows, weights = _split((*ctx.options, *ctx.saved_tensors))
        wanted = ctx.needs_input_grad[len(_Options._fields) :][: len(_ROWS)]
        # The kernel runs in its inputs' precision; so must these products, under autocast too.
        with torch.autocast(grad.device.type, enabled=False):
            gradients = _gradients(ctx.options, rows, weights, grad)
        results = [
            gradients.get(name) if w else None for name, w in zip(_ROWS, wanted, strict=True)
        ]
        return (*(None,) * len(_Options._fields), *results, *(None,) * len(_Weights._fields))

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
        options, rows, weights = _split(arguments)
        _, row_dims, weight_dims = _split(in_dims)
        if any(dim is not None for dim in weight_dims):
            raise ValueError(
                "weights have a vmap dimension: one call runs one model, several need a loop"
            )
        flat = Refine.apply(*options, *flatten_vmap(info, row_dims, rows), *weights)
        if not options.every_stage:
            return unflatten_vmap(info, flat)
        return flat.reshape(flat.shape[0], info.batch_size, -1, flat.shape[-1]), 1


def _split(arguments: Sequence[Any]) -> tuple[_Options, list[Any], _Weights]:
    first, second = len(_Options._fields), len(_Options._fields) + len(_ROWS)
    return (
        _Options(*arguments[:first]),
        list(arguments[first:second]),
        _Weights(*arguments[second:]),
    )


class _Stage(NamedTuple):
    """What the backward pass needs to know of one stage's forward pass."""

    inputs: dict[str, Tensor | None]
    seen: dict[str, Tensor | None]  # by the features: unsolved samples masked
    solved: Tensor | None
    activations: list[Tensor]  # of each ReLU, before it


def _gradients(
    options: _Options, rows: Sequence[Tensor | None], weights: _Weights, grad: Tensor
) -> dict[str, Tensor]:
    """Runs the stages again with torch's matrix products, then backwards through them.

    Everything here is differentiable once more, which gives second-order gradients.
    """
    stages = _forward_stages(options, rows, weights)
    total: dict[str, Tensor] = {}

    def add(gradients: dict[str, Tensor]) -> None:
        for name, g in gradients.items():
            total[name] = total[name] + g if name in total else g

    last = len(stages) - 1
    total["pose"] = grad[last] if options.every_stage else grad
    for k in range(last, -1, -1):
        stage = stages[k]
        increment_grad = total["pose"]
        if stage.solved is not None:
            increment_grad = torch.where(stage.solved, increment_grad, 0.0)
        feature_grad = _regressor_gradient(k, weights, stage.activations, increment_grad)
        add(_feature_gradients(options, feature_grad, stage.seen))
        if _solves_root(options, k) and "root" in total:
            add(_vjp("solve_root", options.model, total.pop("root"), stage.inputs))
        if options.every_stage and k > 0:
            total["pose"] = total["pose"] + grad[k - 1]
    return total


def _solves_root(options: _Options, k: int) -> bool:
    return options.root_mode == _SOLVE_EACH_STAGE or (options.root_mode == _SOLVE and k == 0)


def _forward_stages(
    options: _Options, rows: Sequence[Tensor | None], weights: _Weights
) -> list[_Stage]:
    inputs = dict(zip(_ROWS, rows, strict=True))
    solved: Tensor | None = None
    stages = []
    for k in range(weights.w_in.shape[0]):
        if _solves_root(options, k):
            root, status = Geometry.apply(
                "solve_root", options.model, *_slots("solve_root", inputs)
            )
            inputs["root"], solved = root, (status == 0).unsqueeze(-1)
        seen = dict(inputs) if solved is None else _without_unsolved(inputs, solved)
        increment, activations = _regress(k, weights, _features(options, seen, weights.mean2d))
        stages.append(_Stage(dict(inputs), seen, solved, activations))
        if solved is not None:
            increment = torch.where(solved, increment, 0.0)
        pose = inputs["pose"]
        assert pose is not None
        inputs["pose"] = pose + increment
    return stages


def _without_unsolved(inputs: dict[str, Tensor | None], solved: Tensor) -> dict[str, Tensor | None]:
    """A sample without a root may hold NaN, and zero times NaN would reach shared gradients."""
    pose, confidence = inputs["pose"], inputs["confidence"]
    assert pose is not None
    if confidence is None:
        confidence = pose.new_ones(pose.shape[0], pose.shape[1] // 3)
    masked = {
        "pose": torch.where(solved, pose, 0.0),
        "confidence": torch.where(solved, confidence, 0.0),
    }
    return inputs | masked


def _usable(inputs: dict[str, Tensor | None]) -> Tensor | None:
    """(N, 2J) mask of coordinates whose joint is there, or None if all are."""
    confidence = inputs["confidence"]
    return None if confidence is None else (confidence > 0).repeat_interleave(2, dim=-1)


def _features(options: _Options, inputs: dict[str, Tensor | None], mean2d: Tensor) -> Tensor:
    model, mean = options.model, mean2d.flatten()
    if options.features == _RESIDUAL:
        return Geometry.apply("residual", model, *_slots("residual", inputs))
    parts = []
    if options.features in (_INIT2D, _CONCAT):
        keypoints, usable = inputs["keypoints"], _usable(inputs)
        assert keypoints is not None
        measured = keypoints - mean
        parts.append(measured if usable is None else torch.where(usable, measured, 0.0))
    if options.features != _INIT2D:
        projected = Geometry.apply("project", model, *_slots("project", inputs))
        parts.append(projected - mean)
    return torch.cat(parts, dim=-1)


def _feature_gradients(
    options: _Options, grad: Tensor, inputs: dict[str, Tensor | None]
) -> dict[str, Tensor]:
    """Carries a gradient of the features to the inputs they were made from."""
    if options.features == _RESIDUAL:
        return _vjp("residual", options.model, grad, inputs)
    gradients: dict[str, Tensor] = {}
    width = grad.shape[-1] // (2 if options.features == _CONCAT else 1)
    if options.features in (_INIT2D, _CONCAT):
        usable, measured = _usable(inputs), grad[:, :width]
        gradients["keypoints"] = measured if usable is None else torch.where(usable, measured, 0.0)
    if options.features != _INIT2D:
        gradients |= _vjp("project", options.model, grad[:, grad.shape[-1] - width :], inputs)
    return gradients


def _slots(name: str, inputs: dict[str, Tensor | None]) -> list[Tensor | None]:
    return [inputs.get(slot) if slot in INPUTS[name] else None for slot in SLOTS]


def _vjp(
    name: str, model: int, grad: Tensor, inputs: dict[str, Tensor | None]
) -> dict[str, Tensor]:
    """Gradients of <grad, operator(inputs)>, for every input that is there."""
    slots = _slots(name, inputs)
    wanted = as_bits([t is not None for t in slots])
    gradients = GeometryBackward.apply(name, model, wanted, grad, *slots)
    in_slots = zip(SLOTS, spread(gradients, wanted), strict=True)
    return {slot: g for slot, g in in_slots if g is not None}


def _regress(k: int, weights: _Weights, features: Tensor) -> tuple[Tensor, list[Tensor]]:
    before = F.linear(features, weights.w_in[k], weights.b_in[k])
    activations = [before]
    hidden = before.relu()
    if weights.w_hidden is not None and weights.b_hidden is not None:
        for w, b in zip(weights.w_hidden[k], weights.b_hidden[k], strict=True):
            before = F.linear(hidden, w, b)
            activations.append(before)
            hidden = hidden + before.relu()
    return F.linear(hidden, weights.w_out[k], weights.b_out[k]), activations


def _regressor_gradient(
    k: int, weights: _Weights, activations: Sequence[Tensor], grad: Tensor
) -> Tensor:
    grad = grad @ weights.w_out[k]
    if weights.w_hidden is not None:
        for layer in (1, 0):
            inner = torch.where(activations[1 + layer] > 0, grad, 0.0)
            grad = grad + inner @ weights.w_hidden[k, layer]
    return torch.where(activations[0] > 0, grad, 0.0) @ weights.w_in[k]


@torch.library.register_fake("erd_cuda::refine")
def _(keypoints: Tensor, pose: Tensor, *arguments: Any) -> Tensor:
    every_stage, w_in = arguments[-4], arguments[4]
    shape = (pose.shape[0], math.prod(pose.shape[1:]))
    return pose.new_empty(w_in.shape[0], *shape) if every_stage else pose.new_empty(shape)
