"""Reading .npz files that hold pickled dictionaries, without running what the pickle asks for.

VideoPose3D's files store a dictionary of arrays as a 0-d object array, that is as a pickle, and a
pickle may call anything. `numpy.load(allow_pickle=True)` would let it. Here the pickle machine sees
only stand-ins of our own: they record what NumPy would have been asked to do, NumPy's own
reconstruction code (which trusts the item size, flags and buffers it is handed) is never entered,
and arrays are built afterwards from checked shapes, types and bytes.
"""

from __future__ import annotations

import math
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Sequence
from typing import IO, Any, ClassVar

import numpy as np
from numpy.lib import format as npy

# Item types an array may have: booleans, integers, floats and text. Structured and object types are
# handled apart.
_ITEM_TYPE = re.compile(r"b1|[iu][1248]|f[248]|[SU][1-9]\d{0,5}")
_PLAIN = (str, bytes, int, float, bool, type(None))
_MAX_DEPTH = 32


class RefusedPickle(ValueError):
    """A pickle asks for something that is neither a NumPy array nor a builtin container."""


class _Dtype:
    """Stands in for numpy.dtype while the pickle is read."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not (code.startswith("O") or _ITEM_TYPE.fullmatch(code)):
            raise RefusedPickle(f"holds an array of the type {code!r:.60}, which is not read here")
        self.code = code
        self.order = "="

    def __setstate__(self, state: Any) -> None:
        _, order, *rest = state
        if order not in ("<", ">", "|", "=") or any(entry is not None for entry in rest[:3]):
            raise RefusedPickle("holds an array of a structured type, which is not read here")
        self.order = order

    def resolved(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code if self.order in "<>" else self.code)


class _Array:
    """Stands in for one numpy.ndarray while the pickle is read."""

    __slots__ = ("dtype", "fortran", "raw", "shape")

    def __init__(self) -> None:
        self.dtype: Any = None

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, self.fortran, self.raw = state


class _Scalar:
    """Stands in for a NumPy scalar while the pickle is read."""

    __slots__ = ("dtype", "raw")

    def __init__(self, dtype: Any, raw: Any) -> None:
        self.dtype, self.raw = dtype, raw


class _Allowed:
    """A callable handed to the pickle machine.

    It is an instance, not a function or a class: the machine's BUILD opcode can set attributes on
    those, and its NEWOBJ opcode can call a class in ways it was not written for.
    """

    __slots__ = ("_call",)

    def __init__(self, call: Any) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise RefusedPickle("tries to change a function")


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", raw))
    return array


def _latin1(text: Any, encoding: Any) -> bytes:
    # Pickles of protocol 2 written by Python 3 spell bytes this way.
    if not isinstance(text, str) or encoding != "latin1":
        raise RefusedPickle("holds bytes in an encoding other than latin1")
    return text.encode("latin1")


def _globals() -> dict[tuple[str, str], _Allowed]:
    """What a pickle may name, fresh for each load."""
    table = {
        ("numpy", "dtype"): _Allowed(_Dtype),
        # Only ever an argument of _reconstruct; called directly it gives an array without content,
        # which is refused.
        ("numpy", "ndarray"): _Allowed(lambda *_: _Array()),
        ("_codecs", "encode"): _Allowed(_latin1),
        # How protocol 2 spells bytes that are empty, an empty array's among them.
        ("__builtin__", "bytes"): _Allowed(lambda: b""),
    }
    for core in ("numpy.core", "numpy._core"):  # NumPy 1.x and 2.x
        table[core + ".multiarray", "_reconstruct"] = _Allowed(lambda *_: _Array())
        table[core + ".multiarray", "scalar"] = _Allowed(_Scalar)
        table[core + ".numeric", "_frombuffer"] = _Allowed(_from_buffer)
    return table


# The machine in Python, not its C twin: that one keeps its memo in an array, which a single opcode
# with a large index grows to gigabytes. Pickles of arrays have few opcodes, so it is as fast.
class _Unpickler(pickle._Unpickler):
    def __init__(self, stream: IO[bytes]) -> None:
        # latin1 lets byte strings of Python 2 through; array bytes are turned back in _bytes.
        super().__init__(stream, encoding="latin1")
        self._allowed = _globals()

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._allowed[module, name]
        except KeyError:
            raise RefusedPickle(
                f"is a pickle that asks for {module}.{name}; only NumPy arrays and builtin "
                "containers are read"
            ) from None

    def _load_bytearray(self: Any) -> None:
        # The inherited method reserves, and clears, whatever size the file claims before it reads.
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.BYTEARRAY8[0]: _load_bytearray,
    }


def load_restricted(stream: IO[bytes]) -> Any:
    """Read one pickle of NumPy arrays and builtin containers.

    It may hold arrays, NumPy scalars, dict, list, tuple, str, bytes, int, float, bool and None.
    Object arrays become (nested) lists of their elements, a 0-d object array its single element,
    NumPy scalars 0-d arrays' items. Arrays are read-only views of the bytes read.

    Raises:
        ValueError: anything else is in the pickle, or it is damaged. The message is the predicate
            of a sentence whose subject is the file, such as ``is damaged or truncated``.
    """
    try:
        tree = _Unpickler(stream).load()
    except RefusedPickle:
        raise
    except Exception as error:  # damaged bytes make the pickle machine raise almost anything
        raise ValueError(
            f"is a damaged or truncated pickle ({type(error).__name__}: {error})"
        ) from error
    return _resolve(tree, {}, 0)


def _resolve(node: Any, done: dict[int, Any], depth: int) -> Any:
    """Replace the stand-ins by arrays.

    Shared nodes are resolved once, so a small pickle cannot unfold into a huge tree.
    """
    if type(node) in _PLAIN:
        return node
    if depth > _MAX_DEPTH:
        raise RefusedPickle(f"nests containers more than {_MAX_DEPTH} deep")
    if id(node) in done:
        return done[id(node)]
    result: Any
    if type(node) is dict:
        if any(type(key) not in _PLAIN for key in node):
            raise RefusedPickle("has a dictionary whose keys are not plain values")
        result = {key: _resolve(value, done, depth + 1) for key, value in node.items()}
    elif type(node) is list:
        result = [_resolve(value, done, depth + 1) for value in node]
    elif type(node) is tuple:
        result = tuple(_resolve(value, done, depth + 1) for value in node)
    elif type(node) is _Array:
        result = _array(node, done, depth)
    elif type(node) is _Scalar:
        result = _numbers(node.dtype, (), _bytes(node.raw)).item()
    elif type(node) in (_Allowed, _Dtype):
        raise RefusedPickle("names a NumPy function or type outside an array")
    else:
        raise RefusedPickle(
            f"holds a {type(node).__name__}, which is neither an array nor a builtin container"
        )
    done[id(node)] = result
    return result


def _array(node: _Array, done: dict[int, Any], depth: int) -> Any:
    if not isinstance(node.dtype, _Dtype):
        raise RefusedPickle("has an array without a type")
    shape = node.shape
    if type(shape) is not tuple or any(type(size) is not int or size < 0 for size in shape):
        raise RefusedPickle(f"has an array of the impossible shape {shape!r:.60}")
    if node.dtype.code.startswith("O"):
        if type(node.raw) is not list or len(node.raw) != math.prod(shape) or node.fortran:
            raise RefusedPickle("has an object array whose elements do not fit its shape")
        items = [_resolve(value, done, depth + 1) for value in node.raw]
        for size in reversed(shape[1:]):
            items = (
                [items[start : start + size] for start in range(0, len(items), size)]
                if size
                else []
            )
        return items if shape else items[0]
    flat_shape = shape[::-1] if node.fortran else shape
    array = _numbers(node.dtype, flat_shape, _bytes(node.raw))
    return array.T if node.fortran else array


def _numbers(dtype: Any, shape: tuple[int, ...], raw: bytes) -> np.ndarray[Any, Any]:
    if not isinstance(dtype, _Dtype) or dtype.code.startswith("O"):
        raise RefusedPickle("has a number without a number type")
    resolved = dtype.resolved()
    if len(raw) != math.prod(shape) * resolved.itemsize:
        raise RefusedPickle(
            f"has an array of shape {shape} whose {len(raw)} bytes do not fit its type {resolved}"
        )
    if not raw:
        return np.zeros(shape, resolved)
    return np.frombuffer(raw, resolved).reshape(shape)


def _bytes(raw: Any) -> bytes:
    if isinstance(raw, str):
        raw = raw.encode("latin1")
    if not isinstance(raw, (bytes, bytearray)):
        raise RefusedPickle("has an array whose content is not bytes")
    return bytes(raw)


def read_npz(
    path: str | os.PathLike[str], required: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, Any]:
    """Read named entries of an .npz file, unpickling object arrays with `load_restricted`.

    Args:
        path: the file.
        required: names that must be there.
        optional: names that are read where they exist.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no .npz file, is truncated, lacks a required entry, or holds what may not
            be unpickled.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: there is no such file.")
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy"): name for name in archive.namelist()}
            missing = [key for key in required if key not in names]
            if missing:
                held = ", ".join(sorted(names)) or "nothing"
                raise ValueError(f"{path} has no entry {missing[0]!r}; it holds {held}.")
            wanted = [key for key in (*required, *optional) if key in names]
            return {
                key: _read_entry(archive, names[key], f"{path}: entry {key!r}") for key in wanted
            }
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        with open(path, "rb") as stream:
            is_zip = stream.read(2) == b"PK"
        what = "is truncated or damaged" if is_zip else "is not an .npz file"
        raise ValueError(f"{path} {what} ({error}).") from error


def _read_entry(archive: zipfile.ZipFile, member: str, where: str) -> Any:
    try:
        with archive.open(member) as stream:
            version = npy.read_magic(stream)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"has the unknown .npy version {version}")
            read_header = (
                npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            )
            _, _, dtype = read_header(stream)
            if dtype.hasobject:
                if dtype.fields is not None or dtype.subdtype is not None:
                    raise RefusedPickle(
                        "is a structured array that holds objects, which is not read here"
                    )
                value = load_restricted(stream)
                stream.read()  # to the end, where the checksum is compared
                return value
        with archive.open(member) as stream:
            return npy.read_array(stream, allow_pickle=False)
    except (ValueError, MemoryError) as error:
        raise ValueError(f"{where} {str(error).rstrip('.')}.") from error
