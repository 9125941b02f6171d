"""As much of CuPy as erd_cuda.array uses, over the computer's own memory.

With it the emulated CUDA kernels run on arrays that claim to be on a GPU, and what is asked of CuPy
can be looked at: which device and stream were current, what was copied.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

_devices = [0]
# The current streams of each device, innermost last.
_streams: dict[int, list[Any]] = defaultdict(
    lambda: [SimpleNamespace(ptr=0, synchronize=lambda: None)]
)
allocated_on: list[int] = []


class ndarray:
    """A NumPy array in disguise: NumPy itself does not take it for one."""

    def __init__(self, values: Any, device: int) -> None:
        self._values = values
        self.device = SimpleNamespace(id=device)

    shape = property(lambda self: self._values.shape)
    ndim = property(lambda self: self._values.ndim)
    dtype = property(lambda self: self._values.dtype)
    strides = property(lambda self: self._values.strides)
    flags = property(lambda self: self._values.flags)
    data = property(lambda self: SimpleNamespace(ptr=self._values.ctypes.data))

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self._values.__array_interface__, "version": 3, "stream": 1}

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __getitem__(self, index: Any) -> ndarray:
        return ndarray(self._values[index], self.device.id)

    def reshape(self, shape: tuple[int, ...]) -> ndarray:
        return ndarray(self._values.reshape(shape), self.device.id)

    def get(self) -> Any:
        return self._values.copy()


class Device:
    def __init__(self, device: int | None = None) -> None:
        self.id = _devices[-1] if device is None else device

    def __enter__(self) -> Device:
        _devices.append(self.id)
        return self

    def __exit__(self, *_: object) -> None:
        _devices.pop()


class Stream:
    def __init__(self, ptr: int = 77) -> None:
        self.ptr = ptr
        self.synchronized = 0

    def synchronize(self) -> None:
        self.synchronized += 1

    def __enter__(self) -> Stream:
        self._device = _devices[-1]
        _streams[self._device].append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _streams[self._device].pop()


def _new(values: Any) -> ndarray:
    allocated_on.append(_devices[-1])
    return ndarray(values, _devices[-1])


def empty(shape: tuple[int, ...], dtype: Any) -> ndarray:
    return _new(np.empty(shape, dtype))


def array(values: Any, dtype: Any = None, order: str = "K") -> ndarray:
    values = values._values if isinstance(values, ndarray) else values
    return _new(np.array(values, dtype, order=order))


def asarray(values: Any) -> ndarray:
    if hasattr(values, "__cuda_array_interface__"):
        interface = SimpleNamespace(__array_interface__=values.__cuda_array_interface__)
        return ndarray(np.asarray(interface), _devices[-1])
    return array(values)


def broadcast_to(values: ndarray, shape: tuple[int, ...]) -> ndarray:
    return ndarray(np.broadcast_to(values._values, shape), values.device.id)


def asnumpy(values: ndarray) -> Any:
    return values.get()


cuda = SimpleNamespace(
    Device=Device, Stream=Stream, get_current_stream=lambda: _streams[_devices[-1]][-1]
)


def as_cupy() -> ModuleType:
    """This module under CuPy's name, for `sys.modules`."""
    return sys.modules[__name__]
