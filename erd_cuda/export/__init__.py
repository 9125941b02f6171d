"""Trained models for other runtimes."""

from __future__ import annotations

from .onnx_refiner import onnx_refiner

__all__ = ["onnx_refiner"]
