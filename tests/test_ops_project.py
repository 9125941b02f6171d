"""project against the float64 oracle: every camera model, joint count, dtype and batch shape."""

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
    pixels = erd_cuda.project(problem.tensor("pose"), problem.tensor("root"), problem.camera())
    assert_exact(pixels, oracle.project(problem.pose, problem.root, *problem.lens), 1e-14)


@pytest.mark.parametrize("model", CAMERA_MODELS)
def test_float32_is_as_precise_as_torch(model: str, device: str) -> None:
    problem = make_problem((500,), model=model).rounded(torch.float32)
    pose, root = (problem.tensor(name, torch.float32, device) for name in ("pose", "root"))
    pixels = erd_cuda.project(pose, root, problem.camera(torch.float32, device))
    expected = oracle.project(problem.pose, problem.root, *problem.lens)
    lens = [problem.tensor("intrinsics", torch.float32)]
    if problem.distortion is not None:
        lens.append(problem.tensor("distortion", torch.float32))
    peer = torch_layers.project(pose.cpu(), root.cpu(), *lens, model=model)
    assert_as_precise(pixels, peer, expected)


@pytest.mark.parametrize("batch", [(), (0,), (1,), (7,), (2, 3), (2, 0, 3), (2, 1, 2, 2)], ids=str)
@pytest.mark.parametrize("model", CAMERA_MODELS)
def test_any_batch_shape(batch: tuple[int, ...], model: str) -> None:
    problem = make_problem(batch, model=model)
    pixels = erd_cuda.project(problem.tensor("pose"), problem.tensor("root"), problem.camera())
    assert_exact(pixels, oracle.project(problem.pose, problem.root, *problem.lens), 1e-14)


@pytest.mark.parametrize("model", CAMERA_MODELS)
def test_one_camera_for_all_samples(model: str) -> None:
    problem = make_problem((5,), model=model, camera_batch=())
    pixels = erd_cuda.project(problem.tensor("pose"), problem.tensor("root"), problem.camera())
    assert_exact(pixels, oracle.project(problem.pose, problem.root, *problem.lens), 1e-14)


def test_batch_axes_broadcast() -> None:
    """Three poses under five cameras: every pair of them."""
    problem = make_problem((3, 1))
    cameras = make_problem((1, 5), seed=1)
    pixels = erd_cuda.project(
        problem.tensor("pose"), cameras.tensor("root"), cameras.tensor("intrinsics")
    )
    expected = oracle.project(problem.pose, cameras.root, cameras.intrinsics)
    assert expected.shape == (3, 5, 17, 2)
    assert_exact(pixels, expected, 1e-14)


def test_intrinsics_and_distortion_broadcast_against_each_other() -> None:
    """One lens, many sensors (and the other way round) is one camera with a batch."""
    problem = make_problem((5,), model="opencv")
    assert problem.distortion is not None
    intrinsics, distortion = problem.tensor("intrinsics"), problem.tensor("distortion")
    for sensor, lens in ((intrinsics, distortion[0]), (intrinsics[0], distortion)):
        pixels = erd_cuda.project(
            problem.tensor("pose"),
            problem.tensor("root"),
            erd_cuda.Camera(sensor, lens, "opencv"),
        )
        expected = oracle.project(
            problem.pose, problem.root, sensor.numpy(), lens.numpy(), "opencv"
        )
        assert_exact(pixels, expected, 1e-14)


def test_pinhole_camera_object_and_plain_tensor_are_the_same() -> None:
    problem = make_problem()
    pose, root, intrinsics = (problem.tensor(n) for n in ("pose", "root", "intrinsics"))
    plain = erd_cuda.project(pose, root, intrinsics)
    assert torch.equal(erd_cuda.project(pose, root, erd_cuda.Camera.pinhole(intrinsics)), plain)
