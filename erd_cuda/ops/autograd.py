"""Autograd around the raw geometry operators: gradients of first and second order, and vmap.

All functions of geometry.py share this code, because their operators share one calling convention:
``NAME``, ``NAME_backward`` and ``NAME_double_backward`` on rows (N, width).
The raw operators know nothing of autograd and are private: call the functions of ``erd_cuda``.

New-style ``autograd.Function`` is used rather than ``torch.library.register_autograd``: it works
under ``torch.func``, and forward-mode differentiation raises instead of returning zeros. The error
is torch's own: torch.compile refuses Functions that have a jvp method, even one that only raises.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from .._library import operators
from .arguments import SLOTS

#: The slots each operator takes, in the order of its schema.
INPUTS = {
    "project": ("pose", "root", "intrinsics", "distortion"),
    "residual": SLOTS,
    "solve_root": ("keypoints", "pose", "intrinsics", "distortion", "confidence"),
    "solve_residual": ("keypoints", "pose", "intrinsics", "distortion", "std", "confidence"),
}


def run(name: str, model: int, slots: Sequence[Tensor | None]) -> Any:
    """Runs the operator ``name`` on rows, recorded for autograd where anything may ask for it."""
    if must_record(slots):
        return Geometry.apply(name, model, *slots)
    return getattr(operators, name)(*_used(name, slots), model)


def must_record(tensors: Sequence[Tensor | None]) -> bool:
    """Whether a call has to go through its autograd Function.

    A new-style Function costs more than many of these operators, so plain inference avoids it. It
    is needed for gradients, for torch.func's transforms, in forward mode (where it raises), and
    while torch.compile or torch.export look at the code, which costs nothing later.
    """
    return (
        torch.compiler.is_compiling()
        or (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors))
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


# Every Function below takes all seven slots, None for those its operator lacks, and spells them
# out: torch.compile tells new-style Functions from old-style ones by the number of forward's
# parameters, so a *inputs would make it pass a context that is not asked for.


class Geometry(Function):
    """``apply(name, model, *slots)`` runs an operator.

    ``solve_root`` and ``solve_residual`` return (result, status), the others one tensor.
    """

    @staticmethod
    def forward(
        name: str,
        model: int,
        keypoints: Tensor | None,
        pose: Tensor | None,
        root: Tensor | None,
        intrinsics: Tensor | None,
        distortion: Tensor | None,
        std: Tensor | None,
        confidence: Tensor | None,
    ) -> Any:
        slots = (keypoints, pose, root, intrinsics, distortion, std, confidence)
        return getattr(operators, name)(*_used(name, slots), model)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.name, ctx.model = inputs[:2]
        ctx.save_for_backward(*inputs[2:])
        ctx.set_materialize_grads(False)
        if isinstance(output, tuple):
            ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        slots = ctx.saved_tensors
        if grads[0] is None:
            return (None,) * (2 + len(slots))
        wanted = as_bits(ctx.needs_input_grad[2:])
        gradients = GeometryBackward.apply(ctx.name, ctx.model, wanted, grads[0], *slots)
        return (None, None, *spread(gradients, wanted))

    @staticmethod
    def vmap(info: Any, in_dims: Any, name: str, model: int, *slots: Tensor | None) -> Any:
        rows = flatten_vmap(info, in_dims[2:], slots)
        return unflatten_vmap(info, Geometry.apply(name, model, *rows))


class GeometryBackward(Function):
    """``apply(name, model, wanted, grad, *slots)`` returns the gradients that ``wanted`` names."""

    @staticmethod
    def forward(
        name: str,
        model: int,
        wanted: int,
        grad: Tensor,
        keypoints: Tensor | None,
        pose: Tensor | None,
        root: Tensor | None,
        intrinsics: Tensor | None,
        distortion: Tensor | None,
        std: Tensor | None,
        confidence: Tensor | None,
    ) -> tuple[Tensor, ...]:
        slots = (keypoints, pose, root, intrinsics, distortion, std, confidence)
        gradients = getattr(operators, f"{name}_backward")(grad, *_used(name, slots), model, wanted)
        return _keep(name, gradients, wanted)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.name, ctx.model, ctx.wanted = inputs[:3]
        ctx.save_for_backward(*inputs[3:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *tangents: Tensor | None) -> tuple[Any, ...]:
        grad, *slots = ctx.saved_tensors
        if all(t is None for t in tangents):
            return (None,) * (4 + len(slots))
        wanted = as_bits(ctx.needs_input_grad[4:])
        grad_grad, *gradients = GeometryDoubleBackward.apply(
            ctx.name, ctx.model, wanted, *spread(tangents, ctx.wanted), grad, *slots
        )
        return (None, None, None, grad_grad, *spread(gradients, wanted))

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, name: str, model: int, wanted: int, *tensors: Tensor | None
    ) -> Any:
        rows = flatten_vmap(info, in_dims[3:], tensors)
        return unflatten_vmap(info, GeometryBackward.apply(name, model, wanted, *rows))


class GeometryDoubleBackward(Function):
    """``apply(name, model, wanted, *tangents, grad, *slots)``; itself not differentiable.

    The tangents are the gradients that reached the results of :class:`GeometryBackward`.
    """

    @staticmethod
    def forward(
        name: str,
        model: int,
        wanted: int,
        t_keypoints: Tensor | None,
        t_pose: Tensor | None,
        t_root: Tensor | None,
        t_intrinsics: Tensor | None,
        t_distortion: Tensor | None,
        t_std: Tensor | None,
        t_confidence: Tensor | None,
        grad: Tensor,
        keypoints: Tensor | None,
        pose: Tensor | None,
        root: Tensor | None,
        intrinsics: Tensor | None,
        distortion: Tensor | None,
        std: Tensor | None,
        confidence: Tensor | None,
    ) -> tuple[Tensor, ...]:
        tangents = (
            t_keypoints, t_pose, t_root, t_intrinsics, t_distortion, t_std, t_confidence
        )  # fmt: skip
        slots = (keypoints, pose, root, intrinsics, distortion, std, confidence)
        grad_grad, *gradients = getattr(operators, f"{name}_double_backward")(
            *_used(name, tangents), grad, *_used(name, slots), model, wanted
        )
        return (grad_grad, *_keep(name, gradients, wanted))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.name = inputs[0]

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> tuple[Any, ...]:
        raise RuntimeError(
            f"erd_cuda.{ctx.name} has derivatives of first and second order; a third was asked for"
        )

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, name: str, model: int, wanted: int, *tensors: Tensor | None
    ) -> Any:
        rows = flatten_vmap(info, in_dims[3:], tensors)
        return unflatten_vmap(info, GeometryDoubleBackward.apply(name, model, wanted, *rows))


def as_bits(flags: Sequence[bool]) -> int:
    """The operators' ``wanted``: bit i asks for the gradient of slot i."""
    return sum(1 << i for i, flag in enumerate(flags) if flag)


