"""solve_residual against solve_root and residual one after the other, values and gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from op_calls import Case
from precision import assert_exact, relative_error
from torch import Tensor

import erd_cuda
from erd_cuda import RootStatus
from erd_cuda.benchmarks import oracle
from erd_cuda.benchmarks.problems import CAMERA_MODELS, JOINT_COUNTS, make_problem


@pytest.mark.parametrize("given", ["both", "std", "confidence", "neither"])
@pytest.mark.parametrize("model", CAMERA_MODELS)
@pytest.mark.parametrize("joints", [count for count in JOINT_COUNTS if count > 1])
def test_float64_is_exact(joints: int, model: str, given: str) -> None:
    problem = make_problem((9,), joints, model)
    std = problem.std if given in ("both", "std") else None
    confidence = problem.confidence if given in ("both", "confidence") else None
    residual, root, status = erd_cuda.solve_residual(
        problem.tensor("keypoints"),
        problem.tensor("pose"),
        problem.camera(),
        None if std is None else problem.tensor("std"),
        None if confidence is None else problem.tensor("confidence"),
        return_status=True,
    )
    expected_root, expected_status = oracle.solve_root(
        problem.keypoints, problem.pose, *problem.lens, confidence=confidence
    )
    expected = oracle.residual(
        problem.keypoints,
        problem.pose,
        expected_root,
        *problem.lens,
        std=std,
        confidence=confidence,
    )
    assert_exact(root, expected_root, 1e-10 if joints == 2 else 1e-12)
    # What is left of a good fit is a small difference of large pixels.
    np.testing.assert_allclose(residual.numpy(), expected, rtol=1e-9, atol=1e-7)
    np.testing.assert_array_equal(status.numpy(), expected_status)
    assert status.dtype == torch.int32


@pytest.mark.parametrize("model", CAMERA_MODELS)
def test_float32_is_as_precise_as_the_two_ops(model: str, device: str) -> None:
    problem = make_problem((400,), model=model).rounded(torch.float32)
    keypoints, pose, std, confidence = (
        problem.tensor(name, torch.float32, device)
        for name in ("keypoints", "pose", "std", "confidence")
    )
    camera = problem.camera(torch.float32, device)
    residual, root = erd_cuda.solve_residual(keypoints, pose, camera, std, confidence)
    lone_root = erd_cuda.solve_root(keypoints, pose, camera, confidence)
    lone_residual = erd_cuda.residual(keypoints, pose, lone_root, camera, std, confidence)

    weights = problem.confidence
    expected_root, _ = oracle.solve_root(
        problem.keypoints, problem.pose, *problem.lens, confidence=weights
    )
    expected = oracle.residual(
        problem.keypoints,
        problem.pose,
        expected_root,
        *problem.lens,
        std=problem.std,
        confidence=weights,
    )
    assert relative_error(root, expected_root) <= 2 * relative_error(lone_root, expected_root)
    assert relative_error(residual, expected) <= 2 * relative_error(lone_residual, expected)


def derivatives(output: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    """The gradient of a fixed function of the output, and one of second order."""
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    leaves = list(inputs.values())
    first = torch.autograd.grad((output * weights).sum(), leaves, create_graph=True)
    scale = sum((g / g.detach().norm().clamp(min=1e-30)).sum() for g in first)
    assert isinstance(scale, Tensor)
    second = torch.autograd.grad(scale, leaves, allow_unused=True)
    return [*first, *(torch.zeros(()) if g is None else g for g in second)]


@pytest.mark.parametrize("model", CAMERA_MODELS)
def test_gradients_are_those_of_the_two_ops(model: str) -> None:
    """Samples without a root among them: nothing passes through it, and no NaN comes out."""
    case = Case("solve_residual", model)
    tensors = case.tensors(make_problem((6,), joints=5, model=model))
    tensors["confidence"].clamp_(min=0.2)
    tensors["confidence"][1, 1:] = 0.0
    tensors["confidence"][2, 3] = math.nan
    tensors["keypoints"][2, 3] = math.nan
    tensors["keypoints"][4] = tensors["keypoints"][4, :1].clone()
    inputs = {name: value.requires_grad_() for name, value in tensors.items()}
    camera = case.camera(inputs)

    root = erd_cuda.solve_root(inputs["keypoints"], inputs["pose"], camera, inputs["confidence"])
    residual = erd_cuda.residual(
        inputs["keypoints"], inputs["pose"], root, camera, inputs["std"], inputs["confidence"]
    )
    expected = torch.cat([residual.flatten(1), root], dim=1)
    got = case(inputs)
    assert torch.allclose(got, expected, rtol=1e-10, atol=1e-8)
    for a, b in zip(derivatives(got, inputs), derivatives(expected, inputs), strict=True):
        assert a.isfinite().all()
        assert float((a - b).detach().norm()) <= 1e-9 * float(b.detach().norm())


def test_an_unsolved_sample_says_why_and_keeps_to_itself() -> None:
    problem = make_problem((4,), joints=5)
    keypoints, pose = problem.tensor("keypoints"), problem.tensor("pose")
    clean, clean_root = erd_cuda.solve_residual(keypoints, pose, problem.camera())
    keypoints[2, 0, 0] = math.nan
    residual, root, status = erd_cuda.solve_residual(
        keypoints, pose, problem.camera(), return_status=True
    )
    assert status.tolist() == [RootStatus.OK, RootStatus.OK, RootStatus.NOT_FINITE, RootStatus.OK]
    others = [0, 1, 3]
    assert torch.equal(residual[others], clean[others])
    assert torch.equal(root[others], clean_root[others])
    assert (root[2] == 0).all()
    lone = erd_cuda.residual(keypoints, pose, root, problem.camera())
    assert torch.equal(residual[2].nan_to_num(), lone[2].nan_to_num())


@pytest.mark.parametrize("batch", [(), (0,), (1,), (2, 3), (2, 0, 3)], ids=str)
def test_any_batch_shape(batch: tuple[int, ...]) -> None:
    problem = make_problem(batch)
    residual, root, status = erd_cuda.solve_residual(
        problem.tensor("keypoints"), problem.tensor("pose"), problem.camera(), return_status=True
    )
    assert tuple(residual.shape) == (*batch, 17, 2)
    assert tuple(root.shape) == (*batch, 3)
    assert tuple(status.shape) == batch
