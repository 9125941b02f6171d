"""The CUDA kernels' sources, run on the CPU: the operator tests, sanitizers, scheduling seeds.

What decides whether a kernel is right are the very tests of the operators (float64 oracle,
degenerate samples, odd shapes, determinism), run here on a library whose CPU operators are the CUDA
kernels.
"""

from __future__ import annotations

import pytest
from cuda_bench import needs_emulation, run_program, run_python, run_tests

# Most of the time goes into building the library, once for each kind of it.
pytestmark = [needs_emulation, pytest.mark.timeout(1200)]


def test_the_emulated_library_is_what_is_tested() -> None:
    done = run_python(["-c", "import erd_cuda; print(erd_cuda.build_info())"])
    assert "'architectures': ['emulated']" in done.stdout, done.stdout + done.stderr


# The big problems of these tests are for real devices; small ones exercise the same code.
NOT_TOO_BIG = "not full_size and not as_precise_as_torch and not speed and not memory"


@pytest.mark.parametrize(
    ("device", "seed", "files"),
    [
        (80, 0, ["project", "residual", "solve_root", "solve_residual", "degenerate", "shapes"]),
        (80, 1, ["refine", "determinism"]),
        (75, 2, ["project", "refine", "determinism"]),
        (90, 3, ["solve_root", "refine", "determinism"]),
    ],
)
def test_operators(device: int, seed: int, files: list[str]) -> None:
    paths = [f"tests/test_ops_{name}.py" for name in files]
    run_tests([*paths, "-k", NOT_TOO_BIG], device=device, seed=seed)


def test_refine_with_warpgroup_products() -> None:
    run_tests(["tests/emulated_refine_wgmma.py"], device=90, seed=7)


def test_gradients() -> None:
    run_tests(["tests/test_ops_gradients.py", "-k", "gradcheck"], seed=4)


def test_float32_precision() -> None:
    """Errors against float64, beside those of torch's own float32."""
    names = ["project", "residual", "refine"]
    paths = [f"tests/test_ops_{name}.py" for name in names]
    run_tests([*paths, "-k", "as_precise_as_torch"], seed=5)


@pytest.mark.parametrize("device", [75, 80])
def test_no_invalid_access(device: int) -> None:
    """AddressSanitizer and UndefinedBehaviorSanitizer see nothing to report."""
    paths = [f"tests/test_ops_{name}.py" for name in ("shapes", "determinism", "degenerate")]
    run_tests([*paths, "-k", NOT_TOO_BIG], flavour="asan", device=device, seed=6)


@pytest.mark.parametrize(("device", "seed"), [(80, 0), (90, 1)])
def test_no_race(device: int, seed: int) -> None:
    """ThreadSanitizer sees no two threads at one place without a barrier between them."""
    done = run_program("kernels_tsan", device=device, seed=seed)
    assert done.returncode == 0, done.stderr[-8000:]
