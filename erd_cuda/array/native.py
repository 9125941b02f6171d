"""Loads the kernels' module for arrays, and says what to do when it is missing."""

from __future__ import annotations

import importlib
from typing import Any

try:
    native: Any = importlib.import_module("erd_cuda._array")
except ImportError as error:
    raise ImportError(
        "erd_cuda's compiled module for NumPy and CuPy arrays is missing or was compiled for "
        f"another Python ({error}): install the package with 'pip install --no-build-isolation .' "
        "from its source tree, which compiles it."
    ) from error


def set_num_threads(num_threads: int | None) -> None:
    """Sets how many threads a call on NumPy arrays may use, the caller's included.

    Results do not depend on it, bit for bit. While one call uses the threads, a call from another
    Python thread runs on that thread alone. torch's number of threads has no say here.

    Args:
        num_threads: at least 1; None, the default, for as many as there are processors that this
            process may run on.

    Raises:
        ValueError: not an integer of at least 1.
    """
    if num_threads is not None and (
        not isinstance(num_threads, int) or isinstance(num_threads, bool) or num_threads < 1
    ):
        raise ValueError(
            f"num_threads is {num_threads!r}, expected an integer of at least 1, or None"
        )
    native.set_num_threads(num_threads or 0)


def get_num_threads() -> int:
    """How many threads a call on NumPy arrays may use."""
    return int(native.num_threads())
