"""residual against the float64 oracle, and what a missing joint means."""

from __future__ import annotations

import pytest
import torch
from precision import assert_as_precise, assert_exact

import erd_cuda
from erd_cuda.benchmarks import oracle, torch_layers
from erd_cuda.benchmarks.problems import CAMERA_MODELS, JOINT_COUNTS, make_problem


@pytest.mark.parametrize("model", CAMERA_MODELS)
@pytest.mark.parametrize("joints", JOINT_COUNTS)
def test_float64_is_exact(joints: int, model: str) -> None:
    problem = make_problem((11,), joints, model)
    got = erd_cuda.residual(
        problem.tensor("keypoints"),
        problem.tensor("pose"),
        problem.tensor("root"),
        problem.camera(),
        problem.tensor("std"),
        problem.tensor("confidence"),
    )
    expected = oracle.residual(
        problem.keypoints,
        problem.pose,
        problem.root,
        *problem.lens,
        std=problem.std,
        confidence=problem.confidence,
    )
    # The subtraction cancels: rounding is that of pixels of order 1000, over a std of order 100.
    assert_exact(got, expected, 1e-13)


@pytest.mark.parametrize("with_std", [False, True], ids=["px", "std"])
@pytest.mark.parametrize("with_confidence", [False, True], ids=["all", "confidence"])
def test_optional_arguments(with_std: bool, with_confidence: bool) -> None:
    problem = make_problem((6,))
    got = erd_cuda.residual(
        problem.tensor("keypoints"),
        problem.tensor("pose"),
        problem.tensor("root"),
        problem.camera(),
        problem.tensor("std") if with_std else None,
        problem.tensor("confidence") if with_confidence else None,
    )
    expected = oracle.residual(
        problem.keypoints,
        problem.pose,
        problem.root,
        problem.intrinsics,
        std=problem.std if with_std else None,
        confidence=problem.confidence if with_confidence else None,
    )
    assert_exact(got, expected, 1e-13)


@pytest.mark.parametrize("model", CAMERA_MODELS)
def test_float32_is_as_precise_as_torch(model: str, device: str) -> None:
    problem = make_problem((500,), model=model).rounded(torch.float32)
    names = ("keypoints", "pose", "root", "std", "confidence")
    tensors = {name: problem.tensor(name, torch.float32) for name in names}
    keypoints, pose, root, std, confidence = (tensors[name].to(device) for name in names)
    camera = problem.camera(torch.float32, device)
    got = erd_cuda.residual(keypoints, pose, root, camera, std, confidence)
    distortion = problem.distortion
    peer = torch_layers.residual(
        tensors["keypoints"],
        tensors["pose"],
        tensors["root"],
        problem.tensor("intrinsics", torch.float32),
        None if distortion is None else problem.tensor("distortion", torch.float32),
        model,
        tensors["std"],
        tensors["confidence"],
    )
    expected = oracle.residual(
        problem.keypoints,
        problem.pose,
        problem.root,
        *problem.lens,
        std=problem.std,
        confidence=problem.confidence,
    )
    assert_as_precise(got, peer, expected)


def test_std_of_every_sample() -> None:
    """std broadcasts like everything else: (J, 2) is only the usual case."""
    problem = make_problem((3,))
    std = problem.std * torch.tensor([1.0, 2.0, 3.0]).numpy()[:, None, None]
    got = erd_cuda.residual(
        problem.tensor("keypoints"),
        problem.tensor("pose"),
        problem.tensor("root"),
        problem.tensor("intrinsics"),
        torch.from_numpy(std),
    )
    expected = oracle.residual(
        problem.keypoints, problem.pose, problem.root, problem.intrinsics, std=std
    )
    assert_exact(got, expected, 1e-13)


def test_batch_axes_broadcast() -> None:
    problem = make_problem((3, 1))
    other = make_problem((1, 5), seed=1)
    got = erd_cuda.residual(
        other.tensor("keypoints"),
        problem.tensor("pose"),
        problem.tensor("root"),
        other.tensor("intrinsics"),
        problem.tensor("std"),
        problem.tensor("confidence"),
    )
    expected = oracle.residual(
        other.keypoints,
        problem.pose,
        problem.root,
        other.intrinsics,
        std=problem.std,
        confidence=problem.confidence,
    )
    assert expected.shape == (3, 5, 17, 2)
    assert_exact(got, expected, 1e-13)


@pytest.mark.parametrize("missing", [0.0, -1.0, float("nan")], ids=str)
@pytest.mark.parametrize("keypoint", [float("nan"), float("inf"), 3.0e38], ids=str)
def test_missing_joint_is_exactly_zero_and_has_no_gradient(missing: float, keypoint: float) -> None:
    problem = make_problem((3,))
    inputs = {
        name: problem.tensor(name, torch.float32)
        for name in ("keypoints", "pose", "root", "intrinsics", "std", "confidence")
    }
    inputs["confidence"].fill_(0.7)
    inputs["confidence"][1, 4] = missing
    inputs["keypoints"][1, 4] = keypoint
    for values in inputs.values():
        values.requires_grad_()
    keypoints, pose, root, camera, std, confidence = inputs.values()
    got = erd_cuda.residual(keypoints, pose, root, camera, std, confidence)
    assert (got[1, 4] == 0).all()
    assert (got[1, 3] != 0).all() and got.isfinite().all()
    got.square().sum().backward()
    for name, values in inputs.items():
        assert values.grad is not None and values.grad.isfinite().all(), name
    for name in ("keypoints", "pose", "confidence"):
        assert (inputs[name].grad[1, 4] == 0).all(), name  # type: ignore[index]
        assert (inputs[name].grad[1, 3] != 0).any(), name  # type: ignore[index]
