"""Hopper's warpgroup kernel of the collapsed refiner against the float64 oracle.

Run by test_cuda_emulation.py on the emulated operator library, for the device that has it.
"""

from __future__ import annotations

import pytest
import torch
from kernel_checks import (
    LIMITS,
    check_bad_samples,
    check_residual_limit,
    check_samples_alone,
    check_wild_residuals,
    increment_error,
)

import erd_cuda
from erd_cuda.benchmarks import oracle
from erd_cuda.benchmarks.problems import (
    CAMERA_MODELS,
    ROOT_MODES,
    Problem,
    make_network,
    make_problem,
)
from erd_cuda.benchmarks.refine_kernels import run_variant

PRECISIONS = ("fp16", "bf16")


@pytest.fixture(autouse=True)
def _only_emulated() -> None:
    assert erd_cuda.build_info()["architectures"] == ["emulated"]


def run(
    problem: Problem, network: oracle.Network, precision: str = "fp16", **options
) -> torch.Tensor:
    return run_variant(problem, network, precision, "wgmma", **options)


def error_of(
    problem: Problem, network: oracle.Network, precision: str = "fp16", **options
) -> float:
    return increment_error(problem, network, precision, "wgmma", **options)


def test_it_is_this_kernel_that_runs() -> None:
    """Neither float32's result nor that of another tensor-core kernel."""
    problem, network = make_problem((65,)).rounded(torch.float32), make_network(17, 2, 64)
    got = run(problem, network)
    for precision, variant in [("fp32", "simt"), ("fp16", "throughput")]:
        assert not torch.equal(got, run_variant(problem, network, precision, variant))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("count", [1, 63, 209, 700])
def test_precision_at_the_papers_size(count: int, precision: str) -> None:
    assert error_of(make_problem((count,)), make_network(), precision) < LIMITS[precision]


@pytest.mark.parametrize("joints", range(1, 19))
def test_numbers_of_joints(joints: int) -> None:
    problem, network = make_problem((19,), joints), make_network(joints, 2, 64)
    # From fewer than two joints no root can be solved.
    for root_mode in ROOT_MODES if joints > 1 else ("given",):
        error = error_of(problem, network, root_mode=root_mode)
        assert error < LIMITS["fp16"]


@pytest.mark.parametrize("width", [16, 48, 128, 176, 272, 512])
def test_widths(width: int) -> None:
    """Filled up to a multiple of 128; with 512 not all stages fit into shared memory."""
    problem, network = make_problem((67,)), make_network(17, 3, width)
    for root_mode in ROOT_MODES:
        assert error_of(problem, network, root_mode=root_mode) < LIMITS["fp16"]


@pytest.mark.parametrize("model", CAMERA_MODELS)
@pytest.mark.parametrize("root_mode", ROOT_MODES)
def test_cameras_and_roots(root_mode: str, model: str) -> None:
    problem, network = make_problem((21,), 17, model), make_network(17, 3, 32)
    for return_stages in (False, True):
        for with_confidence in (False, True):
            options = {"root_mode": root_mode, "with_confidence": with_confidence}
            error = error_of(problem, network, return_stages=return_stages, **options)
            assert error < LIMITS["fp16"]


@pytest.mark.parametrize("features", ["init2d", "proj2d"])
def test_other_features(features: str) -> None:
    network = make_network(17, 2, 64, features=features)
    for with_confidence in (False, True):
        error = error_of(make_problem((9,)), network, with_confidence=with_confidence)
        assert error < LIMITS["fp16"]


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    network = make_network(17, 2, 64)
    check_samples_alone(
        lambda problem: run(problem, network, root_mode="solve", with_confidence=True),
        make_problem((395,)).rounded(torch.float32),
        (0, 31, 32, 64, 200, 394),
    )


@pytest.mark.parametrize("root_mode", ROOT_MODES)
def test_bad_samples_harm_nobody(root_mode: str) -> None:
    network = make_network(17, 2, 64)
    check_bad_samples(
        lambda problem: run(problem, network, root_mode=root_mode),
        make_problem((40,)).rounded(torch.float32),
        root_mode,
    )


def test_missing_joints_may_hold_anything() -> None:
    """The last joint too, whose data lanes without a joint of their own look at."""
    network = make_network(17, 2, 64)
    problem = make_problem((6,)).rounded(torch.float32)
    problem.confidence[:, [4, 16]] = 0.0
    expected = run(problem, network, with_confidence=True)
    problem.keypoints[:, [4, 16]] = float("nan")
    assert torch.equal(run(problem, network, with_confidence=True), expected)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_wild_residuals_saturate(precision: str) -> None:
    network = make_network(17, 1, 32)
    check_wild_residuals(
        lambda problem: run(problem, network, precision),
        make_problem((3,)).rounded(torch.float32),
    )


def test_sizes_without_a_kernel_run_in_plain_float32() -> None:
    for joints, width in [(19, 32), (17, 40)]:
        network = make_network(joints, 1, width)
        problem = make_problem((5,), joints).rounded(torch.float32)
        plain = run_variant(problem, network, "fp32", "simt")
        assert torch.equal(run(problem, network), plain)


def test_residual_limit() -> None:
    check_residual_limit("linear", "fp16", "wgmma")
