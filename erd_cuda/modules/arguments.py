"""Checks of arguments that several modules share; every message names the argument."""

from __future__ import annotations

import torch
from torch import Tensor

from erd_cuda._definitions import ROOTS, check_choice


def check_count(name: str, value: object, least: int = 1) -> None:
    """Raise ValueError unless ``value`` is an int of at least ``least``."""
    # bool is an int, but blocks=True is a slip and not a count.
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is {value!r}, expected an integer of at least {least}.")


def check_dropout(value: object) -> None:
    """Raise ValueError unless ``value`` is a probability below 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value < 1.0:
        raise ValueError(f"dropout is {value!r}, expected a number from 0 to below 1.")


def check_joints(name: str, value: Tensor, num_joints: int, coordinates: int) -> None:
    """Raise TypeError or ValueError unless ``value`` is a float tensor (..., J, coordinates)."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} is a {type(value).__name__}, expected a tensor (..., {num_joints}, "
            f"{coordinates})."
        )
    if value.dim() < 2 or value.shape[-2] != num_joints or value.shape[-1] != coordinates:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, expected (..., {num_joints}, {coordinates})."
        )
    if not value.is_floating_point():
        raise TypeError(f"{name} is {value.dtype}, expected a floating point tensor.")


def as_keypoints(keypoints: Tensor, mean2d: Tensor) -> Tensor:
    """Keypoints (..., J, 2) in the model's precision, which 16 bits under autocast are raised to.

    Raises:
        TypeError: no tensor, or of another dtype than ``mean2d`` (J, 2).
        ValueError: another shape.
    """
    check_joints("keypoints", keypoints, mean2d.shape[0], 2)
    dtype = mean2d.dtype
    if mean2d.element_size() == 2:
        raise TypeError(
            f"the model is {dtype}, expected float32 or float64: pixels do not fit into 16 bits; "
            "call .float(), or use torch.autocast."
        )
    if keypoints.dtype == dtype:
        return keypoints
    if keypoints.element_size() == 2 and torch.is_autocast_enabled(keypoints.device.type):
        return keypoints.to(dtype)
    raise TypeError(f"keypoints is {keypoints.dtype}, expected {dtype} like the model.")


def check_confidence(confidence: Tensor | None, num_joints: int) -> None:
    """Raises TypeError or ValueError unless confidence is None or a tensor (..., J)."""
    if confidence is None:
        return
    if not isinstance(confidence, Tensor):
        raise TypeError(
            f"confidence is a {type(confidence).__name__}, expected a tensor (..., {num_joints})."
        )
    if not confidence.is_floating_point():
        raise TypeError(
            f"confidence is {confidence.dtype}, expected floating point numbers: 1 for a joint "
            "that was seen, 0 for a missing one."
        )
    if confidence.ndim < 1 or confidence.shape[-1] != num_joints:
        raise ValueError(
            f"confidence has shape {tuple(confidence.shape)}, expected (..., {num_joints})."
        )


def as_bone_length(value: Tensor | float, pose: Tensor) -> Tensor:
    """A person's total bone length (...) in mm in the dtype and on the device of ``pose``.

    Raises:
        TypeError: neither a number nor a floating point tensor.
        ValueError: batch dimensions that do not broadcast with those of ``pose`` (..., J, 3).
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return pose.new_tensor(float(value))
    if not isinstance(value, Tensor) or not value.is_floating_point():
        found = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(
            f"bone_length is {found}, expected a number or floating point tensor in mm."
        )
    batch = pose.shape[:-2]
    try:
        torch.broadcast_shapes(value.shape, batch)
    except RuntimeError:
        raise ValueError(
            f"bone_length has shape {tuple(value.shape)}, expected one that broadcasts with the "
            f"poses' batch {tuple(batch)}."
        ) from None
    return value.to(pose)


def as_root(root: Tensor | str | None, own: str, keypoints: Tensor) -> Tensor | str:
    """A call's root, or in its place the model's ``own`` word: a tensor, or a way to solve for it.

    Raises:
        TypeError: neither tensor nor word.
        ValueError: more dimensions than the keypoints' batch, an unknown word, or "given" where
            nothing was given.
    """
    if isinstance(root, Tensor):
        # (N, 1, 3) beside N poses would broadcast to N x N of them.
        if 2 < keypoints.ndim <= root.ndim:
            raise ValueError(
                f"root has shape {tuple(root.shape)}, expected (..., 3) with the batch dimensions "
                f"of keypoints, which has shape {tuple(keypoints.shape)}."
            )
        return root
    if root is None:
        root = own
    if not isinstance(root, str):
        raise TypeError(f"root is a {type(root).__name__}, expected a tensor (..., 3) in mm.")
    check_choice("root", root, ROOTS)
    if root == "given":
        raise ValueError(
            "root is missing, expected a tensor (..., 3) in mm or root='solve', because this model "
            "was built with root='given'."
        )
    return root
