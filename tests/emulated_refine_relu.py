"""The relu block's tensor-core kernel against the float64 oracle.

Run by test_cuda_refine_relu.py on the emulated operator library, for several devices and orders of
the threads.
"""

from __future__ import annotations

import itertools

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
from erd_cuda.benchmarks.problems import (
    CAMERA_MODELS,
    FEATURES,
    ROOT_MODES,
    Problem,
    make_network,
    make_problem,
    pack,
)
from erd_cuda.benchmarks.refine_kernels import arrange, pinned, run_variant

# Tiles of 128 or 64 poses, and of 16.
KERNELS = ("throughput", "latency")
PRECISIONS = ("split", "fp16", "bf16")


@pytest.fixture(autouse=True)
def _only_emulated() -> None:
    assert erd_cuda.build_info()["architectures"] == ["emulated"]


# Many poses of the paper's size take long: two tiles of them, so that the ring of weights turns, in
# one precision only.
@pytest.mark.parametrize(
    ("count", "precision", "kernel"),
    [
        *itertools.product([1, 20], PRECISIONS, KERNELS),
        *itertools.product([150], ["fp16"], KERNELS),
    ],
)
def test_precision_at_the_papers_size(count: int, precision: str, kernel: str) -> None:
    network = make_network(block="relu")
    error = increment_error(make_problem((count,)), network, precision, kernel, return_stages=True)
    assert error < (1e-6 if precision == "split" and count > 1 else LIMITS[precision])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("features", ["concat", "init2d", "proj2d", "residual+pose"])
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
    [(1, 16), (5, 48), (17, 16), (17, 512), (31, 208), (32, 256)],
)
def test_sizes(joints: int, width: int, precision: str, kernel: str) -> None:
    """Nothing is a power of two, and features may be more than hidden units."""
    problem = make_problem((70 if width < 200 else 20,), joints)
    # An odd number of features changes the first layer only: narrow networks show it in less time.
    for features in ("residual", "residual+pose" if width < 64 else "concat"):
        network = make_network(joints, 2, width, "relu", features)
        assert increment_error(problem, network, precision, kernel) < LIMITS[precision]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("model", CAMERA_MODELS)
@pytest.mark.parametrize("root_mode", ROOT_MODES)
def test_cameras_and_roots(root_mode: str, model: str, kernel: str) -> None:
    problem, network = make_problem((21,), 17, model), make_network(17, 3, 32, "relu")
    assert increment_error(problem, network, "split", kernel, root_mode, True) < LIMITS["split"]


@pytest.mark.parametrize(
    ("features", "precision"),
    [
        *itertools.product(["residual"], PRECISIONS),
        *itertools.product([name for name in FEATURES if name != "residual"], ["fp16"]),
    ],
)
def test_a_sample_depends_on_nothing_but_itself(features: str, precision: str) -> None:
    """Bit for bit the same alone, anywhere in a batch, and in tiles of any size."""
    network = make_network(17, 2, 64, "relu", features)
    many = make_problem((150,)).rounded(torch.float32)

    def run(problem: Problem, kernel: str = "automatic") -> torch.Tensor:
        return run_variant(problem, network, precision, kernel, "solve", True)

    check_samples_alone(run, many, (0, 31, 128, 149))
    for kernel in KERNELS:
        assert torch.equal(run(many, kernel), run(many))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("root_mode", ROOT_MODES)
def test_bad_samples_harm_nobody(root_mode: str, kernel: str) -> None:
    network = make_network(17, 2, 64, "relu")
    check_bad_samples(
        lambda problem: run_variant(problem, network, "split", kernel, root_mode),
        make_problem((40,)).rounded(torch.float32),
        root_mode,
    )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_wild_residuals_saturate(precision: str, kernel: str) -> None:
    network = make_network(17, 1, 32, "relu")
    check_wild_residuals(
        lambda problem: run_variant(problem, network, precision, kernel),
        make_problem((3,)).rounded(torch.float32),
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_sizes_without_a_kernel_run_in_plain_float32(kernel: str) -> None:
    for joints, width in ((33, 32), (17, 40), (17, 528)):
        network = make_network(joints, 1, width, "relu")
        problem = make_problem((5,), joints).rounded(torch.float32)
        plain = run_variant(problem, network, "fp32", "simt")
        assert torch.equal(run_variant(problem, network, "split", kernel), plain)


def test_fragments_of_another_precision_are_refused() -> None:
    weights = pack(make_network(17, 1, 32, "relu"), torch.float32)
    refine = pinned(weights, arrange(weights, "split", "automatic"), "fp16", "automatic")
    problem = make_problem((2,))
    names = ("keypoints", "pose", "root", "intrinsics")
    with pytest.raises(RuntimeError, match="are not of these weights and this precision"):
        refine(*(problem.tensor(name, torch.float32) for name in names))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("features", ["residual", "residual+pose"])
def test_residual_limit(features: str, kernel: str) -> None:
    check_residual_limit("relu", "split", kernel, features=features)
