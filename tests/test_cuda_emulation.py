"""The CUDA kernels' sources, run on the CPU: the operator tests, sanitizers, scheduling seeds.

What decides whether a kernel is right are the very tests of the operators (float64 oracle,
degenerate samples, odd shapes, determinism), run here on a library whose CPU operators are the CUDA
kernels.
"""

from __future__ import annotations

import pytest
from cuda_bench import needs_emulation, run_program, run_python, run_tests

# Most of the time goes into building the library, once for each kind of it.
pytestmark = [needs_emulation, pytest.mark.timeout(1800)]


def test_the_emulated_library_is_what_is_tested() -> None:
    done = run_python(["-c", "import erd_cuda; print(erd_cuda.build_info())"])
    assert "'architectures': ['emulated']" in done.stdout, done.stdout + done.stderr


# The big problems of these tests are for real devices; small ones exercise the same code.
NOT_TOO_BIG = "not full_size and not as_precise_as_torch"


def operator_tests(*names: str) -> list[str]:
    return [f"tests/test_ops_{name}.py" for name in names]


@pytest.mark.parametrize(
    ("device", "seed", "names", "selection"),
    [
        (80, 0, ["project", "residual", "solve_root", "solve_residual"], NOT_TOO_BIG),
        (80, 1, ["refine", "determinism", "degenerate", "shapes"], NOT_TOO_BIG),
        (75, 2, ["refine"], f"{NOT_TOO_BIG} and not (300 and relu)"),
        (90, 3, ["solve_root"], NOT_TOO_BIG),
    ],
)
def test_operators(device: int, seed: int, names: list[str], selection: str) -> None:
    run_tests([*operator_tests(*names), "-k", selection], device=device, seed=seed)


def test_gradients() -> None:
    run_tests([*operator_tests("gradients"), "-k", "test_gradcheck"], seed=4)


def test_float32_precision() -> None:
    """Errors against float64, beside those of torch's own float32."""
    paths = operator_tests("project", "residual", "refine")
    run_tests([*paths, "-k", "as_precise_as_torch and not each_stage"], seed=5)


@pytest.mark.parametrize(
    ("device", "seed", "selection"),
    [
        (80, 6, "layers and not 200 or gradcheck or philoxs or nan or layouts or step"),
        (75, 7, "philoxs or layouts or wide"),
    ],
    ids=["80", "75"],
)
def test_training(device: int, seed: int, selection: str) -> None:
    # Also that a whole step's operator, which is given CPU tensors as ever, is three kernels here.
    paths = [*operator_tests("regressor", "regressor_step"), "tests/emulated_training_step.py"]
    run_tests([*paths, "-k", selection], device=device, seed=seed)


@pytest.mark.parametrize(
    ("device", "seed", "selection"), [(80, 8, ""), (90, 9, "300 or joints or samples")]
)
def test_refine_on_tensor_cores(device: int, seed: int, selection: str) -> None:
    run_tests(["tests/emulated_refine.py", "-k", selection], device=device, seed=seed)


def test_refine_with_warpgroup_products() -> None:
    run_tests(["tests/emulated_refine_wgmma.py"], device=90, seed=7)


# ---- sanitizers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "seed", "paths", "selection"),
    [
        (
            80,
            10,
            operator_tests("shapes", "degenerate"),
            f"{NOT_TOO_BIG} and not (touches and float64)",
        ),
        (75, 11, operator_tests("project"), NOT_TOO_BIG),
        (
            80,
            12,
            operator_tests("regressor", "regressor_step"),
            "layers and not 200 and not 300 and not wide and not (600 and linear) or philoxs",
        ),
        (80, 13, ["tests/emulated_refine.py"], "37 or bad_samples or joints"),
        (90, 14, ["tests/emulated_refine_wgmma.py"], "63 or bad_samples or joints"),
    ],
    ids=["operators", "operators-75", "training", "tensor_cores", "warpgroups"],
)
def test_no_invalid_access(device: int, seed: int, paths: list[str], selection: str) -> None:
    """AddressSanitizer and UndefinedBehaviorSanitizer see nothing to report."""
    run_tests([*paths, "-k", selection], flavour="asan", device=device, seed=seed)


@pytest.mark.parametrize(
    ("device", "seed", "kernels"),
    # Hopper runs the same kernels as other GPUs, and one of its own.
    [(80, 0, ("geometry", "refine", "training")), (90, 1, ("wgmma",))],
    ids=["80", "90"],
)
def test_no_race(device: int, seed: int, kernels: tuple[str, ...]) -> None:
    """ThreadSanitizer sees no two threads at one place without a barrier between them."""
    for name in kernels:
        done = run_program("kernels_tsan", name, device=device, seed=seed)
        assert done.returncode == 0, done.stderr[-8000:]
        assert name in done.stderr, "a problem has run"
