"""The benchmarks' Triton kernel computes the refiner: by Triton's interpreter, or on a GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

# The interpreter is chosen when the kernels are imported, so it gets a process of its own.
CHECK = """
import sys
from dataclasses import replace

import numpy as np
import oracle
import torch
from problems import make_network, make_problem, pack
from triton_refine import TritonRefine

device, block, collapsed, precision = sys.argv[1:]
dtype = getattr(torch, precision)
problem = make_problem((37,), camera_batch=()).rounded(torch.float32)
network = make_network(block=block)
folded = network if collapsed == "True" else replace(network, block="relu")
names = ("keypoints", "pose", "root", "intrinsics")
inputs = [problem.tensor(name, torch.float32, device) for name in names]
expected = oracle.refine(
    problem.keypoints, problem.pose, problem.root, network, problem.intrinsics
)[-1]
refine = TritonRefine(pack(folded, torch.float32, device), dtype, activation=block == "relu")
for count in (1, 1_000_000):
    for refine.shape in refine.candidates(count):
        error = refine(*inputs).double().cpu().numpy() - expected
        print(np.linalg.norm(error) / np.linalg.norm(expected - problem.pose))
"""


@pytest.mark.parametrize(
    ("block", "collapsed", "precision", "limit"),
    [
        ("linear", True, "float16", 2e-3),
        ("linear", True, "float32", 1e-5),
        ("linear", False, "float16", 2e-3),
        ("relu", False, "float16", 2e-3),
    ],
)
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
def test_against_float64(block: str, collapsed: bool, precision: str, limit: float) -> None:
    on_gpu = torch.cuda.is_available()
    paths = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
    }
    if not on_gpu:
        environment["TRITON_INTERPRET"] = "1"
    device = "cuda" if on_gpu else "cpu"
    finished = subprocess.run(
        [sys.executable, "-c", CHECK, device, block, str(collapsed), precision],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    errors = [float(line) for line in finished.stdout.split()]
    assert errors and all(error < limit for error in errors)
