"""torch.library.opcheck on every raw operator that the library registers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from layouts import LAYOUTS
from op_calls import small_weights
from torch import Tensor

import erd_cuda
from erd_cuda.benchmarks.problems import make_problem

erd_cuda.project  # noqa: B018  loads the library

JOINTS = 3
SLOTS = ("keypoints", "pose", "root", "intrinsics", "distortion", "std", "confidence")
INPUTS = {
    "project": ("pose", "root", "intrinsics", "distortion"),
    "residual": SLOTS,
    "solve_root": ("keypoints", "pose", "intrinsics", "distortion", "confidence"),
    "solve_residual": ("keypoints", "pose", "intrinsics", "distortion", "std", "confidence"),
}
OPENCV = 1
EVERYTHING = (1 << len(SLOTS)) - 1

VARIANTS = ["float32", "float64", "shifted", "every_second", "expanded", "empty"]

#: The dynamic-shape trace takes a second and does not depend on strides: once per operator.
QUICK_CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")

Arguments = tuple[Any, ...]


def rows(variant: str) -> dict[str, Tensor]:
    """All inputs as the operators take them: (N, width)."""
    count = 0 if variant == "empty" else 5
    dtype = torch.float32 if variant == "float32" else torch.float64
    problem = make_problem((count,), JOINTS, "opencv")
    tensors = {name: problem.tensor(name, dtype).flatten(1) for name in SLOTS if name != "std"}
    tensors["std"] = problem.tensor("std", dtype).flatten().expand(count, -1).clone()
    tensors["pixels"] = torch.randn(count, 2 * JOINTS, dtype=dtype)
    if variant == "expanded":
        return {name: value[:1].expand(count, -1) for name, value in tensors.items()}
    return {name: LAYOUTS.get(variant, LAYOUTS["contiguous"])(v) for name, v in tensors.items()}


def forward(name: str) -> Callable[[str], list[Arguments]]:
    def samples(variant: str) -> list[Arguments]:
        inputs = rows(variant)
        full = tuple(inputs[slot] for slot in INPUTS[name])
        optional = ("distortion", "std", "confidence")
        bare = tuple(None if slot in optional else inputs[slot] for slot in INPUTS[name])
        return [(*full, OPENCV), (*bare, 0)]

    return samples


def upstream(name: str, inputs: dict[str, Tensor]) -> Tensor:
    if name == "solve_residual":
        return torch.cat([inputs["pixels"], inputs["root"]], dim=1)
    return inputs["root"] if name == "solve_root" else inputs["pixels"]


def backward(name: str) -> Callable[[str], list[Arguments]]:
    def samples(variant: str) -> list[Arguments]:
        grad = upstream(name, rows(variant))
        full, bare = forward(name)(variant)
        one = 1 << SLOTS.index("pose")
        return [(grad, *full, EVERYTHING), (grad, *bare, EVERYTHING), (grad, *full, one)]

    return samples


def double_backward(name: str) -> Callable[[str], list[Arguments]]:
    def samples(variant: str) -> list[Arguments]:
        full = backward(name)(variant)[0]
        tangents = tuple(full[1:-2])
        only_pose = tuple(
            t if slot == "pose" else None for slot, t in zip(INPUTS[name], tangents, strict=True)
        )
        one = 1 << SLOTS.index("pose")
        return [(*tangents, *full), (*only_pose, *full[:-1], one)]

    return samples


def refine(variant: str) -> list[Arguments]:
    inputs = rows(variant)
    weights = small_weights(JOINTS, inputs["pose"].dtype)
    packed = (
        weights.w_in,
        weights.b_in,
        weights.w_hidden,
        weights.b_hidden,
        weights.w_out,
        weights.b_out,
        weights.mean2d,
        None,
        None,
    )
    plain = (1.0, 0, 0, math.inf)
    names = ("keypoints", "pose", "root", "intrinsics", "distortion", "confidence")
    keypoints, pose, root, intrinsics, distortion, confidence = (inputs[name] for name in names)
    given = (keypoints, pose, root, intrinsics, distortion, confidence)
    solved = (keypoints, pose, None, intrinsics, None, None)
    return [
        (*given, *packed, OPENCV, 0, 0, False, *plain),
        (*solved, *packed, 0, 0, 2, True, 1.0, 0, 0, 30.0),
    ]


SAMPLES: dict[str, Callable[[str], list[Arguments]]] = {"refine": refine}
for geometry_op in INPUTS:
    SAMPLES[geometry_op] = forward(geometry_op)
    SAMPLES[f"{geometry_op}_backward"] = backward(geometry_op)
    SAMPLES[f"{geometry_op}_double_backward"] = double_backward(geometry_op)

#: Registered, but neither a function of tensors nor ever part of a graph.
NOT_TENSOR_OPERATORS = {"build_info", "multiply_adds", "regressor_step_workspace"}

#: Their inputs are no rows of samples, or hold addresses; test_ops_regressor.py,
#: test_training_fused.py and test_ops_direct.py check them.
ELSEWHERE = {
    "plan_refine",
    "refine_planned",
    "regressor_forward",
    "regressor_backward",
    "regressor_step_",
}


def registered() -> set[str]:
    return {
        name.removeprefix("erd_cuda::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("erd_cuda::")
    }


def test_every_registered_operator_has_samples() -> None:
    assert registered() == set(SAMPLES) | NOT_TENSOR_OPERATORS | ELSEWHERE


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_opcheck(name: str, variant: str) -> None:
    operator = getattr(torch.ops.erd_cuda, name).default
    for arguments in SAMPLES[name](variant):
        checks = (
            (*QUICK_CHECKS, "test_aot_dispatch_dynamic") if variant == "float32" else QUICK_CHECKS
        )
        torch.library.opcheck(operator, arguments, test_utils=checks)
