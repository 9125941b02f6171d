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

import torch
from torch import Tensor
from torch.autograd import forward_ad, profiler

from ._definitions import CAMERA_MODELS
from .camera import Camera

__all__ = ["refine_tensors", "refuse", "tensor_plan"]


def _watchers() -> tuple[list[tuple[Any, Any]], list[tuple[dict[str, Any], str, Any]]]:
    """Whom to ask whether torch would miss a call that it does not see, and the answers if not.

    A graph that is being recorded would, a transform of functions, a mode that looks at every
    operator, a profiler. Most of these names are torch's own.

    Raises:
        AttributeError: this torch has other names.
    """
    questions: list[tuple[Any, Any]] = [
        (torch._C._is_tracing, False),
        (torch._C._are_functorch_transforms_active, False),
        (torch._C._len_torch_dispatch_stack, 0),
        (torch._C._len_torch_function_stack, 0),
    ]
    flags: list[tuple[dict[str, Any], str, Any]] = [
        (vars(module), name, idle)
        for module, name, idle in (
            (torch.compiler, "_is_compiling_flag", False),
            (forward_ad, "_current_level", -1),
            (profiler, "_is_profiler_enabled", False),
        )
    ]
    for names, name, _ in flags:
        if name not in names:
            raise AttributeError(name)
    return questions, flags


def _find_native() -> Any:
    """The compiled module, None where it cannot serve."""
    try:
        native: Any = importlib.import_module("erd_cuda._array")
        # Of this very package: an editable install can find another's.
        if Path(native.__file__).parent != Path(__file__).parent:
            return None
        table = Tensor.__dlpack_c_exchange_api__
        grad = torch.is_grad_enabled
        serves = native.use_torch(Tensor, table, Camera, CAMERA_MODELS, grad, *_watchers())
    except (ImportError, AttributeError, TypeError):
        # A torch before the table in its present form; TypeError: it is an integer there.
        return None
    return native if serves else None


_native = _find_native()


def tensor_plan(
    plan: Tensor, weights: Sequence[Tensor], kept: Any, confidence_weights: bool
) -> Any:
    """What `refine_tensors` looks for in ``tensor_plans``; None where it cannot serve.

    Args:
        plan: from the private op ``plan_refine``.
        weights: the tensors that it points into, whose changes end its use.
        kept: what else must live as long.
        confidence_weights: as in `erd_cuda.PackedRegressors`.
    """
    if _native is None:
        return None
    return _native.tensor_plan(plan.data_ptr(), list(weights), kept, confidence_weights)


def refuse(*arguments: Any) -> None:
    """What `refine_tensors` is where there is none."""


#: ``refine_tensors(keypoints, pose, root, camera, weights, confidence, return_stages, precision)``:
#: what `erd_cuda.refine` returns, or None for what this way does not serve. Of the weights it reads
#: ``tensor_plans``, by precision.
refine_tensors: Any = getattr(_native, "refine_tensors", refuse)
