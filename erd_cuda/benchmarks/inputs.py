"""What every benchmark is fed with, its arithmetic, and how far a result is from the oracle."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from erd_cuda.benchmarks import oracle, torch_layers

Inputs = Sequence[Sequence[Tensor]]

JOINTS, WIDTH, STAGES = 17, 256, 4

#: Multiply-adds of a pose count twice; the geometry is left out.
FLOP = {
    True: 2 * STAGES * WIDTH * 5 * JOINTS,
    False: 2 * STAGES * WIDTH * (5 * JOINTS + 2 * WIDTH),
}
#: Keypoints, pose and root in, pose out, float32; the camera is shared.
BYTES = 4 * (2 * JOINTS + 3 * JOINTS + 3 + 3 * JOINTS)

#: Largest error of the increment, norm-wise, that a precision may have.
TOLERANCE = {
    "fp32": 1e-4, "auto": 1e-4, "split": 1e-4, "tf32": 5e-3, "fp16": 5e-3, "bf16": 4e-2,
}  # fmt: skip


def draw_inputs(count: int, sets: int, device: str) -> list[list[Tensor]]:
    """Sets of keypoints, pose, root and one shared camera, like problems.make_problem's."""
    generator = torch.Generator(device).manual_seed(count)
    camera = torch.tensor([1145.0, 1144.0, 512.0, 515.0], device=device)
    spread = torch.tensor([250.0, 350.0, 200.0], device=device)
    low = torch.tensor([-800.0, -600.0, 2500.0], device=device)
    high = torch.tensor([800.0, 600.0, 6000.0], device=device)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    drawn = []
    for _ in range(sets):
        pose = spread * normal(count, JOINTS, 3)
        root = low + (high - low) * torch.rand(count, 3, generator=generator, device=device)
        truth = pose + 40.0 * normal(count, JOINTS, 3)
        keypoints = torch_layers.project(truth, root, camera) + 5.0 * normal(count, JOINTS, 2)
        drawn.append([keypoints, pose, root, camera])
    return drawn


def input_sets(count: int, device: str = "cuda") -> int:
    """Enough to leave the caches together; small batches fit into a cache whatever one does."""
    enough = 60_000_000 if device == "cpu" else 150_000_000
    return max(2, min(64, enough // (BYTES * count)))


def spread_rows(count: int) -> Tensor:
    """Numbers of at most 128 poses at equal distances, the first and the last among them."""
    return torch.linspace(0, count - 1, min(count, 128), dtype=torch.float64).round().long()


def increment_error(
    result: Tensor, inputs: list[Tensor], network: oracle.Network
) -> tuple[float, float]:
    """Error over increment (norms), and mean distance of joints in mm.

    Of 128 poses at equal distances, the first and the last among them: tiles at both ends and in
    between.
    """
    rows = spread_rows(len(result)).to(result.device)
    keypoints, pose, root = (t[rows].double().cpu().numpy() for t in inputs[:3])
    expected = oracle.refine(keypoints, pose, root, network, inputs[3].double().cpu().numpy())[-1]
    error = result[rows].double().cpu().numpy() - expected
    relative = np.linalg.norm(error) / np.linalg.norm(expected - pose)
    return float(relative), float(np.linalg.norm(error, axis=-1).mean())
