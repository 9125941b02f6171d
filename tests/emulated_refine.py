"""The collapsed refiner's tensor-core kernels against the float64 oracle.

Run by test_cuda_emulation.py on the emulated operator library, for several devices and orders of
the threads.
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
from erd_cuda.benchmarks.problems import CAMERA_MODELS, ROOT_MODES, make_network, make_problem
from erd_cuda.benchmarks.refine_kernels import run_variant

KERNELS = ("throughput", "latency")
PRECISIONS = ("split", "fp16", "bf16")


@pytest.fixture(autouse=True)
def _only_emulated() -> None:
    assert erd_cuda.build_info()["architectures"] == ["emulated"]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("count", [1, 15, 37, 300])
def test_precision_at_the_papers_size(count: int, precision: str, kernel: str) -> None:
    error = increment_error(make_problem((count,)), make_network(), precision, kernel)
    assert error < (1e-6 if precision == "split" and count > 1 else LIMITS[precision])


@pytest.mark.parametrize("block", ["linear", "relu"])
def test_plain_float32_at_the_papers_size(block: str) -> None:
    network = make_network(block=block)
    assert increment_error(make_problem((300,)), network, "fp32", "simt") < 1e-6


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("precision", ["split", "fp16"])
@pytest.mark.parametrize("joints", [1, 4, 14, 16, 18, 20, 21, 32])
def test_numbers_of_joints(joints: int, precision: str, kernel: str) -> None:
    problem, network = make_problem((19,), joints), make_network(joints, 2, 64)
    assert increment_error(problem, network, precision, kernel) < LIMITS[precision]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("precision", ["split", "fp16"])
@pytest.mark.parametrize("width", [16, 48, 272, 512])
def test_widths(width: int, precision: str, kernel: str) -> None:
    problem, network = make_problem((33,)), make_network(17, 3, width)
    assert increment_error(problem, network, precision, kernel) < LIMITS[precision]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("model", CAMERA_MODELS)
@pytest.mark.parametrize("root_mode", ROOT_MODES)
def test_cameras_and_roots(root_mode: str, model: str, kernel: str) -> None:
    problem, network = make_problem((21,), 17, model), make_network(17, 3, 32)
    for return_stages in (False, True):
        error = increment_error(problem, network, "split", kernel, root_mode, True, return_stages)
        assert error < LIMITS["split"]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("features", ["init2d", "proj2d"])
def test_other_features(features: str, kernel: str) -> None:
    network = make_network(17, 2, 64, features=features)
    for with_confidence in (False, True):
        error = increment_error(
            make_problem((9,)), network, "split", kernel, with_confidence=with_confidence
        )
        assert error < LIMITS["split"]


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_sample_does_not_depend_on_its_neighbours(kernel: str) -> None:
    network = make_network(17, 2, 64)
    check_samples_alone(
        lambda problem: run_variant(problem, network, "fp16", kernel, "solve", True),
        make_problem((75,)).rounded(torch.float32),
        (0, 31, 32, 74),
    )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("root_mode", ROOT_MODES)
def test_bad_samples_harm_nobody(root_mode: str, kernel: str) -> None:
    network = make_network(17, 2, 64)
    check_bad_samples(
        lambda problem: run_variant(problem, network, "split", kernel, root_mode),
        make_problem((40,)).rounded(torch.float32),
        root_mode,
    )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_wild_residuals_saturate(precision: str, kernel: str) -> None:
    network = make_network(17, 1, 32)
    check_wild_residuals(
        lambda problem: run_variant(problem, network, precision, kernel),
        make_problem((3,)).rounded(torch.float32),
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_sizes_without_a_kernel_run_in_plain_float32(kernel: str) -> None:
    for network in (make_network(40, 1, 32), make_network(17, 1, 40)):
        problem = make_problem((5,), network.mean2d.shape[0]).rounded(torch.float32)
        plain = run_variant(problem, network, "fp32", "simt")
        assert torch.equal(run_variant(problem, network, "split", kernel), plain)


@pytest.mark.parametrize("kernel", KERNELS)
def test_residual_limit(kernel: str) -> None:
    check_residual_limit("linear", "split", kernel)


@pytest.mark.parametrize("block", ["linear", "relu"])
@pytest.mark.parametrize("features", ["residual", "residual+pose"])
def test_residual_limit_in_plain_float32(features: str, block: str) -> None:
    check_residual_limit(block, "fp32", "simt", features=features)
