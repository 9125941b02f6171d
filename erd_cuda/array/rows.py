"""Checks the arguments of a function and describes them to the kernels as rows.

The kernels see a batch as rows, one a sample, at a fixed stride. Broadcasting is a stride of 0, and
an array whose batch dimensions have one stride between them is read where it lies, whatever the
strides of its joints and coordinates. Only other arrays are copied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._definitions import CAMERA_MODELS
from .._shapes import EVENT_DIMS, OPTIONAL, SLOTS, batch_of, broadcast, joint_count, title
from .camera import as_camera
from .memory import Place, address_of, as_array, device_name, place_of

#: Numbers of the dtypes in csrc/core/calls.h.
SCALARS = {np.dtype(np.float32): 0, np.dtype(np.float64): 1}

#: Address and the strides of csrc/core/calls.h's Rows, in elements.
Row = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class Rows:
    """The arguments of one call as the kernels take them."""

    batch_shape: tuple[int, ...]
    joints: int
    model: int
    dtype: np.dtype[Any]
    place: Place
    rows: dict[str, Row]
    held: list[Any]  # the arrays behind the addresses

    @property
    def count(self) -> int:
        """Number of samples."""
        return math.prod(self.batch_shape)

    @property
    def scalar(self) -> int:
        return SCALARS[self.dtype]

    def slots(self, names: Sequence[str] = SLOTS) -> list[Row | None]:
        """The rows of the named inputs, None for absent ones."""
        return [self.rows.get(name) for name in names]

    def empty(self, *event_shape: int, dtype: Any = None) -> Any:
        """A new array for results, with one entry of ``event_shape`` for each sample."""
        shape = (*self.batch_shape, *event_shape)
        return self.place.empty(shape, self.dtype if dtype is None else dtype)


def as_rows(camera: Any, **arguments: Any) -> Rows:
    """Checks and describes the arguments of one function.

    Args:
        camera: Camera, or (..., 4) intrinsics in px.
        arguments: the others by name; None for an optional one that was not given. ``pose`` must be
            among them: it says how many joints there are, of which dtype and on which device.

    Raises:
        TypeError: an argument is no array, or a dtype is not float32 or float64, or dtypes differ.
        ValueError: a shape or device does not fit.
    """
    camera = as_camera(camera)
    given = {
        name: as_array(name, value)
        for name, value in arguments.items()
        if value is not None or name not in OPTIONAL
    }
    given["intrinsics"] = camera.intrinsics
    if camera.distortion is not None:
        given["distortion"] = camera.distortion

    pose = given["pose"]
    joints = joint_count(pose)
    batches = {name: batch_of(name, array, joints) for name, array in given.items()}
    _check_like_pose(given)
    batch_shape = broadcast(batches)
    place = place_of(pose)

    rows: dict[str, Row] = {}
    for name, array in given.items():
        events = len(EVENT_DIMS[name])
        row = _row(array, events, batch_shape)
        if row is None:
            shape = (*batch_shape, *array.shape[array.ndim - events :])
            array = place.copy(place.xp.broadcast_to(array, shape))
            row = _row(array, events, batch_shape)
            assert row is not None
            given[name] = array
        rows[name] = row
    model = CAMERA_MODELS[camera.model]
    return Rows(batch_shape, joints, model, pose.dtype, place, rows, list(given.values()))


def _check_like_pose(given: dict[str, Any]) -> None:
    pose = given["pose"]
    if pose.dtype not in SCALARS:
        raise TypeError(f"pose has dtype {pose.dtype}, expected float32 or float64")
    device = device_name(pose)
    for name, array in given.items():
        if array.dtype != pose.dtype:
            raise TypeError(
                f"{title(name)} has dtype {array.dtype}, expected {pose.dtype} like pose"
            )
        if device_name(array) != device:
            raise ValueError(
                f"{title(name)} is on {device_name(array)}, expected {device} like pose"
            )


def _row(array: Any, events: int, batch_shape: tuple[int, ...]) -> Row | None:
    """The array as rows for a batch, or None if no single stride leads from sample to sample.

    Args:
        array: batch dimensions that broadcast to ``batch_shape``, then the event's.
        events: how many dimensions one sample has, 1 or 2.
    """
    address, size = address_of(array), array.dtype.itemsize
    batch_dims = array.ndim - events
    strides = array.strides
    # Fields of records may lie where no element of this size may.
    if address % size or any(stride % size for stride in strides):
        return None
    steps = [stride // size for stride in strides]
    span: int | None = None
    step = 0
    # From the innermost batch dimension outwards, each must start where the one before has ended.
    for i in range(1, len(batch_shape) + 1):
        if batch_shape[-i] == 1:
            continue
        inner = 0 if i > batch_dims or array.shape[batch_dims - i] == 1 else steps[batch_dims - i]
        if span is None:
            step = inner
        elif inner != span:
            return None
        span = inner * batch_shape[-i]
    if events == 1:
        return address, step, 1, steps[-1], 0
    return address, step, array.shape[-1], steps[-2], steps[-1]
