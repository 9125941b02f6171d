"""refine in bf16 on the CPU: against float64 that rounds where the kernel does, and bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from erd_models import inputs_of, make_erd
from kernel_checks import check_bad_samples
from rounded_network import features_of, increment_of
from torch import Tensor

import erd_cuda
from erd_cuda import PackedRegressors
from erd_cuda._fragments import PRECISIONS
from erd_cuda._library import operators
from erd_cuda.benchmarks.problems import FEATURES, Problem, make_network, make_problem, pack

NAMES = ("keypoints", "pose", "root", "intrinsics")


def problem_of(count: int, joints: int = 17, model: str = "pinhole") -> Problem:
    return make_problem((count,), joints, model).rounded(torch.float32)


def weights_of(
    block: str = "linear", features: str = "residual", joints: int = 17, width: int = 41
) -> PackedRegressors:
    return pack(make_network(joints, 3, width, block, features), torch.float32)


def refine(
    problem: Problem,
    weights: PackedRegressors,
    root_mode: str = "given",
    with_confidence: bool = False,
    **options: Any,
) -> Tensor:
    keypoints, pose, root, _ = (problem.tensor(name, torch.float32) for name in NAMES)
    return erd_cuda.refine(
        keypoints,
        pose,
        root if root_mode == "given" else root_mode,
        problem.camera(torch.float32),
        weights,
        problem.tensor("confidence", torch.float32) if with_confidence else None,
        precision=options.pop("precision", "bf16"),
        **options,
    )


# ---- against float64 -----------------------------------------------------------------------------


def check_stages(
    problem: Problem, weights: PackedRegressors, with_confidence: bool = False
) -> None:
    """Every stage from the pose that the kernel gave it.

    The float32 numbers that are rounded differ from float64's, so now and then one falls to the
    other side: many poses have no such number, and the others' errors are those of one or two.
    """
    got = refine(problem, weights, with_confidence=with_confidence, return_stages=True)
    weight = problem.confidence if with_confidence else None
    for k in range(weights.stages):
        after = got[k].double().numpy()
        step = increment_of(weights, k, features_of(weights, problem, weight))
        step = step.reshape(problem.pose.shape)
        error = np.linalg.norm(after - problem.pose - step, axis=(1, 2))
        error /= np.linalg.norm(step, axis=(1, 2))
        assert np.quantile(error, 0.25) < 1e-5 and error.max() < 1e-2, (k, np.sort(error))
        problem = replace(problem, pose=after)


@pytest.mark.parametrize("count", [5, 61])
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("block", ["linear", "relu"])
def test_every_stage_is_the_rounded_network(block: str, features: str, count: int) -> None:
    for with_confidence in (False, True):
        check_stages(problem_of(count), weights_of(block, features), with_confidence)


@pytest.mark.parametrize("width", [1, 7, 64, 300])
@pytest.mark.parametrize("block", ["linear", "relu"])
def test_any_width(block: str, width: int) -> None:
    for count in (6, 21):
        check_stages(problem_of(count), weights_of(block, width=width))


@pytest.mark.parametrize("features", ["residual", "residual+pose"])
@pytest.mark.parametrize("joints", [1, 2, 3, 14, 16, 19, 31, 32, 128])
def test_any_number_of_joints(joints: int, features: str) -> None:
    """ "residual+pose" has an odd number of inputs where there is an odd number of joints."""
    for count in (6, 21):
        check_stages(problem_of(count, joints), weights_of("relu", features, joints, 24))


@pytest.mark.parametrize("model", ["opencv", "h36m"])
def test_other_cameras(model: str) -> None:
    check_stages(problem_of(33, model=model), weights_of())


@pytest.mark.parametrize("root_mode", ["solve", "solve_each_stage"])
def test_solved_roots(root_mode: str) -> None:
    """The same root as in float32, where both start from the same pose."""
    problem = problem_of(33)
    weights = pack(make_network(17, 1, 41), torch.float32)
    pose = problem.tensor("pose", torch.float32)
    root = erd_cuda.solve_root(
        problem.tensor("keypoints", torch.float32), pose, problem.camera(torch.float32)
    )
    given = refine(replace(problem, root=root.double().numpy()), weights) - pose
    solved = refine(problem, weights, root_mode) - pose
    assert (solved - given).norm() < 5e-3 * given.norm()


def test_rounds_to_nearest_and_ties_to_even() -> None:
    """Units that pass the 2D through show the numbers that are multiplied."""
    joints = 8
    bits = torch.arange(-400, 400) * 0x4000 + 0x3F800000  # a quarter of them are ties
    values = torch.cat([bits.int().view(torch.float32), torch.rand(16 * 27) * 1e4])
    keypoints = values.view(-1, joints, 2)
    weights = PackedRegressors(
        block="linear",
        features="init2d",
        w_in=torch.eye(16)[None],
        b_in=torch.zeros(1, 16),
        w_out=torch.eye(24, 16)[None],
        b_out=torch.zeros(1, 24),
        mean2d=torch.zeros(joints, 2),
    )
    pose, root = torch.zeros(len(keypoints), joints, 3), torch.tensor([0.0, 0.0, 4000.0])
    camera = torch.tensor([1000.0, 1000.0, 500.0, 500.0])
    expected = keypoints.bfloat16().float().flatten(1)
    assert not torch.equal(expected, keypoints.flatten(1))
    for count in (4, len(keypoints)):
        got = erd_cuda.refine(
            keypoints[:count], pose[:count], root, camera, weights, precision="bf16"
        )
        assert torch.equal(got.flatten(1)[:, :16], expected[:count])
    # Rounded like a number, a NaN of ones would become zero.
    keypoints[:, 0, 0] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    for count in (4, len(keypoints)):
        got = erd_cuda.refine(
            keypoints[:count], pose[:count], root, camera, weights, precision="bf16"
        )
        assert got.isnan().all()


def test_padding_stays_out_of_an_odd_width() -> None:
    """Zero times infinity is NaN, and the only unit has a partner that does not exist."""
    weights = PackedRegressors(
        block="relu",
        features="init2d",
        w_in=torch.ones(1, 1, 4),
        b_in=torch.zeros(1, 1),
        w_out=torch.ones(1, 6, 1),
        b_out=torch.zeros(1, 6),
        mean2d=torch.zeros(2, 2),
        w_hidden=torch.ones(1, 2, 1, 1),
        b_hidden=torch.zeros(1, 2, 1),
    )
    keypoints = torch.full((40, 2, 2), torch.inf)
    camera, root = torch.tensor([1000.0, 1000.0, 500.0, 500.0]), torch.tensor([0.0, 0.0, 4000.0])
    for count in (1, 4, 40):
        pose = torch.zeros(count, 2, 3)
        got = erd_cuda.refine(keypoints[:count], pose, root, camera, weights, precision="bf16")
        assert got.isposinf().all()


# ---- bit for bit ---------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 40, 41])
@pytest.mark.parametrize("block", ["linear", "relu"])
@pytest.mark.parametrize(
    ("features", "joints", "model"),
    [
        ("residual", 17, "pinhole"),
        ("residual", 34, "h36m"),
        ("residual+pose", 5, "opencv"),
        ("residual+pose", 1, "pinhole"),
    ],
)
@pytest.mark.parametrize("root_mode", ["given", "solve_each_stage"])
def test_a_pose_is_refined_alike_in_any_batch(
    root_mode: str, features: str, joints: int, model: str, block: str, width: int
) -> None:
    """A single pose has its joints in the lanes, few ones the outputs, many ones the poses."""
    weights = weights_of(block, features, joints, width)
    problem = problem_of(130, joints, model)
    problem.keypoints[2] = np.nan
    problem.keypoints[4, 0] = np.inf
    options: dict[str, Any] = {"with_confidence": width == 40, "return_stages": True}
    many = refine(problem, weights, root_mode, **options)

    def part(first: int, count: int) -> Tensor:
        names = ["keypoints", "pose", "root", "intrinsics", "confidence"]
        names += ["distortion"] if problem.distortion is not None else []
        rows = {name: getattr(problem, name)[first : first + count] for name in names}
        return refine(replace(problem, **rows), weights, root_mode, **options)

    assert many[:, 5:].isfinite().all()
    for count in (*range(1, 10), 17, 48, 100):
        for first in (0, 2, 3, 4, 130 - count):
            want = many[:, first : first + count]
            torch.testing.assert_close(part(first, count), want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_single_pose_among_other_columns(precision: str) -> None:
    weights = weights_of()
    problem = problem_of(1)
    camera = problem.camera(torch.float32)
    keypoints, pose, root = (problem.tensor(name, torch.float32) for name in NAMES[:3])
    table = torch.full((1, 17, 7), torch.nan)
    spread = table[..., 1::4], table[..., :6:2], root.repeat_interleave(2, dim=1)[:, ::2]
    spread[0].copy_(keypoints)
    spread[1].copy_(pose)
    assert not any(t.is_contiguous() for t in spread)
    got, want = (
        erd_cuda.refine(*tensors, camera, weights, precision=precision)
        for tensors in (spread, (keypoints, pose, root))
    )
    assert torch.equal(got, want)


@pytest.mark.parametrize("root_mode", ["given", "solve"])
def test_bad_samples_stay_alone(root_mode: str) -> None:
    weights = weights_of("relu")
    check_bad_samples(lambda p: refine(p, weights, root_mode), problem_of(40), root_mode)


def test_the_last_of_all_stages_is_the_result() -> None:
    for count in (2, 50):
        problem, weights = problem_of(count), weights_of()
        stages = refine(problem, weights, return_stages=True)
        assert stages.shape == (3, count, 17, 3)
        assert torch.equal(refine(problem, weights), stages[-1])


@pytest.mark.parametrize("block", ["linear", "relu"])
def test_arrays_are_refined_as_tensors(block: str) -> None:
    array = pytest.importorskip("erd_cuda.array")
    weights = weights_of(block)
    fields = ("w_in", "b_in", "w_out", "b_out", "mean2d", "w_hidden", "b_hidden")
    tensors = {name: getattr(weights, name) for name in fields}
    arrays = {name: None if t is None else t.numpy() for name, t in tensors.items()}
    same = array.Weights(block=weights.block, features=weights.features, **arrays)
    for count in (1, 70):
        problem = problem_of(count)
        inputs = [getattr(problem, name).astype(np.float32) for name in NAMES]
        got = array.refine(*inputs, same, precision="bf16", return_stages=True)
        assert np.array_equal(got, refine(problem, weights, return_stages=True).numpy())


# ---- models and gradients ------------------------------------------------------------------------


def test_a_model_takes_the_precision() -> None:
    erd = make_erd(make_network(), dtype=torch.float32)
    inputs = inputs_of(make_problem((100,)), dtype=torch.float32)
    with torch.no_grad():
        exact = erd(**inputs)
        got = erd(**inputs, precision="bf16")
        difference = (got - exact).norm() / (exact - inputs["pose"]).norm()
        assert 1e-4 < difference < 1.6e-2
        # Not before it is asked for by name, however torch's own layers compute.
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(erd(**inputs), exact)


def test_gradients_are_those_of_float32() -> None:
    problem, weights = problem_of(20), weights_of("relu")
    pose = problem.tensor("pose", torch.float32).requires_grad_()
    keypoints, _, root, camera = (problem.tensor(name, torch.float32) for name in NAMES)
    gradients = []
    for precision in ("bf16", "fp32"):
        refined = erd_cuda.refine(keypoints, pose, root, camera, weights, precision=precision)
        assert torch.equal(refined.detach(), refine(problem, weights, precision=precision))
        gradients += torch.autograd.grad(refined.square().mean(), pose)
    assert (gradients[0] - gradients[1]).norm() < 0.1 * gradients[1].norm()


def test_weights_are_rounded_anew_after_a_change() -> None:
    problem, weights = problem_of(3), weights_of()
    before = refine(problem, weights)
    kept = weights.for_cpu("bf16")
    assert weights.for_cpu("bf16") is kept and weights.for_cpu("fp32") is not kept
    weights.w_out.mul_(1.25)
    changed = refine(problem, weights)
    assert torch.equal(changed, refine(problem, replace(weights)))
    assert not torch.equal(changed, before)


# ---- refusals ------------------------------------------------------------------------------------


def test_precisions_that_a_cpu_does_not_have() -> None:
    problem, weights = problem_of(3), weights_of()
    message = (
        "precision is 'fp16', which needs a pose on a CUDA device; pose is on cpu, which takes"
    )
    with pytest.raises(ValueError, match=message):
        refine(problem, weights, precision="fp16")
    values = [problem.tensor(name) for name in NAMES]
    with pytest.raises(ValueError, match="precision is 'bf16', expected 'auto' for a float64 pose"):
        erd_cuda.refine(*values, weights.to(torch.float64), precision="bf16")
    with pytest.raises(TypeError, match=r"weights have dtype torch\.float64, expected torch"):
        refine(problem, weights.to(torch.float64))
    with pytest.raises(ValueError, match="precision is 'fp16', expected one of 'fp32', 'bf16'"):
        weights.for_cpu("fp16")
    assert weights.to(torch.float64).for_cpu("bf16") is None


def test_the_op_refuses_other_arrangements() -> None:
    weights = weights_of()
    made = weights.for_cpu("bf16")
    assert made is not None
    matrices = (weights.w_in, weights.b_in, None, None, weights.w_out, weights.b_out)

    def plan(columns: Tensor, precision: int) -> None:
        operators.plan_refine(*matrices, weights.mean2d, columns, 0, precision, float("inf"))

    plan(made.weights, PRECISIONS["bf16"])
    size = made.weights.numel()
    for wrong in (made.weights[:-1], made.weights.view(torch.float32)):
        with pytest.raises(RuntimeError, match=f"contiguous int32 tensor with {size} elements"):
            plan(wrong, PRECISIONS["bf16"])
    with pytest.raises(RuntimeError, match="float32 numbers in float32 or bf16"):
        plan(made.weights, PRECISIONS["fp16"])
