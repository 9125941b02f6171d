"""Loads the compiled operators, once, and says what to do when they are missing."""

from __future__ import annotations

from pathlib import Path

import torch

_PATH = Path(__file__).with_name("liberd_cuda_ops.so")

if not _PATH.exists():
    raise ImportError(
        f"erd_cuda's compiled operators are missing ({_PATH}): install the package with "
        "'pip install --no-build-isolation .' from its source tree, which compiles them."
    )
try:
    torch.ops.load_library(str(_PATH))
except OSError as error:
    raise ImportError(
        f"erd_cuda's compiled operators do not load into torch {torch.__version__} "
        f"(torch 2.10 or newer is needed): {error}"
    ) from error

operators = torch.ops.erd_cuda
