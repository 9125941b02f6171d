"""The bench finds what it is for: kernels with a planted mistake, and the same ones without it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from cuda_bench import needs_emulation, run_program

pytestmark = [needs_emulation, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Bug:
    kernel: str
    flavour: str  # the build that finds it
    report: str  # what its message says
    status: int  # the exit status that stands for this kind of finding
    device: int = 80


WRONG_RESULT, REFUSED = 3, 4
ASAN, TSAN = 1, 66

BUGS = [
    Bug("read_past_the_tail", "asan", "heap-buffer-overflow", ASAN),
    Bug("store_past_the_tail", "asan", "heap-buffer-overflow", ASAN),
    Bug("copy_past_the_tail", "asan", "heap-buffer-overflow", ASAN),
    Bug("overrun_shared_memory", "asan", "use-after-poison", ASAN),
    Bug("overrun_shared_memory", "plain", "wrote to shared memory behind the piece", REFUSED),
    Bug("misaligned_vector", "asan", "misaligned address", ASAN),
    Bug("no_block_barrier", "tsan", "data race", TSAN),
    Bug("no_warp_barrier", "tsan", "data race", TSAN),
    Bug("buffer_reused_too_soon", "tsan", "data race", TSAN),
    Bug("blocks_write_the_same", "tsan", "data race", TSAN),
    Bug("no_copy_wait", "plain", "nan", WRONG_RESULT),
    Bug("uninitialised_shared_memory", "plain", "nan", WRONG_RESULT),
    Bug("divergent_barrier", "plain", "divergent barrier", REFUSED),
    Bug("barrier_after_return", "plain", "deadlock", REFUSED),
    Bug("wrong_shuffle_mask", "plain", "deadlock", REFUSED),
    Bug("reads_an_unnamed_lane", "plain", "does not name", REFUSED),
    Bug("takes_more_than_asked", "plain", "the launch asked for", REFUSED),
    Bug("tensor_cores_too_old", "plain", "needs compute capability 80", REFUSED, device=75),
    Bug("no_transfer_wait", "plain", "nan", WRONG_RESULT),
    Bug("no_product_wait", "plain", "nan", WRONG_RESULT),
    Bug("no_product_fence", "plain", "wgmma_fence is missing", REFUSED),
    Bug("operand_overwritten", "tsan", "data race", TSAN),
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: f"{bug.kernel}-{bug.flavour}")
def test_planted_bug_is_found(bug: Bug) -> None:
    done = run_program(f"bugs_{bug.flavour}", bug.kernel, "planted", device=bug.device)
    assert done.returncode == bug.status, done.stderr
    assert bug.report in done.stderr
    if bug.status != WRONG_RESULT:
        assert "planted_bugs" in done.stderr, "the report names the kernel's file"


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("flavour", ["plain", "asan", "tsan"])
def test_clean_kernels_raise_no_alarm(flavour: str, seed: int) -> None:
    done = run_program(f"bugs_{flavour}", "all", "clean", seed=seed)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
