"""Autograd around the raw geometry operators: gradients of first and second order, and vmap.

All three functions (project, residual, solve_root) share this code, because their operators share one
calling convention: ``NAME``, ``NAME_backward`` and ``NAME_double_backward`` on rows (N, width). New-style
``autograd.Function`` is used rather than ``torch.library.register_autograd``: it works under
``torch.func``, and forward-mode differentiation raises instead of returning zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._library import operators


class Geometry(Function):
    """``apply(name, model, *inputs)`` runs an operator; inputs that were not given are None.

    ``solve_root`` returns (root, status), the others one tensor.
    """

    @staticmethod
    def forward(name: str, model: int, *inputs: Tensor | None) -> Any:
        return getattr(operators, name)(*inputs, model)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.name, ctx.model = inputs[:2]
        ctx.save_for_backward(*inputs[2:])
        ctx.set_materialize_grads(False)
        if isinstance(output, tuple):
            ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        inputs = ctx.saved_tensors
        wanted = ctx.needs_input_grad[2:]
        if grads[0] is None:
            return (None,) * (2 + len(inputs))
        results = GeometryBackward.apply(ctx.name, ctx.model, as_bits(ctx.name, wanted), grads[0], *inputs)
        return (None, None, *spread(results, wanted))

    @staticmethod
    def vmap(info: Any, in_dims: Any, name: str, model: int, *inputs: Tensor | None) -> Any:
        rows = flatten_vmap(info, in_dims[2:], inputs)
        return unflatten_vmap(info, Geometry.apply(name, model, *rows))


class GeometryBackward(Function):
    """``apply(name, model, wanted, grad, *inputs)`` returns the gradients that ``wanted`` names."""

    @staticmethod
    def forward(
        name: str, model: int, wanted: int, grad: Tensor, *inputs: Tensor | None
    ) -> tuple[Tensor, ...]:
        gradients = getattr(operators, f"{name}_backward")(grad, *inputs, model, wanted)
        return keep(gradients, as_flags(name, wanted))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.name, ctx.model, ctx.wanted = inputs[:3]
        ctx.save_for_backward(*inputs[3:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *tangents: Tensor | None) -> tuple[Any, ...]:
        grad, *inputs = ctx.saved_tensors
        if all(t is None for t in tangents):
            return (None,) * (4 + len(inputs))
        all_tangents = spread(tangents, as_flags(ctx.name, ctx.wanted))
        wanted = ctx.needs_input_grad[4:]
        grad_grad, *results = GeometryDoubleBackward.apply(
            ctx.name, ctx.model, as_bits(ctx.name, wanted), *all_tangents, grad, *inputs
        )
        return (None, None, None, grad_grad, *spread(results, wanted))

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, name: str, model: int, wanted: int, *tensors: Tensor | None
    ) -> Any:
        rows = flatten_vmap(info, in_dims[3:], tensors)
        return unflatten_vmap(info, GeometryBackward.apply(name, model, wanted, *rows))


class GeometryDoubleBackward(Function):
    """``apply(name, model, wanted, *tangents, grad, *inputs)``; itself not differentiable."""

    @staticmethod
    def forward(name: str, model: int, wanted: int, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        grad_grad, *gradients = getattr(operators, f"{name}_double_backward")(*tensors, model, wanted)
        return (grad_grad, *keep(gradients, as_flags(name, wanted)))

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


# Bit of each input in the operators' `wanted` argument: its slot in csrc/cpu/kernels.h.
_SLOT = {
    "keypoints": 0,
    "pose": 1,
    "root": 2,
    "intrinsics": 3,
    "distortion": 4,
    "std": 5,
    "confidence": 6,
}
INPUTS = {
    "project": ("pose", "root", "intrinsics", "distortion"),
    "residual": ("keypoints", "pose", "root", "intrinsics", "distortion", "std", "confidence"),
    "solve_root": ("keypoints", "pose", "intrinsics", "distortion", "confidence"),
}


def as_bits(name: str, wanted: Sequence[bool]) -> int:
    return sum(1 << _SLOT[i] for i, w in zip(INPUTS[name], wanted, strict=True) if w)


def as_flags(name: str, wanted: int) -> list[bool]:
    return [bool(wanted >> _SLOT[i] & 1) for i in INPUTS[name]]


def keep(values: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[Tensor, ...]:
    return tuple(v for v, w in zip(values, wanted, strict=True) if w)


def spread(values: Sequence[Tensor | None], wanted: Sequence[bool]) -> list[Tensor | None]:
    """The inverse of :func:`keep`: None where nothing was wanted."""
    remaining = iter(values)
    return [next(remaining) if w else None for w in wanted]


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
        return outputs.unflatten(0, (info.batch_size, -1)) if outputs.shape[0] else _empty(
            info, outputs
        ), 0
    results = tuple(unflatten_vmap(info, o)[0] for o in outputs)
    return results, (0,) * len(results)


def _empty(info: Any, output: Tensor) -> Tensor:
    return output.reshape(info.batch_size, 0, *output.shape[1:])


@torch.library.register_fake("erd_cuda::project")
def _(pose: Tensor, *_: Any) -> Tensor:
    return _rows_like(pose, pose, 2)


@torch.library.register_fake("erd_cuda::residual")
def _(keypoints: Tensor, pose: Tensor, *_: Any) -> Tensor:
    return _rows_like(pose, pose, 2)


@torch.library.register_fake("erd_cuda::solve_root")
def _(keypoints: Tensor, pose: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    count = pose.shape[0]
    return pose.new_empty(count, 3), pose.new_empty(count, dtype=torch.int32)


def _rows_like(like: Tensor, pose: Tensor, per_joint: int) -> Tensor:
    return like.new_empty(pose.shape[0], pose.shape[1] // 3 * per_joint)


def _fake_gradients(name: str, inputs: Sequence[Tensor | None], wanted: int) -> tuple[Tensor, ...]:
    pose = inputs[INPUTS[name].index("pose")]
    assert pose is not None
    flags = as_flags(name, wanted)
    return tuple(
        pose.new_empty(i.shape) if w and i is not None else pose.new_empty(0)
        for i, w in zip(inputs, flags, strict=True)
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