def spread(gradients: Sequence[Tensor | None], wanted: int) -> list[Tensor | None]:
    """Puts the gradients that ``wanted`` names into their slots, None elsewhere."""
    remaining = iter(gradients)
    return [next(remaining) if wanted >> i & 1 else None for i in range(len(SLOTS))]


def _used(name: str, slots: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [slots[SLOTS.index(slot)] for slot in INPUTS[name]]


def _keep(name: str, gradients: Sequence[Tensor], wanted: int) -> tuple[Tensor, ...]:
    return tuple(
        g
        for slot, g in zip(INPUTS[name], gradients, strict=True)
        if wanted >> SLOTS.index(slot) & 1
    )


def flatten_vmap(info: Any, in_dims: Any, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Turns vmap's extra dimension into more rows; what has none is shared by stride 0."""
    rows: list[Tensor | None] = []
    for t, dim in zip(tensors, in_dims, strict=True):
        if t is None:
            rows.append(None)
            continue
        batched = t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
        rows.append(batched.reshape(batched.shape[0] * batched.shape[1], *batched.shape[2:]))
    return rows


def unflatten_vmap(info: Any, outputs: Any) -> tuple[Any, Any]:
    if isinstance(outputs, Tensor):
        per_sample = outputs.shape[0] // max(info.batch_size, 1)
        return outputs.reshape(info.batch_size, per_sample, *outputs.shape[1:]), 0
    results = tuple(unflatten_vmap(info, o)[0] for o in outputs)
    return results, (0,) * len(results)


@torch.library.register_fake("erd_cuda::project")
def _(pose: Tensor, *_: Any) -> Tensor:
    return _pixels_like(pose)


@torch.library.register_fake("erd_cuda::residual")
def _(keypoints: Tensor, pose: Tensor, *_: Any) -> Tensor:
    return _pixels_like(pose)


@torch.library.register_fake("erd_cuda::solve_root")
def _(keypoints: Tensor, pose: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    count = pose.shape[0]
    return pose.new_empty(count, 3), pose.new_empty(count, dtype=torch.int32)


@torch.library.register_fake("erd_cuda::solve_residual")
def _(keypoints: Tensor, pose: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    count, coordinates = pose.shape[0], math.prod(pose.shape[1:])
    result = pose.new_empty(count, coordinates // 3 * 2 + 3)
    return result, pose.new_empty(count, dtype=torch.int32)


def _pixels_like(pose: Tensor) -> Tensor:
    count, *rest = pose.shape
    shape = (rest[0], 2) if len(rest) == 2 else (rest[0] // 3 * 2,)
    return pose.new_empty(count, *shape)


def _fake_gradients(name: str, inputs: Sequence[Tensor | None], wanted: int) -> tuple[Tensor, ...]:
    pose = inputs[INPUTS[name].index("pose")]
    assert pose is not None
    return tuple(
        pose.new_empty(i.shape)
        if i is not None and wanted >> SLOTS.index(slot) & 1
        else pose.new_empty(0)
        for slot, i in zip(INPUTS[name], inputs, strict=True)
    )


def _register_derivative_fakes(name: str) -> None:
    inputs = len(INPUTS[name])

    @torch.library.register_fake(f"erd_cuda::{name}_backward")
    def backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        return _fake_gradients(name, arguments[:inputs], arguments[-1])

    @torch.library.register_fake(f"erd_cuda::{name}_double_backward")
    def double_backward(*arguments: Any) -> tuple[Tensor, ...]:
        grad = arguments[inputs]
        gradients = _fake_gradients(name, arguments[inputs + 1 : 2 * inputs + 1], arguments[-1])
        return (grad.new_empty(grad.shape), *gradients)


for _name in INPUTS:
    _register_derivative_fakes(_name)
