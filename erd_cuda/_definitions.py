"""What the kernels' numbers and words mean, for every front end; needs neither torch nor NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Final

#: Joints nearer to the camera plane than this (mm), or behind it, are projected as if they were at
#: this depth (csrc/core/projection.h).
MIN_DEPTH: Final = 1.0

#: Number of each camera model in the compiled operators (csrc/core/camera.h).
CAMERA_MODELS: Final = {"pinhole": 0, "opencv": 1, "h36m": 2}

# A regressor's options, in the order of their numbers in csrc/core/calls.h.
BLOCKS: Final = ("linear", "relu")
FEATURES: Final = ("residual", "concat", "init2d", "proj2d", "residual+pose")
ROOTS: Final = ("given", "solve", "solve_each_stage")

#: The lifting networks that training can begin with: width and number of residual blocks of each.
LIFTER_SIZES: Final = {
    "martinez": (1024, 2),
    "lcn": (64, 3),
    "semgcn": (128, 4),
    "semgcn-nonlocal": (128, 4),
}


class RootStatus(IntEnum):
    """Why a sample's root could not be solved for (csrc/core/root_solve.h)."""

    OK = 0
    #: Fewer than two joints have a positive confidence.
    TOO_FEW_JOINTS = 1
    #: All usable joints lie at one image point, so no depth explains them better than another.
    ONE_IMAGE_POINT = 2
    #: The best root lies behind the camera.
    BEHIND_CAMERA = 3
    #: A usable joint's keypoint or position is NaN or infinite, or its keypoint lies where the
    #: camera's distortion cannot be undone.
    NOT_FINITE = 4


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        choices = ", ".join(repr(choice) for choice in allowed)
        raise ValueError(f"{name} is {value!r}, expected one of {choices}.")
