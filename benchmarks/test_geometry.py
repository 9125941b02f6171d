"""project, residual and solve_root against their composition from torch's operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peers
import pytest
import torch
import torch_layers
from torch import Tensor

import erd_cuda

STD = torch.linspace(60.0, 140.0, 34).view(17, 2)


def solve_root_fused(keypoints: Tensor, pose: Tensor, _: Tensor, camera: Tensor) -> Tensor:
    root = erd_cuda.solve_root(keypoints, pose, camera)
    assert isinstance(root, Tensor)
    return root


#: Functions of keypoints, pose, root and intrinsics: (op, peer, tolerance in px or mm).
PAIRS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], float]] = {
    "project": (
        lambda k, p, r, c: erd_cuda.project(p, r, c),
        lambda k, p, r, c: torch_layers.project(p, r, c),
        1e-3,
    ),
    "residual": (
        lambda k, p, r, c: erd_cuda.residual(k, p, r, c, STD),
        lambda k, p, r, c: torch_layers.residual(k, p, r, c, std=STD),
        1e-4,
    ),
    "solve_root": (
        solve_root_fused,
        lambda k, p, r, c: peers.solve_root(k, p, c),
        0.1,
    ),
}


@pytest.mark.parametrize("contender", ["fused", "eager"])
@pytest.mark.parametrize("op", sorted(PAIRS))
def test_forward(
    op: str, contender: str, problems: list[list[Tensor]], measure: Any, benchmark: Any
) -> None:
    benchmark.group = op
    fused, eager, tolerance = PAIRS[op]
    with torch.inference_mode():
        torch.testing.assert_close(fused(*problems[0]), eager(*problems[0]), rtol=0, atol=tolerance)
        measure(fused if contender == "fused" else eager, problems)


@pytest.mark.parametrize("contender", ["fused", "eager"])
@pytest.mark.parametrize("op", sorted(PAIRS))
def test_backward(
    op: str, contender: str, problems: list[list[Tensor]], measure: Any, benchmark: Any
) -> None:
    """Forward and backward to the pose, as in training."""
    benchmark.group = f"{op} with gradient"
    fused, eager, _ = PAIRS[op]

    def gradient(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        keypoints, pose, root, camera = inputs
        leaf = pose.detach().requires_grad_()
        (result,) = torch.autograd.grad(function(keypoints, leaf, root, camera).sum(), leaf)
        return result

    torch.testing.assert_close(
        gradient(fused, *problems[0]), gradient(eager, *problems[0]), rtol=1e-3, atol=1e-3
    )
    chosen = fused if contender == "fused" else eager
    measure(lambda *inputs: gradient(chosen, *inputs), problems)
