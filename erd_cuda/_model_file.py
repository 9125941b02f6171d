"""Model files, as far as every front end reads them: where they lie and what they must hold.

A file is a safetensors file with the tensors and, under the metadata key ``erd_cuda``, JSON with
everything else: ``format_version``, ``config`` (the ERD's arguments), ``lifter`` (class and
arguments, or null), ``skeleton`` (or null) and ``notes``. This module needs no torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

FORMAT_VERSION = 1
METADATA_KEY = "erd_cuda"
# Metadata by which weights for the C++ library are known (export/cpp_weights.py).
_CPP_KEYS = {"format_version", "block", "features", "root"}
_PARTS = ("config", "lifter", "skeleton", "notes")
_BUNDLED = Path(__file__).resolve().parent / "models"

_Tensor = TypeVar("_Tensor")


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


def read_with(
    load: Callable[[Path], tuple[Mapping[str, str] | None, dict[str, _Tensor]]], path: Path
) -> tuple[dict[str, Any], dict[str, _Tensor]]:
    """Description and tensors of a model file.

    Args:
        load: reads a safetensors file's metadata and tensors.
        path: the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, not a model file, or of another format version.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}.")
    try:
        metadata, tensors = load(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is truncated or no safetensors file ({_one_line(error)})."
        ) from error
    metadata = metadata or {}
    header = metadata.get(METADATA_KEY)
    if header is None and metadata.keys() >= _CPP_KEYS:
        raise ValueError(
            f"{path} is an export for the C++ library (erd-cuda export --format cpp): Python reads "
            "the model file that it was made from."
        )
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


def check_shapes(
    path: Path, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Compares the tensors of a file, by name, with those that its description calls for.

    Raises:
        ValueError: a tensor is missing, left over, or of another shape than ``expected``.
    """
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise ValueError(f"{path} lacks the tensor {name}.")
        if name not in expected:
            raise ValueError(f"{path} holds a tensor {name} that its description knows nothing of.")
        if tuple(found[name]) != tuple(expected[name]):
            raise ValueError(
                f"the tensor {name} in {path} has shape {tuple(found[name])}, its description "
                f"says {tuple(expected[name])}."
            )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
