"""Trained models for other runtimes: ONNX."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .onnx_erd import onnx_model, to_onnx
    from .onnx_stages import onnx_refiner

_HOMES = {"onnx_model": "onnx_erd", "onnx_refiner": "onnx_stages", "to_onnx": "onnx_erd"}

__all__ = ["onnx_model", "onnx_refiner", "to_onnx"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'erd_cuda.export' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{home}", __name__), name)
