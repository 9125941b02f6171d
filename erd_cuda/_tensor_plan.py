"""The shortest way from torch's tensors to the CPU's kernels, if this installation has it.

csrc/python/tensor_refine.cpp is it. It needs the module that is compiled for one Python, and a
torch whose tensors C code can read by DLPack's exchange table; without either every call goes
through torch's operators.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

__all__ = ["refine_tensors", "tensor_plan"]

_native: Any = None
try:
    _native = importlib.import_module("erd_cuda._array")
    # Of this very package: an editable install can find another's.
    beside = Path(_native.__file__).parent == Path(__file__).parent
    if not beside or not _native.use_tensors(Tensor, Tensor.__dlpack_c_exchange_api__):
        _native = None
except (ImportError, AttributeError, TypeError):
    # A torch before the table in its present form; TypeError: it is an integer there.
    _native = None


def tensor_plan(plan: Tensor, weights: Sequence[Tensor], kept: Any) -> Any:
    """What `refine_tensors` takes for its weights; None where it cannot serve.

    Args:
        plan: from the private op ``plan_refine``.
        weights: the tensors that it points into, whose changes end its use.
        kept: what else must live as long.
    """
    return None if _native is None else _native.tensor_plan(plan.data_ptr(), list(weights), kept)


#: ``refine_tensors(tensor_plan, recording, model, root_mode, return_stages, keypoints, pose, root,
#: intrinsics, distortion, confidence)``: the refined pose, or None for what this way does not
#: serve. ``recording``: whether tensors that require a gradient want one.
refine_tensors: Any = getattr(_native, "refine_tensors", None)
