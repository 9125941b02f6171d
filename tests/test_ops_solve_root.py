"""solve_root against SVD least squares in float64, its status, and its float32 precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from precision import assert_exact, relative_error

import erd_cuda
from erd_cuda.benchmarks import oracle
from erd_cuda.benchmarks.problems import CAMERA_MODELS, JOINT_COUNTS, make_problem


@pytest.mark.parametrize("weighted", [False, True], ids=["all", "confidence"])
@pytest.mark.parametrize("model", CAMERA_MODELS)
@pytest.mark.parametrize("joints", [count for count in JOINT_COUNTS if count > 1])
def test_float64_is_exact(joints: int, model: str, weighted: bool) -> None:
    problem = make_problem((9,), joints, model)
    root, status = erd_cuda.solve_root(
        problem.tensor("keypoints"),
        problem.tensor("pose"),
        problem.camera(),
        problem.tensor("confidence") if weighted else None,
        return_status=True,
    )
    expected, expected_status = oracle.solve_root(
        problem.keypoints,
        problem.pose,
        *problem.lens,
        confidence=problem.confidence if weighted else None,
    )
    assert_exact(root, expected, 1e-10 if joints == 2 else 1e-12)
    np.testing.assert_array_equal(status.numpy(), expected_status)
    assert status.dtype == torch.int32


def test_one_joint_is_too_few() -> None:
    problem = make_problem((3,), joints=1)
    root, status = erd_cuda.solve_root(
        problem.tensor("keypoints"), problem.tensor("pose"), problem.camera(), return_status=True
    )
    assert (root == 0).all()
    assert (status == erd_cuda.RootStatus.TOO_FEW_JOINTS).all()


@pytest.mark.parametrize("model", CAMERA_MODELS)
def test_float32_is_as_precise_as_torch(model: str, device: str) -> None:
    """Against torch.linalg.lstsq of the same rows in float32, undistorted for it in float64."""
    problem = make_problem((400,), model=model).rounded(torch.float32)
    expected, _ = oracle.solve_root(problem.keypoints, problem.pose, *problem.lens)
    root = erd_cuda.solve_root(
        problem.tensor("keypoints", torch.float32, device),
        problem.tensor("pose", torch.float32, device),
        problem.camera(torch.float32, device),
    )

    focal, centre = problem.intrinsics[:, None, :2], problem.intrinsics[:, None, 2:]
    image = (problem.keypoints - centre) / focal
    if problem.distortion is not None:
        lens = np.broadcast_to(problem.distortion[:, None], (*image.shape[:-1], 5))
        image = oracle.undistort(image, lens, model)
    u, f, p = (torch.from_numpy(v).float() for v in (image, focal, problem.pose))
    eye = torch.eye(2).expand(*u.shape[:-1], 2, 2)
    rows = torch.cat([eye, -u[..., None]], dim=-1) * f[..., None]
    right = (u * p[..., 2:] - p[..., :2]) * f
    peer = torch.linalg.lstsq(rows.flatten(1, 2), right.flatten(1)[..., None]).solution[..., 0]
    assert relative_error(root, expected) <= 2 * relative_error(peer, expected)


def test_weights_are_pixels_and_confidence() -> None:
    """The minimiser depends on fx against fy and on the confidence: neither may be dropped."""
    problem = make_problem((4,))
    keypoints, pose = problem.tensor("keypoints"), problem.tensor("pose")
    confidence = problem.tensor("confidence")
    stretched = problem.intrinsics * np.array([1.0, 3.0, 1.0, 1.0])
    expected, _ = oracle.solve_root(problem.keypoints, problem.pose, stretched)
    assert_exact(erd_cuda.solve_root(keypoints, pose, torch.from_numpy(stretched)), expected)

    camera = problem.camera()
    half = erd_cuda.solve_root(keypoints, pose, camera, 0.5 * confidence)
    assert_exact(half, erd_cuda.solve_root(keypoints, pose, camera, confidence).numpy())
    unweighted = erd_cuda.solve_root(keypoints, pose, camera, (confidence > 0).double())
    assert (unweighted - half).abs().max() > 1.0


@pytest.mark.parametrize("batch", [(), (0,), (1,), (2, 3), (2, 0, 3)], ids=str)
def test_any_batch_shape(batch: tuple[int, ...]) -> None:
    problem = make_problem(batch)
    root, status = erd_cuda.solve_root(
        problem.tensor("keypoints"), problem.tensor("pose"), problem.camera(), return_status=True
    )
    assert tuple(status.shape) == batch
    assert_exact(root, oracle.solve_root(problem.keypoints, problem.pose, *problem.lens)[0])


def test_batch_axes_broadcast() -> None:
    problem = make_problem((3, 1))
    other = make_problem((1, 5), seed=1)
    root, status = erd_cuda.solve_root(
        other.tensor("keypoints"),
        problem.tensor("pose"),
        other.tensor("intrinsics"),
        problem.tensor("confidence"),
        return_status=True,
    )
    expected, expected_status = oracle.solve_root(
        other.keypoints, problem.pose, other.intrinsics, confidence=problem.confidence
    )
    assert expected.shape == (3, 5, 3)
    assert_exact(root, expected)
    np.testing.assert_array_equal(status.numpy(), expected_status)


@pytest.mark.parametrize("model", ["opencv", "h36m"])
def test_root_of_noiseless_keypoints_is_the_true_root(model: str) -> None:
    """Undistortion inside the solve undoes the distortion of project."""
    problem = make_problem((16,), model=model)
    camera = problem.camera()
    keypoints = erd_cuda.project(problem.tensor("pose"), problem.tensor("root"), camera)
    root = erd_cuda.solve_root(keypoints, problem.tensor("pose"), camera)
    assert_exact(root, problem.root, 1e-11)


def test_status_only_on_request() -> None:
    problem = make_problem((2,))
    root = erd_cuda.solve_root(
        problem.tensor("keypoints"), problem.tensor("pose"), problem.camera()
    )
    assert isinstance(root, torch.Tensor) and tuple(root.shape) == (2, 3)


def test_status_names() -> None:
    expected = ["OK", "TOO_FEW_JOINTS", "ONE_IMAGE_POINT", "BEHIND_CAMERA", "NOT_FINITE"]
    assert [status.name for status in sorted(erd_cuda.RootStatus)] == expected
    assert [int(status) for status in sorted(erd_cuda.RootStatus)] == [0, 1, 2, 3, 4]
