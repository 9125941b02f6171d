"""The short way into an operator, for arguments that it can read as they are.

Checking and laying out arguments in Python takes longer than refining a pose. The operators check
sizes, dtypes and devices themselves and read points (N, J, C) beside one camera or one for each
sample, so the common call goes straight to them. What they refuse, arguments that broadcast in
other ways and wrong ones alike, goes the long way, which knows what to say (arguments.py).

Few poses go a shorter way still, past torch's dispatcher (csrc/python/tensor_refine.cpp).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._definitions import CAMERA_MODELS
from ..camera import Camera
from .autograd import must_record

#: Of a pinhole camera.
_NO_DISTORTION = (None, CAMERA_MODELS["pinhole"])


def lens(camera: Any) -> tuple[Any, Any, int]:
    """Intrinsics, distortion and the model's number of a camera or of intrinsics."""
    if isinstance(camera, Camera):
        return camera.intrinsics, camera.distortion, CAMERA_MODELS[camera.model]
    return camera, *_NO_DISTORTION


def can_go(pose: Any, tensors: Sequence[Any], keypoints: Any = None) -> bool:
    """Whether a call may take the short way.

    Args:
        pose: the argument that gives the batch: it must be (N, J, 3).
        tensors: all arguments, None for absent ones.
        keypoints: if there are any, they must be (N, J, 2).
    """
    # In a graph that is being compiled checks cost nothing later, and a shape that is refused would
    # become part of it.
    if torch.compiler.is_compiling():
        return False
    recording = torch.is_grad_enabled()
    for t in tensors:
        # Subclasses (fake tensors, say) have ideas of their own, meta tensors no numbers.
        if t is not None and (
            type(t) is not Tensor or t.is_meta or (recording and t.requires_grad)
        ):
            return False
    return (
        type(pose) is Tensor
        and pose.dim() == 3
        and (keypoints is None or keypoints.dim() == 3)
        and not must_record(())
    )


def go(operator: Any, *arguments: Any) -> Any:
    """The operator's result, or None where it refuses the arguments."""
    try:
        return operator(*arguments)
    except RuntimeError:
        return None
