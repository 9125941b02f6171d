"""Which shapes the operators take, and what is said about others; for tensors and arrays alike."""

from __future__ import annotations

import math
import numbers
from typing import Any

from ._definitions import BLOCKS, FEATURES, check_choice

MAX_JOINTS = 128

#: Every quantity the operators may depend on, in the order of the slots in csrc/core/calls.h.
SLOTS = ("keypoints", "pose", "root", "intrinsics", "distortion", "std", "confidence")

EVENT_DIMS = {
    "keypoints": ("J", 2),
    "pose": ("J", 3),
    "root": (3,),
    "intrinsics": (4,),
    "distortion": (5,),
    "std": ("J", 2),
    "confidence": ("J",),
}

OPTIONAL = ("std", "confidence")


def joint_count(pose: Any) -> int:
    """J of a pose (..., J, 3).

    Raises:
        ValueError: another shape, or more joints than the kernels take.
    """
    if pose.ndim < 2 or pose.shape[-1] != 3:
        raise ValueError(f"pose has shape {tuple(pose.shape)}, expected (..., J, 3)")
    joints = pose.shape[-2]
    if not 1 <= joints <= MAX_JOINTS:
        raise ValueError(f"pose has {joints} joints, expected 1 to {MAX_JOINTS}")
    return joints


def batch_of(name: str, value: Any, joints: int) -> tuple[int, ...]:
    """The leading dimensions of the argument ``name``.

    Raises:
        ValueError: the others are not what this argument has for each sample.
    """
    shape = value.shape
    batch_dims = len(shape) - len(EVENT_DIMS[name])
    expected = tuple(joints if size == "J" else size for size in EVENT_DIMS[name])
    if batch_dims < 0 or tuple(shape[batch_dims:]) != expected:
        wanted = ", ".join(["...", *map(str, expected)])
        why = f" because pose has {joints} joints" if "J" in EVENT_DIMS[name] else ""
        raise ValueError(f"{name} has shape {tuple(shape)}, expected ({wanted}){why}")
    return tuple(shape[:batch_dims])


def broadcast(batches: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The batch shape that all arguments' batch shapes broadcast to.

    Raises:
        ValueError: they do not.
    """
    rank = max(len(batch) for batch in batches.values())
    shape = [1] * rank
    for name, batch in batches.items():
        for i, size in enumerate(batch, start=rank - len(batch)):
            if size == shape[i] or size == 1:
                continue
            if shape[i] != 1:
                others = ", ".join(f"{n} {b}" for n, b in batches.items() if n != name)
                raise ValueError(
                    f"{title(name)} has batch shape {batch}, expected one that broadcasts with "
                    f"the others ({others})"
                )
            shape[i] = size
    return tuple(shape)


def title(name: str) -> str:
    """What a message calls the argument ``name``."""
    return f"camera {name}" if name in ("intrinsics", "distortion") else name


def raw_features(features: str, num_joints: int) -> int:
    """Length of a stage's feature vector before PCA."""
    return {"concat": 4, "residual+pose": 5}.get(features, 2) * num_joints


def seen_features(features: str, num_joints: int, components: int | None) -> int:
    """Length of what a stage's regressor sees: PCA makes 2 J coordinates into ``components``."""
    raw = raw_features(features, num_joints)
    if components is None:
        return raw
    reduced = 2 if features == "concat" else 1
    return raw - reduced * (2 * num_joints - components)


def as_limit(residual_limit: Any) -> float:
    """A residual's limit in px as the operators take it, infinity for None.

    Raises:
        ValueError: no positive number.
    """
    if residual_limit is None:
        return math.inf
    if isinstance(residual_limit, bool) or not isinstance(residual_limit, numbers.Real):
        raise ValueError(f"residual_limit is {residual_limit!r}, expected a number of px or None.")
    limit = float(residual_limit)
    if not limit > 0:
        raise ValueError(f"residual_limit is {residual_limit!r}, expected a positive number of px.")
    return limit


def limit_setting(residual_limit: Any) -> float | None:
    """The same as a setting of a model, None for no limit: files hold no infinity."""
    limit = as_limit(residual_limit)
    return limit if math.isfinite(limit) else None


def check_packed(packed: Any) -> None:
    """Checks the words and shapes of packed regressors: tensors' or arrays'.

    Raises:
        ValueError: an unknown word, or shapes that do not fit together.
    """
    check_choice("block", packed.block, BLOCKS)
    check_choice("features", packed.features, FEATURES)
    if not isinstance(packed.residual_limit, float):
        found = packed.residual_limit
        raise ValueError(f"residual_limit is {found!r}, expected a float, infinity for no limit.")
    as_limit(packed.residual_limit)
    if packed.w_in.ndim != 3:
        raise ValueError(f"w_in has shape {tuple(packed.w_in.shape)}, expected (K, H, F).")
    if packed.mean2d.ndim != 2 or packed.mean2d.shape[1] != 2:
        raise ValueError(f"mean2d has shape {tuple(packed.mean2d.shape)}, expected (J, 2).")
    stages, width, _ = packed.w_in.shape
    if stages < 1 or width < 1:
        raise ValueError(
            f"w_in has shape {tuple(packed.w_in.shape)}, expected (K, H, F) with at least one "
            "stage and one unit."
        )
    joints = packed.mean2d.shape[0]
    expected: dict[str, tuple[int, ...] | None] = {
        "w_in": (stages, width, raw_features(packed.features, joints)),
        "b_in": (stages, width),
        "w_out": (stages, 3 * joints, width),
        "b_out": (stages, 3 * joints),
        "w_hidden": (stages, 2, width, width) if packed.block == "relu" else None,
        "b_hidden": (stages, 2, width) if packed.block == "relu" else None,
    }
    for name, shape in expected.items():
        value = getattr(packed, name)
        found = None if value is None else tuple(value.shape)
        if found != shape:
            raise ValueError(
                f"{name} has shape {found}, expected {shape} for block={packed.block!r}, "
                f"features={packed.features!r} and {joints} joints."
            )
