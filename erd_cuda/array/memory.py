"""Where arrays live: NumPy's in the computer's memory, CuPy's on a GPU.

CuPy is asked for only once somebody has passed an array that lies on a GPU.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import numpy as np

# DLPack's numbers of the kinds of memory that NumPy and CuPy take over.
_DLPACK_HOST = (1, 3)
_DLPACK_CUDA = (2, 13)


def as_array(name: str, value: Any) -> Any:
    """The argument ``name`` as a NumPy or CuPy array over the same memory.

    Objects with ``__dlpack__`` (torch's tensors, for example) or ``__cuda_array_interface__`` are
    taken over by NumPy or CuPy, without a copy.

    Raises:
        TypeError: no array, a masked one, or one that does not give its memory away (torch's
            tensors that require a gradient, are bfloat16 or lie on "meta", for example).
        ImportError: it lies on a GPU, and CuPy is not installed.
    """
    if isinstance(value, np.ndarray):
        if isinstance(value, np.ma.MaskedArray):
            raise TypeError(
                f"{name} is a masked array, expected a plain one: say which joints are missing by "
                "a confidence of 0"
            )
        return value
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(value, cupy.ndarray):
        return value
    # A class has the attributes that are asked for below, but no memory.
    if isinstance(value, type):
        raise TypeError(f"{name} is the class {value.__name__}, expected a NumPy or CuPy array")
    if hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
        try:
            kind = int(value.__dlpack_device__()[0])
            if kind in _DLPACK_HOST:
                return np.from_dlpack(value)
            if kind in _DLPACK_CUDA:
                return _cupy(name).from_dlpack(value)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
            raise TypeError(
                f"{name} is a {type(value).__name__} whose memory cannot be shared ({reason}), "
                "expected a NumPy or CuPy array, or one that can be viewed as such"
            ) from error
    elif hasattr(value, "__cuda_array_interface__"):
        return _cupy(name).asarray(value)
    raise TypeError(f"{name} is a {type(value).__name__}, expected a NumPy or CuPy array")


def device_name(array: Any) -> str:
    """``"cpu"``, or ``"cuda:0"`` and so on."""
    return "cpu" if isinstance(array, np.ndarray) else f"cuda:{array.device.id}"


def address_of(array: Any) -> int:
    """Where the first element lies."""
    if isinstance(array, np.ndarray):
        return int(array.__array_interface__["data"][0])
    return int(array.data.ptr)


class Place:
    """One device, as the kernels and new arrays need to know it.

    Args:
        device: ``"cpu"``, ``"cuda"`` (CuPy's current GPU) or ``"cuda:N"``.

    Raises:
        ValueError: another word.
        ImportError: a GPU, and CuPy is not installed.
    """

    def __init__(self, device: str) -> None:
        kind, _, number = str(device).partition(":")
        if kind not in ("cpu", "cuda") or (number and (kind == "cpu" or not number.isdecimal())):
            raise ValueError(f"device is {device!r}, expected 'cpu', 'cuda' or 'cuda:N'")
        self.xp: ModuleType = np if kind == "cpu" else _cupy("device")
        self.index: int | None = None
        if kind == "cuda":
            self.index = int(number) if number else int(self.xp.cuda.Device().id)

    @property
    def name(self) -> str:
        """``"cpu"``, or ``"cuda:0"`` and so on."""
        return "cpu" if self.index is None else f"cuda:{self.index}"

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """A new array with no particular values."""
        if self.index is None:
            return np.empty(shape, dtype)
        with self.xp.cuda.Device(self.index):
            return self.xp.empty(shape, dtype)

    def copy(self, array: Any) -> Any:
        """A copy without gaps of an array that is on this device."""
        if self.index is None:
            return np.array(array, order="C")
        with self.xp.cuda.Device(self.index):
            return self.xp.array(array, order="C")

    def take(self, array: Any, dtype: Any) -> Any:
        """A copy without gaps, on this device, of an array of any device.

        It is complete when this returns: weights may be used in another stream next.
        """
        if self.index is None:
            host = array if isinstance(array, np.ndarray) else array.get()
            return np.array(host, dtype, order="C")
        with self.xp.cuda.Device(self.index):
            copy = self.xp.array(array, dtype, order="C")
            self.xp.cuda.get_current_stream().synchronize()
            return copy

    def for_kernels(self) -> tuple[int, int] | None:
        """None for the CPU, else the GPU's number and CuPy's current stream there."""
        if self.index is None:
            return None
        with self.xp.cuda.Device(self.index):
            return self.index, int(self.xp.cuda.get_current_stream().ptr)


#: Where NumPy's arrays live.
CPU = Place("cpu")


def place_of(array: Any) -> Place:
    """The place of a NumPy or CuPy array."""
    return CPU if isinstance(array, np.ndarray) else Place(device_name(array))


def _cupy(name: str) -> ModuleType:
    try:
        return importlib.import_module("cupy")
    except ImportError as error:
        raise ImportError(
            f"{name} is on a GPU, which takes CuPy: run `pip install 'erd-cuda[cupy]'` ({error})"
        ) from error
