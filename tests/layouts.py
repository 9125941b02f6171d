"""Tensors with equal values and different memory, as slices, transposes and views leave them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def contiguous(values: Tensor) -> Tensor:
    return values.contiguous()


def shifted(values: Tensor) -> Tensor:
    """Contiguous, but starting one element into its storage: no vector load is aligned."""
    storage = torch.full((values.numel() + 1,), float("nan"), dtype=values.dtype)
    view = storage[1:].view(values.shape)
    return view.copy_(values)


def transposed(values: Tensor) -> Tensor:
    """The first axis the fastest in memory."""
    order = tuple(reversed(range(values.dim())))
    return values.permute(order).contiguous().permute(order)


def channel_slice(values: Tensor) -> Tensor:
    """The leading channels of wider rows, as the x, y of x, y, score."""
    wide = torch.full((*values.shape[:-1], values.shape[-1] + 1), float("nan"), dtype=values.dtype)
    wide[..., :-1] = values
    return wide[..., :-1]


def every_second(values: Tensor) -> Tensor:
    """A step of two along every axis, with NaN in between."""
    wide = torch.full([2 * size for size in values.shape], float("nan"), dtype=values.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in values.shape)]
    return view.copy_(values)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    function.__name__: function
    for function in (contiguous, shifted, transposed, channel_slice, every_second)
}
