"""How often the training step's operator launches a kernel, on the emulated operator library.

That its results are right is what test_ops_regressor_step.py decides, which test_cuda_emulation.py
runs on that library as well.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from test_ops_regressor_step import PROBLEMS, arguments

import erd_cuda

#: What README and CHANGELOG say of a step: no launch more.
LAUNCHES_A_STEP = 3


def test_a_step_is_three_kernels() -> None:
    assert erd_cuda.build_info()["architectures"] == ["emulated"]
    library = Path(erd_cuda.__file__).with_name("liberd_cuda_ops.so")
    launches = ctypes.CDLL(str(library)).erd_emulated_launches
    launches.restype = ctypes.c_int64
    for problem in (PROBLEMS["linear"], PROBLEMS["relu, no dropout"]):
        call = arguments(problem, torch.float32, "cpu")
        before = launches()
        torch.ops.erd_cuda.regressor_step_(**call)
        assert launches() - before == LAUNCHES_A_STEP
