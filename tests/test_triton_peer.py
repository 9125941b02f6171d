"""The benchmarks' Triton kernel computes the refiner: by Triton's interpreter, and on a GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

#: Block, whether it is collapsed, precision, and the largest error over the increment.
CASES = [
    ("linear", True, "float16", 2e-3),
    ("linear", True, "float32", 1e-5),
    ("linear", False, "float16", 2e-3),
    ("relu", False, "float16", 2e-3),
]
# The interpreter is chosen when the kernels are imported, so it gets a process of its own.
CHECK = """
import json
import sys
from dataclasses import replace

import numpy as np
from erd_cuda.benchmarks import oracle
import torch
from erd_cuda.benchmarks.problems import make_network, make_problem, pack
from triton.runtime.errors import OutOfResources
from erd_cuda.benchmarks.triton_refine import TritonRefine

device = sys.argv[1]
problem = make_problem((37,), camera_batch=()).rounded(torch.float32)
names = ("keypoints", "pose", "root", "intrinsics")
inputs = [problem.tensor(name, torch.float32, device) for name in names]
for block, collapsed, precision, _ in json.loads(sys.argv[2]):
    network = make_network(block=block)
    folded = network if collapsed else replace(network, block="relu")
    expected = oracle.refine(
        problem.keypoints, problem.pose, problem.root, network, problem.intrinsics
    )[-1]
    weights = pack(folded, torch.float32, device)
    refine = TritonRefine(weights, getattr(torch, precision), activation=block == "relu")
    errors = []
    for count in (1, 1_000_000):
        shapes = refine.candidates(count)
        # The interpreter takes its time, and warps mean nothing to it.
        for refine.shape in shapes if device == "cuda" else shapes[:1]:
            try:
                error = refine(*inputs).double().cpu().numpy() - expected
            except OutOfResources:  # a shape for larger GPUs
                continue
            errors.append(np.linalg.norm(error) / np.linalg.norm(expected - problem.pose))
    print(json.dumps(errors))
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
@pytest.mark.timeout(150)
def test_against_float64(device: str) -> None:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "TRITON_INTERPRET": str(int(device == "cpu")),
    }
    finished = subprocess.run(
        [sys.executable, "-c", CHECK, device, json.dumps(CASES)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=140,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    results = [json.loads(line) for line in finished.stdout.splitlines()]
    for (*case, limit), errors in zip(CASES, results, strict=True):
        assert errors and all(error < limit for error in errors), (case, errors)
