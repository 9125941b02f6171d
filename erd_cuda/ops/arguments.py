"""Checks the arguments of the operators and lays them out as the kernels read them.

The kernels see batches of rows: every tensor is broadcast to one batch shape and flattened to
(N, width). A tensor shared by all samples keeps a row stride of 0, so one camera for a million
poses is never copied.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import _library  # noqa: F401  loads the operators
from .._definitions import CAMERA_MODELS
from .._shapes import OPTIONAL, SLOTS, batch_of, broadcast, joint_count, title
from ..camera import Camera, as_camera

__all__ = ["SLOTS", "Rows", "as_rows"]

_HAS_CUDA_KERNELS = torch._C._dispatch_has_kernel_for_dispatch_key("erd_cuda::project", "CUDA")

# A row has fixed + per_joint * J elements.
_WIDTHS = {
    "keypoints": (0, 2),
    "pose": (0, 3),
    "root": (3, 0),
    "intrinsics": (4, 0),
    "distortion": (5, 0),
    "std": (0, 2),
    "confidence": (0, 1),
}


@dataclass(frozen=True)
class Rows:
    """Arguments as rows, and how to give results their batch shape back."""

    batch_shape: tuple[int, ...]
    joints: int
    model: int
    tensors: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor | None:
        return self.tensors.get(name)

    def slots(self) -> list[Tensor | None]:
        """The rows of every slot, None for absent ones."""
        return [self.tensors.get(name) for name in SLOTS]

    def unflatten(self, rows: Tensor, *event_shape: int) -> Tensor:
        return rows.reshape((*self.batch_shape, *event_shape))


def as_rows(
    camera: Camera | Tensor, *, keep_strides: bool = False, **tensors: Tensor | None
) -> Rows:
    """Checks and flattens the arguments of one operator.

    Args:
        camera: Camera, or (..., 4) intrinsics in px.
        keep_strides: leave (J, C) of a tensor with gaps as two dimensions instead of copying it.
        tensors: the other arguments by name; None for an optional one that was not given. ``pose``
            must be among them: it says how many joints there are.

    Raises:
        TypeError: an argument is no tensor, or a dtype is not float32 or float64, or dtypes differ.
        ValueError: a shape or device does not fit.
        RuntimeError: the tensors are on a GPU, and this build has no CUDA kernels.
    """
    camera = as_camera(camera)
    given: dict[str, Any] = {
        name: t for name, t in tensors.items() if t is not None or name not in OPTIONAL
    }
    given["intrinsics"] = camera.intrinsics
    if camera.distortion is not None:
        given["distortion"] = camera.distortion
    for name, t in given.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} is a {type(t).__name__}, expected a tensor")

    joints = joint_count(given["pose"])
    batches: dict[str, tuple[int, ...]] = {}
    for name, t in given.items():
        batches[name] = batch_of(name, t, joints)
    given = {name: _raise_under_autocast(t) for name, t in given.items()}
    _check_like_pose(given)

    batch_shape = broadcast(batches)
    count = math.prod(batch_shape)
    rows: dict[str, Tensor] = {}
    for name, t in given.items():
        fixed, per_joint = _WIDTHS[name]
        width = fixed + per_joint * joints
        if batches[name] != batch_shape:
            t = t.expand(*batch_shape, *t.shape[len(batches[name]) :])
        shape = (
            t.shape[-2:] if keep_strides and not t.is_contiguous() and per_joint > 1 else (width,)
        )
        rows[name] = t.reshape(count, *shape)
    return Rows(batch_shape, joints, CAMERA_MODELS[camera.model], rows)


def _raise_under_autocast(t: Tensor) -> Tensor:
    # Pixels and millimetres do not fit into 16 bits: under autocast these operators run in float32.
    half = t.dtype in (torch.float16, torch.bfloat16)
    return t.float() if half and torch.is_autocast_enabled(t.device.type) else t


def _check_like_pose(given: dict[str, Any]) -> None:
    pose = given["pose"]
    if pose.is_cuda and not _HAS_CUDA_KERNELS:
        raise RuntimeError(
            f"pose is on {pose.device}, but this build of erd_cuda has no CUDA kernels: install it "
            "where a CUDA toolkit (nvcc) is found, or move the tensors to the CPU"
        )
    if pose.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"pose has dtype {_short(pose.dtype)}, expected float32 or float64")
    for name, t in given.items():
        if t.dtype != pose.dtype:
            raise TypeError(
                f"{title(name)} has dtype {_short(t.dtype)}, expected {_short(pose.dtype)} like "
                "pose"
            )
        if t.device != pose.device:
            raise ValueError(f"{title(name)} is on {t.device}, expected {pose.device} like pose")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
