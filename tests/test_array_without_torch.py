"""erd_cuda.array where torch is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from array_calls import array_call, as_arrays, same_bits
from op_calls import Case

import erd_cuda.array as ea
from erd_cuda.benchmarks.problems import make_problem

ROOT = Path(ea.__file__).parents[2]

# An import of torch fails here as it does where it is not installed.
BLOCKED = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoTorch())
"""


def run_without_torch(program: str, directory: Path) -> str:
    result = subprocess.run(
        [sys.executable, "-c", BLOCKED + program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_torch_is_really_blocked(tmp_path: Path) -> None:
    program = "try: import erd_cuda; erd_cuda.project\nexcept ModuleNotFoundError as e: print(e)"
    assert run_without_torch(program, tmp_path) == "No module named 'torch'"


def test_everything_works(tmp_path: Path) -> None:
    """The same answer as here, where torch is loaded."""
    case = Case("refine", "opencv", "solve")
    arrays = as_arrays(case.tensors(make_problem((64,), model="opencv")))
    np.savez(tmp_path / "problem.npz", **arrays)
    program = """
import numpy as np
import erd_cuda, erd_cuda.array as ea
arrays = dict(np.load("problem.npz"))
camera = ea.Camera(arrays["intrinsics"], arrays["distortion"], "opencv")
keypoints, pose, confidence = arrays["keypoints"], arrays["pose"], arrays["confidence"]
root, status = ea.solve_root(keypoints, pose, camera, confidence, return_status=True)
assert (status == ea.RootStatus.OK).all() and ea.RootStatus is erd_cuda.RootStatus
ea.project(pose, root, camera), ea.residual(keypoints, pose, root, camera)
weights = ea.load_weights(erd_cuda.bundled_models()[0], "float64")
np.save("result.npy", ea.refine(keypoints, pose, "solve", camera, weights, confidence))
print(ea.MIN_DEPTH == erd_cuda.MIN_DEPTH, not any(n.startswith("torch") for n in sys.modules))
"""
    assert run_without_torch(program, tmp_path) == "True True"
    weights = ea.load_weights(ea.bundled_models()[0], "float64")
    assert same_bits(np.load(tmp_path / "result.npy"), array_call(case, arrays, weights))


def test_importing_it_imports_no_torch_that_is_there(tmp_path: Path) -> None:
    """Nor CuPy: both take seconds."""
    program = "import sys, erd_cuda.array; print({'torch', 'cupy'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert result.stdout.strip() == "set()", result.stderr
