"""The collapsed refiner's tensor-core kernels against the float64 oracle.

Run by test_cuda_emulation.py on the emulated operator library, for several devices and orders of
the threads.
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

KERNELS = ("throughput", "latency")
#: Largest relative error of the increments of a few poses; those of many are held to more. Plain
#: float32 is at 0.7e-6 to 2e-6: it rounds points of hundreds of pixels, of which residuals of tens
#: are left.
LIMITS = {"split": 3e-6, "fp16": 2e-3, "bf16": 1.6e-2}


@pytest.fixture(autouse=True)
def _only_emulated() -> None:
    assert erd_cuda.build_info()["architectures"] == ["emulated"]


def increment_error(
    problem: Problem,
    network: oracle.Network,
    precision: str,
    kernel: str,
    root_mode: str = "given",
    with_confidence: bool = False,
    return_stages: bool = False,
) -> float:
    problem = problem.rounded(torch.float32)
    got = run_variant(
        problem, network, precision, kernel, root_mode, with_confidence, return_stages
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


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("count", [1, 15, 37, 300])
def test_precision_at_the_papers_size(count: int, precision: str, kernel: str) -> None:
    error = increment_error(make_problem((count,)), make_network(), precision, kernel)
    assert error < (1e-6 if precision == "split" and count > 1 else LIMITS[precision])


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
    """Bit for bit, wherever it lies and however many there are."""
    network = make_network(17, 2, 64)
    many = make_problem((75,)).rounded(torch.float32)
    together = run_variant(many, network, "fp16", kernel, "solve", True)
    for i in (0, 31, 32, 74):
        one = Problem(
            **{
                name: value[i : i + 1] if isinstance(value, np.ndarray) and name != "std" else value
                for name, value in vars(many).items()
            }
        )
        alone = run_variant(one, network, "fp16", kernel, "solve", True)
        assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("root_mode", ROOT_MODES)
def test_bad_samples_harm_nobody(root_mode: str, kernel: str) -> None:
    """NaN stays with its sample; a sample without a root keeps its pose."""
    network = make_network(17, 2, 64)
    good = make_problem((40,)).rounded(torch.float32)
    bad = Problem(**{**vars(good), "keypoints": good.keypoints.copy(), "pose": good.pose.copy()})
    bad.keypoints[3] = 500.0  # one image point
    bad.keypoints[17, 2] = np.nan
    bad.pose[33, 5, 1] = np.nan
    clean = run_variant(good, network, "split", kernel, root_mode)
    mixed = run_variant(bad, network, "split", kernel, root_mode)
    others = [i for i in range(40) if i not in (3, 17, 33)]
    assert torch.equal(mixed[others], clean[others])
    if root_mode == "given":
        assert mixed[17].isnan().any() and mixed[33].isnan().any()
    else:
        pose = torch.from_numpy(bad.pose).float()
        assert torch.equal(mixed[[3, 17]], pose[[3, 17]])
        assert torch.allclose(mixed[33], pose[33], atol=0, equal_nan=True)


@pytest.mark.parametrize("kernel", KERNELS)
def test_wild_residuals_saturate(kernel: str) -> None:
    """A joint beside the camera projects to millions of pixels, which fp16 cannot hold."""
    problem, network = make_problem((3,)).rounded(torch.float32), make_network(17, 1, 32)
    problem.root[1] = (0.0, 0.0, 1.0)
    for precision in ("split", "fp16", "bf16"):
        assert run_variant(problem, network, precision, kernel).isfinite().all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_sizes_without_a_kernel_run_in_plain_float32(kernel: str) -> None:
    for network in (make_network(40, 1, 32), make_network(17, 1, 40)):
        problem = make_problem((5,), network.mean2d.shape[0]).rounded(torch.float32)
        plain = run_variant(problem, network, "fp32", "simt")
        assert torch.equal(run_variant(problem, network, "split", kernel), plain)
