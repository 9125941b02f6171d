"""Model files: one safetensors file holds the tensors and, as JSON, everything else.

The JSON lies under the metadata key ``erd_cuda``: ``format_version``, ``config`` (the ERD's
arguments), ``lifter`` (class and arguments, or null), ``skeleton`` (or null) and ``notes``.
A single metadata key, because safetensors writes several in no fixed order and the same model
should give the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from erd_cuda._files import replacing

FORMAT_VERSION = 1
_KEY = "erd_cuda"
_PARTS = ("config", "lifter", "skeleton", "notes")
_BUNDLED = Path(__file__).resolve().parent.parent / "models"


def bundled_models() -> list[str]:
    """Names of the models that come with the package, for `ERD.from_pretrained`."""
    return sorted(path.stem for path in _BUNDLED.glob("*.safetensors"))


def find_model(name: str | os.PathLike[str]) -> Path:
    """The file of a bundled model or of a path; an existing file wins over a bundled name.

    Raises:
        FileNotFoundError: neither exists.
    """
    path = Path(name)
    if path.is_file():
        return path
    if str(name) in bundled_models():
        return _BUNDLED / f"{name}.safetensors"
    bundled = ", ".join(bundled_models()) or "none"
    raise FileNotFoundError(
        f"there is no file {str(name)!r} and no bundled model of that name (bundled: {bundled})."
    )


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
    data = save(stored, metadata={_KEY: header})
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def read_model(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors of a model file; tensors stored as float16 stay so.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, not a model file, or of another format version.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}.")
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(_KEY)
            # Copies: safetensors' own tensors lie in a mapping of the file.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is truncated or no safetensors file ({_one_line(error)})."
        ) from error
    if header is None:
        raise ValueError(f"{path} is a safetensors file, but not one that erd_cuda wrote.")
    try:
        description = json.loads(header)
        version = description.pop("format_version")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"the description of the model in {path} is damaged ({_one_line(error)})."
        ) from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has model format version {version}, this erd_cuda reads version "
            f"{FORMAT_VERSION}."
        )
    missing = [part for part in _PARTS if part not in description]
    if missing:
        raise ValueError(f"the description of the model in {path} lacks {', '.join(missing)}.")
    return description, tensors


def fit_tensors(
    path: Path, tensors: dict[str, Tensor], expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The file's tensors in the model's precision, after a check of names and shapes.

    Raises:
        ValueError: a tensor is missing, left over, or of another shape than ``expected``.
    """
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors:
            raise ValueError(f"{path} lacks the tensor {name}.")
        if name not in expected:
            raise ValueError(f"{path} holds a tensor {name} that its description knows nothing of.")
        if tensors[name].shape != expected[name].shape:
            raise ValueError(
                f"the tensor {name} in {path} has shape {tuple(tensors[name].shape)}, its "
                f"description says {tuple(expected[name].shape)}."
            )
    # mean2d is never halved, so it tells what precision the model was saved from.
    dtype = tensors["mean2d"].dtype
    return {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
