"""Four stages of refinement: the fused op against torch eager, collapsed and not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peers import Layers
from problems import make_network, pack
from torch import Tensor
from torch_layers import PaperLayers

import erd_cuda


def contenders(block: str) -> dict[str, Callable[..., Tensor]]:
    """Functions of keypoints, pose, root and intrinsics with one answer."""
    network = make_network(block=block)
    weights, layers = pack(network, torch.float32), PaperLayers(network)
    functions: dict[str, Callable[..., Tensor]] = {
        "fused": lambda *inputs: erd_cuda.refine(*inputs, weights),
        "eager": layers,
    }
    if block == "linear":
        functions["eager_collapsed"] = Layers(weights)
    return functions


@pytest.mark.parametrize(
    ("block", "contender"),
    [
        ("linear", "fused"),
        ("linear", "eager"),
        ("linear", "eager_collapsed"),
        ("relu", "fused"),
        ("relu", "eager"),
    ],
)
def test_refine(
    block: str, contender: str, problems: list[list[Tensor]], measure: Any, benchmark: Any
) -> None:
    functions = contenders(block)
    benchmark.group = f"refine {block}"
    few = [values[:256] for values in problems[0]]
    with torch.inference_mode():
        answer = functions["fused"](*few)
        assert (answer - few[1]).norm(dim=-1).mean() > 10  # mm: the stages do something
        torch.testing.assert_close(functions[contender](*few), answer, rtol=0, atol=0.05)
        measure(functions[contender], problems)


@pytest.mark.parametrize("root_mode", ["solve", "solve_each_stage"])
def test_refine_with_solved_root(
    root_mode: str, problems: list[list[Tensor]], measure: Any, benchmark: Any
) -> None:
    weights = pack(make_network(), torch.float32)
    benchmark.group = "refine linear, root solved"

    def fused(keypoints: Tensor, pose: Tensor, intrinsics: Tensor) -> Tensor:
        return erd_cuda.refine(keypoints, pose, root_mode, intrinsics, weights)

    inputs = [[keypoints, pose, camera] for keypoints, pose, _, camera in problems]
    with torch.inference_mode():
        assert fused(*inputs[0]).isfinite().all()
        measure(fused, inputs)
