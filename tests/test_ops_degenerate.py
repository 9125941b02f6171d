"""A stated answer where geometry has none, and neighbours that never notice."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from op_calls import ALL_CASES, Case, small_weights
from precision import assert_exact
from torch import Tensor

import erd_cuda
from erd_cuda import RootStatus
from erd_cuda.benchmarks import oracle
from erd_cuda.benchmarks.problems import CAMERA_MODELS, FEATURES, make_network, make_problem, pack

DTYPES = [torch.float32, torch.float64]


def test_min_depth_is_a_millimetre() -> None:
    assert erd_cuda.MIN_DEPTH == oracle.MIN_DEPTH == 1.0


@pytest.mark.parametrize("depth", [-4000.0, -1e-3, -0.0, 0.0, 0.5, 1.0, 1.0 + 1e-6, 2.0], ids=str)
@pytest.mark.parametrize("model", CAMERA_MODELS)
def test_depth_below_the_minimum_is_projected_at_the_minimum(model: str, depth: float) -> None:
    problem = make_problem((1,), joints=2, model=model)
    pose = torch.tensor([[[0.0, 0.0, 0.0], [0.3, -0.2, depth - 3000.0]]], dtype=torch.float64)
    root = torch.tensor([[0.01, 0.02, 3000.0]], dtype=torch.float64)
    pose.requires_grad_()
    pixels = erd_cuda.project(pose, root, problem.camera())
    assert_exact(pixels, oracle.project(pose.detach().numpy(), root.numpy(), *problem.lens))
    pixels.sum().backward()
    assert pose.grad is not None and pose.grad.isfinite().all()
    actual = float((pose[0, 1, 2] + root[0, 2]).detach())
    if actual < 1.0:
        assert pose.grad[0, 1, 2] == 0
    if actual > 1.0:
        assert pose.grad[0, 1, 2] != 0
    assert (pose.grad[0, 1, :2] != 0).all()
    assert pose.grad[0, 0, 2] != 0


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_one_bad_sample_touches_no_other(case: Case, dtype: torch.dtype, poison: float) -> None:
    """Every input in turn, in the middle of a batch: the others bit for bit what they are alone."""
    tensors = case.tensors(make_problem((19,), joints=5, model=case.model), dtype)
    tensors["confidence"] = torch.full((19, 5), 0.75, dtype=dtype)
    weights = small_weights(5, dtype)
    good = [i for i in range(19) if i != 9]
    alone = torch.stack([case(sample(tensors, i), weights) for i in range(19)])
    for name in case.inputs:
        if name in ("std", "confidence"):
            continue
        bad = dict(tensors, **{name: tensors[name].clone()})
        bad[name][9].view(-1)[-1] = poison
        got = case(bad, weights)
        assert torch.equal(got[good], alone[good]), name


def sample(tensors: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    return {name: value if name == "std" else value[index] for name, value in tensors.items()}


@pytest.mark.parametrize("poison", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("name", ["keypoints", "pose", "root", "intrinsics"])
def test_a_bad_value_is_not_hidden(name: str, poison: float) -> None:
    """A NaN that is not declared missing must be seen in the result, not turned into a number."""
    case = Case("residual", "pinhole")
    tensors = case.tensors(make_problem((2,), joints=5))
    tensors["confidence"].fill_(1.0)
    tensors[name][1].view(-1)[0] = poison
    got = case(tensors)
    assert not got[1].isfinite().all()
    assert got[0].isfinite().all()


def degenerate_batch(model: str, dtype: torch.dtype) -> tuple[dict[str, Tensor], list[RootStatus]]:
    """Good samples with one of every degenerate kind between them."""
    case = Case("solve_root", model)
    tensors = case.tensors(make_problem((12,), joints=6, model=model), dtype)
    tensors["confidence"].fill_(0.5)
    keypoints, confidence = tensors["keypoints"], tensors["confidence"]
    expected = [RootStatus.OK] * 12
    confidence[1, 1:] = 0.0
    expected[1] = RootStatus.TOO_FEW_JOINTS
    confidence[2] = -1.0
    expected[2] = RootStatus.TOO_FEW_JOINTS
    confidence[3] = math.nan
    expected[3] = RootStatus.TOO_FEW_JOINTS
    keypoints[5] = torch.tensor([731.3, 212.9], dtype=dtype)
    expected[5] = RootStatus.ONE_IMAGE_POINT
    # Mirroring the image at the principal point puts the best root on the other side of the camera.
    centre = tensors["intrinsics"][6, 2:]
    keypoints[6] = 2 * centre - keypoints[6]
    expected[6] = RootStatus.BEHIND_CAMERA
    keypoints[8, 2, 1] = math.nan
    expected[8] = RootStatus.NOT_FINITE
    tensors["pose"][9, 0, 2] = math.inf
    expected[9] = RootStatus.NOT_FINITE
    # Missing joints may hold anything.
    keypoints[10, 3] = math.nan
    tensors["pose"][10, 3] = math.inf
    confidence[10, 3] = 0.0
    return tensors, expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("model", CAMERA_MODELS)
def test_every_degenerate_root_has_its_status(model: str, dtype: torch.dtype) -> None:
    tensors, expected = degenerate_batch(model, dtype)
    case = Case("solve_root", model)
    root, status = erd_cuda.solve_root(
        tensors["keypoints"],
        tensors["pose"],
        case.camera(tensors),
        tensors["confidence"],
        return_status=True,
    )
    assert [RootStatus(int(s)) for s in status] == expected
    assert root.isfinite().all()
    unsolved = (status != RootStatus.OK) & (status != RootStatus.BEHIND_CAMERA)
    assert (root[unsolved] == 0).all()
    assert root[6, 2] < 0
    for i in range(len(expected)):
        assert torch.equal(root[i], case(sample(tensors, i))), expected[i]

    double = {name: value.double().numpy() for name, value in tensors.items()}
    want, want_status = oracle.solve_root(
        double["keypoints"],
        double["pose"],
        double["intrinsics"],
        double.get("distortion"),
        model,
        double["confidence"],
    )
    np.testing.assert_array_equal(status.numpy(), want_status)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-11
    np.testing.assert_allclose(root.double().numpy(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("model", CAMERA_MODELS)
def test_degenerate_roots_have_zero_gradients(model: str) -> None:
    tensors, expected = degenerate_batch(model, torch.float64)
    case = Case("solve_root", model)
    inputs = {name: value.requires_grad_() for name, value in tensors.items()}
    case(inputs).sum().backward()
    for name, value in inputs.items():
        assert value.grad is not None and value.grad.isfinite().all(), name
        for i, status in enumerate(expected):
            solved = status in (RootStatus.OK, RootStatus.BEHIND_CAMERA)
            assert bool((value.grad[i] != 0).any()) == solved, (name, status)
    assert (inputs["keypoints"].grad[10, 3] == 0).all()  # type: ignore[index]
    assert (inputs["pose"].grad[10, 3] == 0).all()  # type: ignore[index]


@pytest.mark.parametrize("joints", [2, 17, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("model", CAMERA_MODELS)
def test_one_image_point_is_found_wherever_it_lies(
    model: str, dtype: torch.dtype, joints: int
) -> None:
    """Also in the corners of the image and under any weights, where the mean is not exact; and two
    joints half a pixel apart are a problem with a solution.
    """
    problem = make_problem((200,), joints, model)
    rng = np.random.default_rng(1)
    point = torch.from_numpy(rng.uniform(-100, 1100, size=(200, 1, 2))).to(dtype)
    confidence = torch.from_numpy(rng.uniform(0.01, 1.0, size=(200, joints))).to(dtype)
    pose, camera = problem.tensor("pose", dtype), problem.camera(dtype)
    keypoints = point.expand(-1, joints, -1).clone()
    root, status = erd_cuda.solve_root(keypoints, pose, camera, confidence, return_status=True)
    assert (status == RootStatus.ONE_IMAGE_POINT).all()
    assert (root == 0).all()
    keypoints[:, 1] += 0.5
    root, status = erd_cuda.solve_root(keypoints, pose, camera, None, return_status=True)
    assert (status != RootStatus.ONE_IMAGE_POINT).all()
    assert root.isfinite().all()


@pytest.mark.parametrize("scale", [1e-20, 1e20], ids=str)
def test_confidence_of_any_size_is_a_weight(scale: float) -> None:
    """Only ratios of confidences matter to the root, in float32 too."""
    problem = make_problem((8,))
    keypoints, pose, camera = (
        problem.tensor(name, torch.float32) for name in ("keypoints", "pose", "intrinsics")
    )
    confidence = problem.tensor("confidence", torch.float32)
    expected = erd_cuda.solve_root(keypoints, pose, camera, confidence)
    root, status = erd_cuda.solve_root(
        keypoints, pose, camera, confidence * scale, return_status=True
    )
    assert (status == RootStatus.OK).all()
    torch.testing.assert_close(root, expected, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("root_mode", ["solve", "solve_each_stage"])
def test_refine_keeps_the_pose_whose_root_cannot_be_solved(root_mode: str) -> None:
    tensors, expected = degenerate_batch("pinhole", torch.float64)
    tensors["pose"][9, 0, 2] = (
        0.0  # an infinite pose would be kept too, but cannot be compared below
    )
    expected[9] = RootStatus.OK
    case = Case("refine", "pinhole", root_mode)
    weights = small_weights(6)
    pose = tensors["pose"].requires_grad_()
    refined = case(tensors, weights)
    for i, status in enumerate(expected):
        assert torch.equal(refined[i], pose[i]) == (status != RootStatus.OK), status
        finite = (
            refined[i].isfinite().all() if i != 10 else refined[i, [0, 1, 2, 4, 5]].isfinite().all()
        )
        assert finite, status
    good = [i for i, status in enumerate(expected) if status != RootStatus.OK]
    (gradient,) = torch.autograd.grad(refined[good].sum(), pose)
    assert (gradient[good] == 1).all()


@pytest.mark.parametrize("features", FEATURES)
def test_a_missing_joint_has_no_influence_on_refine(features: str) -> None:
    """Whatever a detector writes for a joint it did not see, NaN included."""
    problem = make_problem((6,))
    weights = pack(make_network(17, 2, 32, features=features))
    confidence = torch.ones(6, 17, dtype=torch.float64)
    confidence[:, 4] = 0.0
    keypoints = problem.tensor("keypoints")

    def refined(junk: float) -> Tensor:
        changed = keypoints.clone()
        changed[:, 4] = junk
        changed.requires_grad_()
        result = erd_cuda.refine(
            changed,
            problem.tensor("pose"),
            problem.tensor("root"),
            problem.camera(),
            weights,
            confidence,
        )
        if features != "proj2d":
            (gradient,) = torch.autograd.grad(result.sum(), changed)
            assert gradient.isfinite().all() and (gradient[:, 4] == 0).all()
            assert (gradient[:, 3] != 0).any()
        return result

    expected = refined(0.0)
    assert expected.isfinite().all()
    for junk in (math.nan, math.inf, -1.0):
        assert torch.equal(refined(junk), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_keypoint_that_no_ray_reaches_has_no_root(dtype: torch.dtype) -> None:
    """A barrel lens folds the image over: r (1 - 0.3 r^2) never exceeds 0.703. And where the radial
    polynomial turns back through zero, a solution on the other side of the image is none either.
    """
    pose = torch.tensor([[100.0, 0, 0], [0, 0, 0], [50, 50, 30]], dtype=dtype)
    lenses = {
        0.75: (-0.3, 0.0, 0.0, 0.0, 0.0),
        3.0: (-0.3, 0.0, 0.0, 0.0, 0.0),
        1.0021490: (-0.34972053, 0.33295034, 0.0, 0.0, -0.18383254),
    }
    for radius, coefficients in lenses.items():
        keypoints = torch.tensor([[1000 * radius, 0], [0, 0], [80, 190]], dtype=dtype)
        camera = erd_cuda.Camera(
            torch.tensor([1000.0, 1000.0, 0.0, 0.0], dtype=dtype),
            torch.tensor(coefficients, dtype=dtype),
            "opencv",
        )
        root, status = erd_cuda.solve_root(keypoints, pose, camera, return_status=True)
        assert status == RootStatus.NOT_FINITE, radius
        assert (root == 0).all()


@pytest.mark.parametrize("joints", [2, 17, 128])
@pytest.mark.parametrize("weighted", [False, True])
def test_one_image_point_far_from_the_centre(joints: int, weighted: bool) -> None:
    """However many joints share the point and wherever it lies, rounding is no spread."""
    generator = torch.Generator().manual_seed(joints)
    point = 5000.0 * (2.0 * torch.rand(500, 1, 2, generator=generator) - 1.0)
    pose = 300.0 * torch.randn(500, joints, 3, generator=generator)
    confidence = 0.1 + torch.rand(500, joints, generator=generator) if weighted else None
    _, status = erd_cuda.solve_root(
        point.expand(500, joints, 2),
        pose,
        torch.tensor([1000.0, 1000.0, 0.0, 0.0]),
        confidence,
        return_status=True,
    )
    assert (status == RootStatus.ONE_IMAGE_POINT).all()


@pytest.mark.parametrize("std", [0.0, math.nan])
def test_a_missing_joint_may_have_any_std_and_gradient(std: float) -> None:
    problem = make_problem((3,))
    confidence = torch.ones(3, 17, dtype=torch.float64)
    confidence[:, 0] = 0.0
    scale = torch.full((17, 2), 50.0, dtype=torch.float64)
    scale[0] = std
    inputs = [problem.tensor(n).requires_grad_() for n in ("keypoints", "pose", "root")]
    result = erd_cuda.residual(*inputs, problem.camera(), scale, confidence)
    assert (result[:, 0] == 0).all() and result.isfinite().all()
    incoming = torch.ones_like(result)
    incoming[:, 0] = math.inf
    for gradient in torch.autograd.grad(result, inputs, incoming):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("mode", ["solve", "solve_each_stage"])
@pytest.mark.parametrize("name", ["keypoints", "pose"])
def test_a_sample_without_root_leaves_shared_gradients_alone(mode: str, name: str) -> None:
    problem = make_problem((4,))
    weights = pack(make_network(17, 2, 32))
    tensors = {n: problem.tensor(n) for n in ("keypoints", "pose")}
    good = {n: t[[0, 2, 3]] for n, t in tensors.items()}
    tensors[name][1, 5] = math.nan

    def shared_gradients(inputs: dict[str, Tensor]) -> list[Tensor]:
        camera = problem.tensor("intrinsics")[:1].clone().requires_grad_()
        confidence = torch.ones(17, dtype=torch.float64, requires_grad=True)
        result = erd_cuda.refine(
            inputs["keypoints"], inputs["pose"], mode, camera, weights, confidence
        )
        return list(torch.autograd.grad(result.nansum(), [camera, confidence]))

    for got, expected in zip(shared_gradients(tensors), shared_gradients(good), strict=True):
        torch.testing.assert_close(got, expected)
