"""The file that an export writes, checked before the work that precedes the writing."""

from __future__ import annotations

import os
from pathlib import Path

from .._files import check_directory

#: By the words of ``erd-cuda export --format``.
SUFFIXES = {"onnx": ".onnx", "aoti": ".pt2", "cpp": ".safetensors"}


def check_output(path: str | os.PathLike[str], kind: str) -> None:
    """Checks where an export of one of the `SUFFIXES`' kinds is to be written.

    Raises:
        ValueError: the name has another suffix.
        FileNotFoundError: there is no such directory.
    """
    if Path(path).suffix != SUFFIXES[kind]:
        raise ValueError(f"path is {str(path)!r}, expected a name that ends in {SUFFIXES[kind]}.")
    check_directory(path)
