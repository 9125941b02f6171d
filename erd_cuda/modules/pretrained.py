"""From a model to its file and back."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

from erd_cuda.modules.checkpoint import find_model, fit_tensors, read_model, write_model
from erd_cuda.modules.lifter import Lifter
from erd_cuda.modules.lifters import LIFTER_CLASSES, is_known_lifter

if TYPE_CHECKING:
    from erd_cuda.data.skeleton import Skeleton
    from erd_cuda.modules.erd import ERD


def save_erd(erd: ERD, path: str | os.PathLike[str], *, half: bool, include_lifter: bool) -> None:
    """What `ERD.save` does."""
    lifter = erd.lifter if include_lifter else None
    kind = type(lifter).__name__
    if lifter is not None and not (isinstance(lifter, Lifter) and is_known_lifter(lifter)):
        raise TypeError(
            f"the lifter is a {kind}, which cannot be rebuilt from a file; save with "
            f"include_lifter=False, and set the loaded model's lifter or pass pose=."
        )
    tensors = {
        name: tensor
        for name, tensor in erd.state_dict().items()
        if lifter is not None or not name.startswith("lifter.")
    }
    description = {
        "config": erd.config(),
        "lifter": None if lifter is None else {"class": kind, "config": lifter.config()},
        "skeleton": None if erd.skeleton is None else erd.skeleton.to_dict(),
        "notes": erd.notes,
    }
    matrices = {name for name, weight in erd.named_parameters() if weight.dim() >= 2}
    write_model(path, tensors, description, halved=matrices if half else ())


def load_erd(kind: type[ERD], name: str | os.PathLike[str], device: torch.device | str) -> ERD:
    """What `ERD.from_pretrained` does."""
    path = find_model(name)
    description, tensors = read_model(path)
    try:
        # On meta nothing is allocated or drawn from the random generator.
        with torch.device("meta"):
            erd = kind(
                lifter=_lifter(description["lifter"]),
                skeleton=_skeleton(description["skeleton"]),
                **description["config"],
            )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} describes a model that cannot be built: {error}") from error
    erd.load_state_dict(fit_tensors(path, tensors, erd.state_dict()), assign=True)
    erd.notes = description["notes"]
    return erd.to(device).eval()


def _lifter(description: dict[str, Any] | None) -> Lifter | None:
    if description is None:
        return None
    kind = LIFTER_CLASSES.get(description["class"])
    if kind is None:
        raise ValueError(f"there is no lifter {description['class']!r}, only {[*LIFTER_CLASSES]}.")
    return kind(**description["config"])


def _skeleton(description: dict[str, Any] | None) -> Skeleton | None:
    if description is None:
        return None
    from erd_cuda.data.skeleton import Skeleton

    return Skeleton.from_dict(description)
