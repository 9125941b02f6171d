"""The bundled model from keypoints to refined poses, beside the same layers in torch eager."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, lru_cache

import torch
from torch import Tensor

import erd_cuda
from erd_cuda.benchmarks.cases import OURS, Case, Plan, Ready, checked
from erd_cuda.benchmarks.inputs import input_sets, spread_rows
from erd_cuda.data import load_dataset
from erd_cuda.demo.speed import eager_stages, random_input

MODEL = "cmu17-given-root"
#: Largest error over the poses, by their norms.
TOLERANCE = 1e-4


@cache
def _model(device: str) -> erd_cuda.ERD:
    return erd_cuda.ERD.from_pretrained(MODEL, device)


@lru_cache(maxsize=1)
def _inputs(batch: int, device: str) -> list[list[Tensor]]:
    """Keypoints of people, since a lifter makes nothing of random points."""
    dataset, model = load_dataset("synthetic", "test", stride=40), _model("cpu")
    sets = min(8, input_sets(batch))
    drawn = [random_input(model, dataset, batch, seed) for seed in range(sets)]
    return [[values.to(device) for values in inputs] for inputs in drawn]


@lru_cache(maxsize=1)
def _reference() -> erd_cuda.ERD:
    return erd_cuda.ERD.from_pretrained(MODEL).double()


def cases(plan: Plan, device: str) -> list[Case]:
    """All of them, a group after the other."""

    def ours() -> Callable[..., Tensor]:
        model = _model(device)
        return lambda k, p, r, c: model(k, c, r)

    def eager() -> Callable[..., Tensor]:
        model = copy.deepcopy(_model(device))
        return lambda k, p, r, c: eager_stages(model, k, model.lift(k), r, c)

    def compiled() -> Callable[..., Tensor]:
        return torch.compile(eager(), fullgraph=True, **plan.compiler)

    made = {OURS: ours, "torch eager": eager, "torch.compile": compiled}

    def prepare(make: Callable[[], Callable[..., Tensor]], batch: int) -> Ready:
        return checked(make(), _inputs(batch, device), error, TOLERANCE, graph=False)

    return [
        Case(
            "ERD.forward",
            name,
            lambda make=make, batch=batch: prepare(make, batch),  # type: ignore[misc]
            batch,
        )
        for batch in plan.forward
        for name, make in made.items()
    ]


def error(result: Tensor, inputs: list[Tensor]) -> float:
    """Error over the poses (norms) of some poses, by the same layers in float64."""
    rows = spread_rows(len(result)).to(result.device)
    keypoints, _, root, camera = (t[rows].double().cpu() for t in inputs)
    model = _reference()
    expected = eager_stages(model, keypoints, model.lift(keypoints), root, camera)
    return float((result[rows].double().cpu() - expected).norm() / expected.norm())
