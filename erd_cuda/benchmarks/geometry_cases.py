"""project, residual and solve_root beside torch's formulas, compiled ones, and least squares."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import erd_cuda
from erd_cuda.benchmarks import ceiling_cases, oracle, peers, torch_layers
from erd_cuda.benchmarks.cases import OURS, Case, Plan, Ready, checked
from erd_cuda.benchmarks.inputs import JOINTS, spread_rows
from erd_cuda.benchmarks.refine_cases import inputs_of

Function = Callable[..., Tensor]

#: Floats of a pose that each operator must read and write.
FLOATS = {
    "project": 3 * JOINTS + 3 + 2 * JOINTS,
    "residual": 2 * JOINTS + 3 * JOINTS + 3 + 2 * JOINTS,
    "solve_root": 2 * JOINTS + 3 * JOINTS + 3,
}
#: Largest error over the result, by their norms.
TOLERANCE = 1e-4


def spread(device: str) -> Tensor:
    """Of the residuals, (J, 2) px."""
    return torch.linspace(60.0, 140.0, 2 * JOINTS, device=device).view(JOINTS, 2)


def functions(op: str, device: str) -> tuple[Function, Function]:
    """The operator and its composition from torch's, of keypoints, pose, root and camera."""
    std = spread(device)
    pairs: dict[str, tuple[Function, Function]] = {
        "project": (
            lambda k, p, r, c: erd_cuda.project(p, r, c),
            lambda k, p, r, c: torch_layers.project(p, r, c),
        ),
        "residual": (
            lambda k, p, r, c: erd_cuda.residual(k, p, r, c, std),
            lambda k, p, r, c: torch_layers.residual(k, p, r, c, std=std),
        ),
        "solve_root": (
            lambda k, p, r, c: erd_cuda.solve_root(k, p, c),
            lambda k, p, r, c: peers.solve_root(k, p, c),
        ),
    }
    return pairs[op]


def cases(plan: Plan, device: str) -> list[Case]:
    """All of them, a group after the other."""
    found = []
    for op in FLOATS:
        for batch in plan.geometry:
            found += ceiling_cases.copying(plan, device, op, batch)
            for name, make in _contenders(op, device, plan).items():
                found.append(_case(op, batch, name, make, device))
    return found


def _contenders(op: str, device: str, plan: Plan) -> dict[str, Callable[[], Function]]:
    ours, eager = functions(op, device)
    options = plan.compiler | ({"mode": "reduce-overhead"} if device == "cuda" else {})
    if "backend" in options:
        options = plan.compiler
    made: dict[str, Callable[[], Function]] = {
        OURS: lambda: ours,
        "torch eager": lambda: eager,
        "torch.compile": lambda: torch.compile(eager, fullgraph=True, **options),
    }
    if op == "solve_root":
        made["torch.linalg.lstsq"] = lambda: lambda k, p, r, c: peers.lstsq_root(k, p, c)
        made["torch.linalg.svd"] = lambda: lambda k, p, r, c: peers.svd_root(k, p, c)
    return made


def _case(op: str, batch: int, name: str, make: Callable[[], Function], device: str) -> Case:
    def prepare() -> Ready:
        # torch's own graphs are captured by the compiler.
        return checked(
            make(),
            inputs_of(batch, device),
            lambda result, values: error(op, result, values),
            TOLERANCE,
            graph=name == OURS,
        )

    return Case(op, name, prepare, batch, bytes=4.0 * FLOATS[op] * batch)


def error(op: str, result: Tensor, inputs: list[Tensor]) -> float:
    """Error over result (norms) of some poses, by the float64 oracle."""
    rows = spread_rows(len(result)).to(result.device)
    keypoints, pose, root = (t[rows].double().cpu().numpy() for t in inputs[:3])
    camera = inputs[3].double().cpu().numpy()
    expected = {
        "project": lambda: oracle.project(pose, root, camera),
        "residual": lambda: oracle.residual(
            keypoints, pose, root, camera, std=spread("cpu").double().numpy()
        ),
        "solve_root": lambda: oracle.solve_root(keypoints, pose, camera)[0],
    }[op]()
    off = result[rows].double().cpu().numpy() - expected
    return float(np.linalg.norm(off) / np.linalg.norm(expected))
