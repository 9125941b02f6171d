"""What the compiled library was built from and for."""

from __future__ import annotations

from typing import Any

from ._library import operators


def build_info() -> dict[str, Any]:
    """Returns the facts a bug report needs about the compiled operators.

    Returns:
        A dict with ``version`` and ``commit`` of the sources, ``compiler`` and ``cuda_compiler``
        ("" without CUDA), ``torch_floor`` (the oldest torch the library runs on), ``cuda`` (whether
        CUDA kernels are in it), ``architectures`` (those they were built for: ``"sm_90"`` is code
        for one GPU, ``"compute_80"`` PTX for that one and all later ones), ``cpu_variants``
        (instruction sets the CPU kernels were built for) and ``cpu_capability`` (the one this
        processor runs).
    """
    facts = dict(pair.split("=", 1) for pair in operators.build_info().split("\t"))
    architectures = facts["architectures"].split()
    return {
        "version": facts["version"],
        "commit": facts["commit"],
        "compiler": facts["compiler"],
        "cuda_compiler": facts["cuda_compiler"],
        "torch_floor": "2.10",
        "cuda": bool(architectures),
        "architectures": architectures,
        "cpu_variants": facts["cpu_variants"].split(),
        "cpu_capability": facts["cpu_capability"],
    }
