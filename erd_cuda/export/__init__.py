"""Trained models where neither this package nor Python may be.

`to_onnx` writes an ONNX model of standard operators, `to_package` an AOTInductor package that
Python and C++ programs with torch run, `to_cpp` the weights for the C++ library, which needs no
torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .aoti import Package, exported_program, operator_library, to_package
    from .cpp_weights import to_cpp
    from .onnx_erd import onnx_model, to_onnx
    from .onnx_stages import onnx_refiner
    from .signature import ExportOptions

_HOMES = {
    "ExportOptions": "signature",
    "Package": "aoti",
    "exported_program": "aoti",
    "onnx_model": "onnx_erd",
    "onnx_refiner": "onnx_stages",
    "operator_library": "aoti",
    "to_cpp": "cpp_weights",
    "to_onnx": "onnx_erd",
    "to_package": "aoti",
}

__all__ = [
    "ExportOptions",
    "Package",
    "exported_program",
    "onnx_model",
    "onnx_refiner",
    "operator_library",
    "to_cpp",
    "to_onnx",
    "to_package",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'erd_cuda.export' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{home}", __name__), name)
