"""refine's working set does not grow with the batch: 64 MB at most beyond inputs and outputs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

LIMIT_MB = 64
MILLION = 1_048_576

# In a process of its own, so that no other test's memory counts. VmHWM is the highest resident
# size so far; writing 5 to clear_refs forgets the past.
PROGRAM = """
import re, sys
from pathlib import Path
import torch
import erd_cuda
from erd_cuda.modules.packed import PackedRegressors

def megabytes(field):
    status = Path("/proc/self/status").read_text()
    return int(re.search(field + r":\\s+(\\d+) kB", status).group(1)) / 1024

batch, width, layout, root_mode = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
torch.manual_seed(0)
K, J = 4, 17
weights = PackedRegressors(
    block="linear", features="residual", mean2d=torch.zeros(J, 2), w_hidden=None, b_hidden=None,
    w_in=torch.randn(K, width, 2 * J) * 0.01, b_in=torch.randn(K, width) * 0.1,
    w_out=torch.randn(K, 3 * J, width), b_out=torch.randn(K, 3 * J))

def inputs(n):
    pose = torch.empty(n, J, 3).normal_().mul_(300)
    root = torch.empty(n, 3).normal_().mul_(300)
    root[:, 2] += 4000
    camera = torch.tensor([1145.0, 1143.0, 512.0, 515.0])
    confidence = None
    if layout == "detector":  # x, y, score side by side: both views are strided
        detections = torch.empty(n, J, 3).uniform_(0.1, 1.0)
        keypoints, confidence = detections[..., :2], detections[..., 2]
        keypoints.mul_(1000)
    else:
        keypoints = torch.empty(n, J, 2).uniform_(0.0, 1000.0)
    return keypoints, pose, root if root_mode == "given" else root_mode, camera, weights, confidence

erd_cuda.refine(*inputs(4096))
call = inputs(batch)
Path("/proc/self/clear_refs").write_text("5")
before = megabytes("VmRSS")
result = erd_cuda.refine(*call)
growth = megabytes("VmHWM") - before
assert result.shape == (batch, J, 3) and bool(result[-1].isfinite().all())
print("growth", growth, "output", result.numel() * 4 / 2**20)
"""


def extra_megabytes(batch: int, width: int, layout: str, root_mode: str) -> float:
    """Peak growth during the call, less the output."""
    arguments = [str(batch), str(width), layout, root_mode]
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert finished.returncode == 0, finished.stderr
    found = re.search(r"growth (\S+) output (\S+)", finished.stdout)
    assert found, finished.stdout
    growth, output = (float(value) for value in found.groups())
    assert growth > 0.9 * output  # else the measurement is blind
    return growth - output


pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs /proc/self/clear_refs (Linux)"
)


def test_a_million_poses_at_full_width() -> None:
    assert extra_megabytes(MILLION, 256, "plain", "given") <= LIMIT_MB


@pytest.mark.parametrize("root_mode", ["given", "solve", "solve_each_stage"])
def test_strided_detections_are_not_copied(root_mode: str) -> None:
    """Narrow layers keep the test short: what could grow here are copies of the inputs."""
    assert extra_megabytes(MILLION, 16, "detector", root_mode) <= LIMIT_MB


def test_growth_does_not_depend_on_the_batch() -> None:
    small = extra_megabytes(65_536, 256, "plain", "given")
    large = extra_megabytes(262_144, 256, "plain", "given")
    assert large - small <= 8
