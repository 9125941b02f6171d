"""One library for every torch from 2.10 on: the library as built, in other environments' torch.

``ERD_OTHER_PYTHONS`` names their interpreters, separated by colons, say one with torch 2.10 and
CUDA and one with the newest; each needs torch, numpy, safetensors and tqdm.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import erd_cuda

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = [name for name in os.environ.get("ERD_OTHER_PYTHONS", "").split(":") if name]

# Everything that goes through the library: the model's fused stages, with gradients.
PROGRAM = """
import json, sys, torch, erd_cuda
torch.manual_seed(0)
erd = erd_cuda.ERD.from_pretrained("cmu17-given-root")
pose = 200 * torch.randn(5, 17, 3)
pose[:, 0] = 0
root, camera = torch.tensor([0.0, 0.0, 4000.0]), torch.tensor([1145.0, 1143.0, 512.0, 515.0])
keypoints = erd_cuda.project(pose + 20 * torch.randn_like(pose), root, camera)
pose.requires_grad_()
refined = erd_cuda.refine(keypoints, pose, root, camera, erd.packed())
refined.sum().backward()
print(json.dumps([torch.__version__, refined.flatten().tolist(), pose.grad.flatten().tolist()]))
"""


@pytest.mark.skipif(not PYTHONS, reason="needs ERD_OTHER_PYTHONS, other interpreters with torch")
@pytest.mark.parametrize("python", PYTHONS)
def test_the_library_runs_in_another_torch(python: str) -> None:
    done = subprocess.run(
        [python, "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    version, refined, gradient = json.loads(done.stdout.splitlines()[-1])
    assert version != torch.__version__

    here = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, cwd=ROOT
    )
    _, expected, expected_gradient = json.loads(here.stdout.splitlines()[-1])
    torch.testing.assert_close(torch.tensor(refined), torch.tensor(expected), rtol=0, atol=1e-2)
    torch.testing.assert_close(
        torch.tensor(gradient), torch.tensor(expected_gradient), rtol=1e-3, atol=1e-3
    )
    assert erd_cuda.build_info()["torch_floor"] == "2.10"
