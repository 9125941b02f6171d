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

from ..camera import CAMERA_MODELS, Camera, as_camera

MAX_JOINTS = 128

#: Every quantity the operators may depend on, in the order of the slots in csrc/cpu/kernels.h.
SLOTS = ("keypoints", "pose", "root", "intrinsics", "distortion", "std", "confidence")

_EVENT_DIMS = {
    "keypoints": ("J", 2),
    "pose": ("J", 3),
    "root": (3,),
    "intrinsics": (4,),
    "distortion": (5,),
    "std": ("J", 2),
    "confidence": ("J",),
}

_OPTIONAL = ("std", "confidence")

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
    """
    camera = as_camera(camera)
    given: dict[str, Any] = {
        name: t for name, t in tensors.items() if t is not None or name not in _OPTIONAL
    }
    given["intrinsics"] = camera.intrinsics
    if camera.distortion is not None:
        given["distortion"] = camera.distortion
    for name, t in given.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} is a {type(t).__name__}, expected a tensor")

    joints = _joint_count(given["pose"])
    batches: dict[str, tuple[int, ...]] = {}
    for name, t in given.items():
        batches[name] = _batch_of(name, t, joints)
    given = {name: _raise_under_autocast(t) for name, t in given.items()}
    _check_like_pose(given)

    batch_shape = _broadcast(batches)
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


def _joint_count(pose: Tensor) -> int:
    if pose.ndim < 2 or pose.shape[-1] != 3:
        raise ValueError(f"pose has shape {tuple(pose.shape)}, expected (..., J, 3)")
    joints = pose.shape[-2]
    if not 1 <= joints <= MAX_JOINTS:
        raise ValueError(f"pose has {joints} joints, expected 1 to {MAX_JOINTS}")
    return joints


def _batch_of(name: str, t: Tensor, joints: int) -> tuple[int, ...]:
    shape = t.shape
    batch_dims = len(shape) - len(_EVENT_DIMS[name])
    expected = tuple(joints if size == "J" else size for size in _EVENT_DIMS[name])
    if batch_dims < 0 or tuple(shape[batch_dims:]) != expected:
        wanted = ", ".join(["...", *map(str, expected)])
        why = f" because pose has {joints} joints" if "J" in _EVENT_DIMS[name] else ""
        raise ValueError(f"{name} has shape {tuple(shape)}, expected ({wanted}){why}")
    return tuple(shape[:batch_dims])


def _raise_under_autocast(t: Tensor) -> Tensor:
    # Pixels and millimetres do not fit into 16 bits: under autocast these operators run in float32.
    half = t.dtype in (torch.float16, torch.bfloat16)
    return t.float() if half and torch.is_autocast_enabled(t.device.type) else t


def _check_like_pose(given: dict[str, Any]) -> None:
    pose = given["pose"]
    if pose.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"pose has dtype {_short(pose.dtype)}, expected float32 or float64")
    for name, t in given.items():
        if t.dtype != pose.dtype:
            raise TypeError(
                f"{_title(name)} has dtype {_short(t.dtype)}, expected {_short(pose.dtype)} like "
                "pose"
            )
        if t.device != pose.device:
            raise ValueError(f"{_title(name)} is on {t.device}, expected {pose.device} like pose")


def _title(name: str) -> str:
    return f"camera {name}" if name in ("intrinsics", "distortion") else name


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _broadcast(batches: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    rank = max(len(batch) for batch in batches.values())
    shape = [1] * rank
    for name, batch in batches.items():
        for i, size in enumerate(batch, start=rank - len(batch)):
            if size == shape[i] or size == 1:
                continue
            if shape[i] != 1:
                others = ", ".join(f"{n} {b}" for n, b in batches.items() if n != name)
                raise ValueError(
                    f"{_title(name)} has batch shape {batch}, expected one that broadcasts with "
                    f"the others ({others})"
                )
            shape[i] = size
    return tuple(shape)
