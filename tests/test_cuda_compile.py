"""The compiled GPU code, without a GPU: architectures, registers, spills, tensor-core instructions.

Nothing is compiled here: these tests read the library that the package's own build has made.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import cuda_library
import pytest

from erd_cuda import build_info

BUDGET = Path(__file__).with_name("data") / "cuda_budget.json"

# What a build with nothing set is for.
DEFAULT_ARCHITECTURES = {
    *("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_120"),
    "compute_80",
}

BUILT = set(build_info()["architectures"])
CHOSEN = "ERD_CUDA" in os.environ.get("CMAKE_ARGS", "") or "ERD_CUDA" in os.environ


def test_a_toolkit_means_cuda_kernels() -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("there is no nvcc on PATH")
    if CHOSEN:
        pytest.skip("ERD_CUDA or CMAKE_ARGS chose what to build")
    assert BUILT >= DEFAULT_ARCHITECTURES


needs_gpu_code = pytest.mark.skipif(
    not BUILT or cuda_library.cuobjdump() is None,
    reason="the library was built without CUDA kernels"
    if not BUILT
    else "cuobjdump is not installed (pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm)",
)


@needs_gpu_code
def test_build_info_tells_the_architectures() -> None:
    assert cuda_library.architectures() == BUILT


@needs_gpu_code
def test_no_kernel_uses_local_memory() -> None:
    """Neither spills nor arrays that found no registers, on any architecture."""
    found = cuda_library.resources()
    assert {kernel for kernel, value in found.items() if value.stack > 0} == set()


@needs_gpu_code
def test_registers_stay_within_the_budget() -> None:
    assert BUDGET.exists(), "make it: python tests/cuda_library.py > tests/data/cuda_budget.json"
    allowed = json.loads(BUDGET.read_text())
    if allowed["compiler"] != build_info()["cuda_compiler"]:
        pytest.skip(f"the budget is for {allowed['compiler']}")
    over = {}
    for (kernel, architecture), value in cuda_library.resources().items():
        limit = allowed["registers"].get(kernel, {}).get(architecture)
        # Shared memory is asked for at the launch; a kilobyte is the system's own.
        if limit is None or value.registers > limit or value.shared > 1024:
            over[f"{kernel} on {architecture}"] = f"{value.registers}, allowed {limit}"
    assert not over, "if this is meant: python tests/cuda_library.py > tests/data/cuda_budget.json"


# Kernels that exist for the sake of tensor cores, and must use them.
TENSOR_KERNELS = ("refine_throughput", "refine_latency", "refine_relu")
WARPGROUP_KERNELS = ("refine_wgmma",)


def opcodes_of(kernels: tuple[str, ...], architecture: str) -> dict[str, set[str]]:
    return {
        name: set(opcodes)
        for name, opcodes in cuda_library.instructions(kernels, architecture).items()
    }


@needs_gpu_code
@pytest.mark.parametrize("architecture", ["sm_80", "sm_120"])
def test_tensor_cores_are_used(architecture: str) -> None:
    if architecture not in BUILT:
        pytest.skip(f"the library was not built for {architecture}")
    found = opcodes_of(TENSOR_KERNELS, architecture)
    for family in TENSOR_KERNELS:
        assert any(name.startswith(family) for name in found), family
    assert {name for name, opcodes in found.items() if "HMMA" not in opcodes} == set()
    assert {name for name, opcodes in found.items() if opcodes & {"LDL", "STL"}} == set()


@needs_gpu_code
def test_warpgroup_products_are_used() -> None:
    if "sm_90a" not in BUILT:
        pytest.skip("the library was not built for sm_90a")
    found = opcodes_of(WARPGROUP_KERNELS, "sm_90a")
    assert found
    assert {name for name, opcodes in found.items() if "HGMMA" not in opcodes} == set()
    assert {name for name, opcodes in found.items() if opcodes & {"LDL", "STL"}} == set()
