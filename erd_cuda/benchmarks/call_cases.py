"""What a call costs before it computes anything: single poses, beside torch's own addition."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import erd_cuda
from erd_cuda.benchmarks import geometry_cases
from erd_cuda.benchmarks.cases import Case, Plan, Ready, accept, rotating
from erd_cuda.benchmarks.inputs import JOINTS, STAGES, TOLERANCE, WIDTH, increment_error
from erd_cuda.benchmarks.problems import make_network, pack
from erd_cuda.benchmarks.refine_cases import inputs_of
from erd_cuda.benchmarks.refine_kernels import refine_kernel

Function = Callable[..., Tensor]

SUITE = "one call"


def functions(device: str) -> dict[str, Function]:
    """Calls with one pose, by name; of keypoints, pose, root and camera."""
    weights = pack(make_network(JOINTS, STAGES, WIDTH), torch.float32, device)
    operator = refine_kernel(weights)
    assert operator is not None
    return {
        "torch.add": lambda k, p, r, c: torch.add(r, 1.0),
        "project": geometry_cases.functions("project", device)[0],
        "solve_root": geometry_cases.functions("solve_root", device)[0],
        "refine": lambda k, p, r, c: erd_cuda.refine(k, p, r, c, weights),
        "refine, the raw operator": operator,
    }


def cases(plan: Plan, device: str) -> list[Case]:
    """One group."""
    return [
        Case(SUITE, name, partial(_prepare, name, function, device), 1)
        for name, function in functions(device).items()
    ]


def _prepare(name: str, function: Function, device: str) -> Ready:
    inputs = inputs_of(1, device)
    result, values = function(*inputs[0]), inputs[0]
    if name.startswith("refine"):
        network = make_network(JOINTS, STAGES, WIDTH)
        error = accept(increment_error(result, values, network)[0], TOLERANCE["fp32"])
    elif name in geometry_cases.FLOATS:
        error = accept(geometry_cases.error(name, result, values), geometry_cases.TOLERANCE)
    else:
        error = 0.0
    if device == "cpu":
        return rotating(function, inputs, False, error)

    # The host's part only: no call waits for the GPU, and the queue never gets full.
    def calls() -> None:
        torch.cuda.synchronize()
        for values in inputs:
            function(*values)

    return Ready(calls, len(inputs), error)
