"""The relu block's tensor-core kernel against the float64 oracle.

Run by test_cuda_refine_relu.py on the emulated operator library, for several devices and orders of
the threads.
"""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import oracle
import pytest
import torch
from precision import relative_error
from problems import CAMERA_MODELS, FEATURES, ROOT_MODES, Problem, make_network, make_problem
from refine_variants import run_variant

import erd_cuda
from erd_cuda._fragments import PRECISIONS

# Tiles of 128 or 64 poses, and of 16.
KERNELS = ("throughput", "latency")
#: Largest relative error of the increments. float32 itself is at 1.5e-6 with residuals: a pixel of
#: 1000 has a rounding of 6e-5, of a residual of some tens.
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
) -> float:
    """The worst stage's."""
    problem = problem.rounded(torch.float32)
    got = run_variant(problem, network, precision, kernel, root_mode, with_confidence, True)
    expected = oracle.refine(
        problem.keypoints,
        problem.pose,
        problem.root if root_mode == "given" else root_mode,
        network,
        *problem.lens,
        problem.confidence if with_confidence else None,
    )
    pose = torch.from_numpy(problem.pose)
    return max(
        relative_error(after - pose, exact - problem.pose)
        for after, exact in zip(got, expected, strict=True)
    )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("count", [1, 150])
def test_precision_at_the_papers_size(count: int, precision: str, kernel: str) -> None:
    network = make_network(block="relu")
    error = increment_error(make_problem((count,)), network, precision, kernel)
    assert error < LIMITS[precision]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("features", ["concat", "init2d", "proj2d"])
def test_split_is_as_exact_as_float32(features: str, kernel: str) -> None:
    network = make_network(17, 3, 128, "relu", features)
    for with_confidence in (False, True):
        error = increment_error(
            make_problem((20,)), network, "split", kernel, with_confidence=with_confidence
        )
        assert error < 6e-7


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("precision", ["split", "fp16"])
@pytest.mark.parametrize(
    ("joints", "width"),
    [(1, 16), (5, 48), (17, 16), (17, 272), (17, 512), (31, 208), (32, 16), (32, 256)],
)
def test_sizes(joints: int, width: int, precision: str, kernel: str) -> None:
    """Nothing is a power of two, and features may be more than hidden units."""
    problem = make_problem((70,), joints)
    for features in ("residual", "concat"):
        network = make_network(joints, 2, width, "relu", features)
        assert increment_error(problem, network, precision, kernel) < LIMITS[precision]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("model", CAMERA_MODELS)
@pytest.mark.parametrize("root_mode", ROOT_MODES)
def test_cameras_and_roots(root_mode: str, model: str, kernel: str) -> None:
    problem, network = make_problem((21,), 17, model), make_network(17, 3, 32, "relu")
    assert increment_error(problem, network, "split", kernel, root_mode, True) < LIMITS["split"]


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("features", FEATURES)
def test_a_sample_depends_on_nothing_but_itself(features: str, precision: str) -> None:
    """Bit for bit the same alone, anywhere in a batch, and in tiles of any size."""
    network = make_network(17, 2, 64, "relu", features)
    many = make_problem((150,)).rounded(torch.float32)
    together = run_variant(many, network, precision, "throughput", "solve", True)
    assert torch.equal(run_variant(many, network, precision, "latency", "solve", True), together)
    assert torch.equal(run_variant(many, network, precision, "automatic", "solve", True), together)
    for i in (0, 31, 128, 149):
        one = Problem(
            **{
                name: value[i : i + 1] if isinstance(value, np.ndarray) and name != "std" else value
                for name, value in vars(many).items()
            }
        )
        alone = run_variant(one, network, precision, "automatic", "solve", True)
        assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("root_mode", ROOT_MODES)
def test_bad_samples_harm_nobody(root_mode: str, kernel: str) -> None:
    """NaN stays with its sample; a sample without a root keeps its pose."""
    network = make_network(17, 2, 64, "relu")
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
    """A joint beside the camera projects to millions of pixels; fp16 ends at 65504."""
    problem = make_problem((3,)).rounded(torch.float32)
    network = make_network(17, 1, 32, "relu")
    problem.root[1] = (0.0, 0.0, 1.0)
    for precision in LIMITS:
        assert run_variant(problem, network, precision, kernel).isfinite().all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_sizes_without_a_kernel_run_in_plain_float32(kernel: str) -> None:
    for joints, width in ((33, 32), (17, 40), (17, 528)):
        network = make_network(joints, 1, width, "relu")
        problem = make_problem((5,), joints).rounded(torch.float32)
        plain = run_variant(problem, network, "fp32", "simt")
        assert torch.equal(run_variant(problem, network, "split", kernel), plain)


def test_fragments_of_another_size_are_refused() -> None:
    problem = make_problem((2,)).rounded(torch.float32)
    network = make_network(17, 1, 32, "relu")
    with (
        patch.dict("refine_variants.PRECISIONS", {"fp16": PRECISIONS["split"]}),
        pytest.raises(RuntimeError, match="are not of these weights and this precision"),
    ):
        run_variant(problem, network, "fp16", "automatic")
