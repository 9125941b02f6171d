"""Derivatives of the fused refiner, and the op under functional transforms.

The forward pass keeps nothing but its inputs; the backward pass computes the stages again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from .._library import operators
from .arguments import SLOTS
from .autograd import (
    INPUTS,
    Geometry,
    GeometryBackward,
    as_bits,
    flatten_vmap,
    spread,
    unflatten_vmap,
)
from .limit import clipped, is_clipped

# Numbers of the options in csrc/core/calls.h.
_RESIDUAL, _CONCAT, _INIT2D = range(3)
_RESIDUAL_POSE = 4
_SOLVE, _SOLVE_EACH_STAGE = 1, 2

#: The op's row inputs, in the order of its schema.
ROWS = ("keypoints", "pose", "root", "intrinsics", "distortion", "confidence")


class Options(NamedTuple):
    model: int
    features: int
    root_mode: int
    every_stage: bool
    feature_scale: float
    precision: int
    variant: int
    residual_limit: float


class Weights(NamedTuple):
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
        residual_limit: float,
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
        options = Options(
            model,
            features,
            root_mode,
            every_stage,
            feature_scale,
            precision,
            variant,
            residual_limit,
        )
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
        wanted = ctx.needs_input_grad[len(Options._fields) :][: len(ROWS)]
        # The kernel runs in its inputs' precision; so must these products, under autocast too.
        with torch.autocast(grad.device.type, enabled=False):
            gradients = _gradients(ctx.options, rows, weights, grad)
        results = [gradients.get(name) if w else None for name, w in zip(ROWS, wanted, strict=True)]
        return (*(None,) * len(Options._fields), *results, *(None,) * len(Weights._fields))

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


def _split(arguments: Sequence[Any]) -> tuple[Options, list[Any], Weights]:
    first, second = len(Options._fields), len(Options._fields) + len(ROWS)
    return (
        Options(*arguments[:first]),
        list(arguments[first:second]),
        Weights(*arguments[second:]),
    )


class _Stage(NamedTuple):
    """What the backward pass needs to know of one stage's forward pass."""

    inputs: dict[str, Tensor | None]
    seen: dict[str, Tensor | None]  # by the features: unsolved samples masked
    solved: Tensor | None
    activations: list[Tensor]  # of each ReLU, before it


def _gradients(
    options: Options, rows: Sequence[Tensor | None], weights: Weights, grad: Tensor
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


def _solves_root(options: Options, k: int) -> bool:
    return options.root_mode == _SOLVE_EACH_STAGE or (options.root_mode == _SOLVE and k == 0)


def _forward_stages(
    options: Options, rows: Sequence[Tensor | None], weights: Weights
) -> list[_Stage]:
    inputs = dict(zip(ROWS, rows, strict=True))
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


def _features(options: Options, inputs: dict[str, Tensor | None], mean2d: Tensor) -> Tensor:
    model, mean = options.model, mean2d.flatten()
    if options.features in (_RESIDUAL, _RESIDUAL_POSE):
        residual = _residual(options, inputs)
        if options.residual_limit < math.inf:
            residual = clipped(residual, _bound(options, inputs))
        pose = inputs["pose"]
        assert pose is not None
        return residual if options.features == _RESIDUAL else torch.cat([residual, pose], dim=-1)
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
    options: Options, grad: Tensor, inputs: dict[str, Tensor | None]
) -> dict[str, Tensor]:
    """Carries a gradient of the features to the inputs they were made from."""
    if options.features == _RESIDUAL:
        return _residual_gradients(options, grad, inputs)
    if options.features == _RESIDUAL_POSE:
        joints = grad.shape[-1] // 5
        gradients = _residual_gradients(options, grad[:, : 2 * joints], inputs)
        gradients["pose"] = gradients["pose"] + grad[:, 2 * joints :]
        return gradients
    gradients = {}
    width = grad.shape[-1] // (2 if options.features == _CONCAT else 1)
    if options.features in (_INIT2D, _CONCAT):
        usable, measured = _usable(inputs), grad[:, :width]
        gradients["keypoints"] = measured if usable is None else torch.where(usable, measured, 0.0)
    if options.features != _INIT2D:
        gradients |= _vjp("project", options.model, grad[:, grad.shape[-1] - width :], inputs)
    return gradients


def _residual(options: Options, inputs: dict[str, Tensor | None]) -> Tensor:
    """(N, 2J) px, without its limit."""
    residual: Tensor = Geometry.apply("residual", options.model, *_slots("residual", inputs))
    return residual


def _bound(options: Options, inputs: dict[str, Tensor | None]) -> Tensor | float:
    """(N, 2J) the residual's limit, weighted as it is."""
    confidence = inputs["confidence"]
    if confidence is None:
        return options.residual_limit
    return options.residual_limit * confidence.repeat_interleave(2, dim=-1)


def _residual_gradients(
    options: Options, grad: Tensor, inputs: dict[str, Tensor | None]
) -> dict[str, Tensor]:
    """Beyond its limit a residual is a constant times the weight, which alone has a gradient."""
    if options.residual_limit == math.inf:
        return _vjp("residual", options.model, grad, inputs)
    residual = _residual(options, inputs)
    beyond = is_clipped(residual, _bound(options, inputs))
    gradients = _vjp("residual", options.model, torch.where(beyond, 0.0, grad), inputs)
    if inputs["confidence"] is not None:
        limit = residual.sign() * options.residual_limit
        weight = torch.where(beyond, limit * grad, 0.0).unflatten(-1, (-1, 2)).sum(dim=-1)
        gradients["confidence"] = gradients["confidence"] + weight
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


def _regress(k: int, weights: Weights, features: Tensor) -> tuple[Tensor, list[Tensor]]:
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
    k: int, weights: Weights, activations: Sequence[Tensor], grad: Tensor
) -> Tensor:
    grad = grad @ weights.w_out[k]
    if weights.w_hidden is not None:
        for layer in (1, 0):
            inner = torch.where(activations[1 + layer] > 0, grad, 0.0)
            grad = grad + inner @ weights.w_hidden[k, layer]
    return torch.where(activations[0] > 0, grad, 0.0) @ weights.w_in[k]
