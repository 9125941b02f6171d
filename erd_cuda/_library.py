"""Loads the compiled operators, once, and says what to do when they are missing."""

from __future__ import annotations

from pathlib import Path

import torch

#: The library: C++ programs open it by itself, see erd_cuda.export.operator_library.
PATH = Path(__file__).with_name("liberd_cuda_ops.so")

if not PATH.exists():
    raise ImportError(
        f"erd_cuda's compiled operators are missing ({PATH}): install the package with "
        "'pip install --no-build-isolation .' from its source tree, which compiles them."
    )
try:
    torch.ops.load_library(str(PATH))
except OSError as error:
    raise ImportError(
        f"erd_cuda's compiled operators do not load into torch {torch.__version__} "
        f"(torch 2.10 or newer is needed): {error}"
    ) from error

operators = torch.ops.erd_cuda
