"""Hopper's warpgroup kernel of the collapsed refiner against the float64 oracle.

Run by test_cuda_emulation.py on the emulated operator library, for the device that has it.
"""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from precision import relative_error
from problems import CAMERA_MODELS, ROOT_MODES, Problem, make_network, make_problem
from refine_variants import run_variant

import erd_cuda

#: Largest relative error of the increments.
LIMITS = {"fp16": 2e-3, "bf16": 1.6e-2}


@pytest.fixture(autouse=True)
def _only_emulated() -> None:
    assert erd_cuda.build_info()["architectures"] == ["emulated"]


def run(
    problem: Problem, network: oracle.Network, precision: str = "fp16", **options
) -> torch.Tensor:
    return run_variant(problem, network, precision, "wgmma", **options)


def increment_error(
    problem: Problem,
    network: oracle.Network,
    precision: str = "fp16",
    root_mode: str = "given",
    with_confidence: bool = False,
    return_stages: bool = False,
) -> float:
    problem = problem.rounded(torch.float32)
    got = run(
        problem,
        network,
        precision,
        root_mode=root_mode,
        with_confidence=with_confidence,
        return_stages=return_stages,
    )
    expected = oracle.refine(
        problem.keypoints,
        problem.pose,
        problem.root if root_mode == "given" else root_mode,
        network,
        *problem.lens,
        problem.confidence if with_confidence else None,
    )
    if not return_stages:
        expected = expected[-1]
    return relative_error(got - torch.from_numpy(problem.pose), expected - problem.pose)


def test_it_is_this_kernel_that_runs() -> None:
    """Neither float32's result nor that of another tensor-core kernel."""
    problem, network = make_problem((65,)).rounded(torch.float32), make_network(17, 2, 64)
    got = run(problem, network)
    for precision, variant in [("fp32", "simt"), ("fp16", "throughput")]:
        assert not torch.equal(got, run_variant(problem, network, precision, variant))


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("count", [1, 63, 209, 700])
def test_precision_at_the_papers_size(count: int, precision: str) -> None:
    assert increment_error(make_problem((count,)), make_network(), precision) < LIMITS[precision]


@pytest.mark.parametrize("joints", range(1, 19))
def test_numbers_of_joints(joints: int) -> None:
    problem, network = make_problem((19,), joints), make_network(joints, 2, 64)
    # From fewer than two joints no root can be solved.
    for root_mode in ROOT_MODES if joints > 1 else ("given",):
        error = increment_error(problem, network, root_mode=root_mode)
        assert error < LIMITS["fp16"]


@pytest.mark.parametrize("width", [16, 48, 128, 176, 272, 512])
def test_widths(width: int) -> None:
    """Filled up to a multiple of 128; with 512 not all stages fit into shared memory."""
    problem, network = make_problem((67,)), make_network(17, 3, width)
    for root_mode in ROOT_MODES:
        assert increment_error(problem, network, root_mode=root_mode) < LIMITS["fp16"]


@pytest.mark.parametrize("model", CAMERA_MODELS)
@pytest.mark.parametrize("root_mode", ROOT_MODES)
def test_cameras_and_roots(root_mode: str, model: str) -> None:
    problem, network = make_problem((21,), 17, model), make_network(17, 3, 32)
    for return_stages in (False, True):
        for with_confidence in (False, True):
            error = increment_error(
                problem, network, "fp16", root_mode, with_confidence, return_stages
            )
            assert error < LIMITS["fp16"]


@pytest.mark.parametrize("features", ["init2d", "proj2d"])
def test_other_features(features: str) -> None:
    network = make_network(17, 2, 64, features=features)
    for with_confidence in (False, True):
        error = increment_error(make_problem((9,)), network, with_confidence=with_confidence)
        assert error < LIMITS["fp16"]


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    """Bit for bit, wherever it lies and however many there are."""
    network = make_network(17, 2, 64)
    many = make_problem((395,)).rounded(torch.float32)
    together = run(many, network, root_mode="solve", with_confidence=True)
    for i in (0, 31, 32, 64, 200, 394):
        one = Problem(
            **{
                name: value[i : i + 1] if isinstance(value, np.ndarray) and name != "std" else value
                for name, value in vars(many).items()
            }
        )
        alone = run(one, network, root_mode="solve", with_confidence=True)
        assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("root_mode", ROOT_MODES)
def test_bad_samples_harm_nobody(root_mode: str) -> None:
    """NaN stays with its sample; a sample without a root keeps its pose."""
    network = make_network(17, 2, 64)
    good = make_problem((40,)).rounded(torch.float32)
    bad = Problem(**{**vars(good), "keypoints": good.keypoints.copy(), "pose": good.pose.copy()})
    bad.keypoints[3] = 500.0  # one image point
    bad.keypoints[17, 2] = np.nan
    bad.pose[33, 5, 1] = np.nan
    clean = run(good, network, root_mode=root_mode)
    mixed = run(bad, network, root_mode=root_mode)
    others = [i for i in range(40) if i not in (3, 17, 33)]
    assert torch.equal(mixed[others], clean[others])
    if root_mode == "given":
        assert mixed[17].isnan().any() and mixed[33].isnan().any()
    else:
        pose = torch.from_numpy(bad.pose).float()
        assert torch.equal(mixed[[3, 17]], pose[[3, 17]])
        assert torch.allclose(mixed[33], pose[33], atol=0, equal_nan=True)


def test_missing_joints_may_hold_anything() -> None:
    """The last joint too, whose data lanes without a joint of their own look at."""
    network = make_network(17, 2, 64)
    problem = make_problem((6,)).rounded(torch.float32)
    problem.confidence[:, [4, 16]] = 0.0
    expected = run(problem, network, with_confidence=True)
    problem.keypoints[:, [4, 16]] = np.nan
    assert torch.equal(run(problem, network, with_confidence=True), expected)


def test_wild_residuals_saturate() -> None:
    """A joint beside the camera projects to millions of pixels, which are finite in fp16 too."""
    problem, network = make_problem((3,)).rounded(torch.float32), make_network(17, 1, 32)
    problem.root[1] = (0.0, 0.0, 1.0)
    for precision in LIMITS:
        assert run(problem, network, precision).isfinite().all()


def test_sizes_without_a_kernel_run_in_plain_float32() -> None:
    for joints, width in [(19, 32), (17, 40)]:
        network = make_network(joints, 1, width)
        problem = make_problem((5,), joints).rounded(torch.float32)
        plain = run_variant(problem, network, "fp32", "simt")
        assert torch.equal(run(problem, network), plain)
