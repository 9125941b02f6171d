"""Model files in torch: written whole, and read into the model's precision.

`erd_cuda._model_file` describes the format. Everything but the tensors lies under a single metadata
key, because safetensors writes several in no fixed order and the same model should give the same
bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from erd_cuda._files import replacing
from erd_cuda._model_file import (
    FORMAT_VERSION,
    METADATA_KEY,
    bundled_models,
    check_shapes,
    find_model,
    read_with,
)

__all__ = ["bundled_models", "find_model", "fit_tensors", "read_model", "write_model"]


def write_model(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    description: Mapping[str, Any],
    halved: Collection[str] = (),
) -> None:
    """Write a model file in one step, or leave ``path`` as it was.

    Args:
        path: the file to write.
        tensors: the state dict.
        description: ``config``, ``lifter``, ``skeleton`` and ``notes``, as JSON takes them.
        halved: names of the tensors to store as float16.

    Raises:
        ValueError: ``description`` is not JSON, or a weight is too large for 16 bits.
    """
    try:
        header = json.dumps(
            {"format_version": FORMAT_VERSION, **description}, sort_keys=True, allow_nan=False
        )
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the model's notes cannot be written as JSON: {error}; keep numbers, strings, lists "
            f"and dicts in them."
        ) from error
    stored = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        if name in halved:
            value = value.half()
            if torch.isinf(value).any():
                raise ValueError(
                    f"{name} holds values beyond 65504, the most that 16 bits take; save with "
                    f"half=False."
                )
        stored[name] = value
    data = save(stored, metadata={METADATA_KEY: header})
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def read_model(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors of a model file; tensors stored as float16 stay so.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, not a model file, or of another format version.
    """
    return read_with(_load, path)


def _load(path: Path) -> tuple[dict[str, str] | None, dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        # Copies: safetensors' own tensors lie in a mapping of the file.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        return file.metadata(), tensors


def fit_tensors(
    path: Path, tensors: dict[str, Tensor], expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The file's tensors in the model's precision, after a check of names and shapes.

    Raises:
        ValueError: a tensor is missing, left over, or of another shape than ``expected``.
    """
    check_shapes(
        path,
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        {name: tuple(tensor.shape) for name, tensor in expected.items()},
    )
    # mean2d is never halved, so it tells what precision the model was saved from.
    dtype = tensors["mean2d"].dtype
    return {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
