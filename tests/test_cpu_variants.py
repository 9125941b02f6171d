"""Every instruction set this processor runs passes the operator tests, not only the best one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import erd_cuda

TESTS = Path(__file__).resolve().parent
OPERATORS = [
    "project",
    "residual",
    "solve_root",
    "solve_residual",
    "refine",
    "refine_bf16",
    "degenerate",
    "determinism",
]
ORDER = ["portable", "avx2", "avx512", "avx512_bf16", "neon_bf16"]

INFO = erd_cuda.build_info()
LESSER = [name for name in INFO["cpu_variants"] if name != INFO["cpu_capability"]]


def run(variant: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=TESTS.parent,
        env=os.environ | {"ERD_CPU_CAPABILITY": variant},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("variant", LESSER)
def test_variant_passes_the_operator_tests(variant: str) -> None:
    if ORDER.index(variant) > ORDER.index(INFO["cpu_capability"]):
        pytest.skip(f"this processor runs {INFO['cpu_capability']}, not {variant}")
    files = [str(TESTS / f"test_ops_{name}.py") for name in OPERATORS]
    result = run(variant, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files)
    assert result.returncode == 0, result.stdout[-3000:]


def test_the_variant_is_chosen_by_name() -> None:
    code = "import erd_cuda; print(erd_cuda.build_info()['cpu_capability'])"
    assert run("portable", "-c", code).stdout.strip() == "portable"


def test_an_unknown_variant_is_refused() -> None:
    result = run("sse9", "-c", "import erd_cuda; erd_cuda.build_info()")
    assert result.returncode != 0
    assert "ERD_CPU_CAPABILITY is 'sse9', expected one that" in result.stdout
