"""What the paper does not try, measured beside it: other stages, and things a user may know."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from erd_cuda.training import RECIPES

from .bench import ROOTS, Bench, Experiment, main_job
from .jobs import DET2D, DET2D_BARE, GT2D, INPUTS, LENS2D, LENS2D_PINHOLE, Job
from .tables import Cell, Spread, Table

__all__ = ["BEYOND"]

#: Settings of the stages besides the paper's.
_STAGES: dict[str, dict[str, Any]] = {
    "ReLU blocks": {"block": "relu"},
    "residual+pose": {"features": "residual+pose"},
}
_WEIGHTS = "confidence weights"
_LIMIT = RECIPES["best"]["residual_limit"]
_LIMITED = f"residual limit {_LIMIT:g} px"
_BEST = f"{_WEIGHTS}, {_LIMITED}"
_BARE = "confidences thrown away"


def _rows(kind: str, root: str) -> dict[str, Job]:
    """The rows of one input and root by their titles, the paper's first."""
    paper = main_job(kind, root=root)
    rows = {"the paper's": paper}
    rows |= {title: replace(paper, **change) for title, change in _STAGES.items()}
    rows[_LIMITED] = replace(paper, residual_limit=_LIMIT)
    if kind == DET2D:
        rows[_WEIGHTS] = replace(paper, confidence_weights=True)
        rows[_BEST] = replace(rows[_WEIGHTS], residual_limit=_LIMIT)
        rows[_BARE] = replace(paper, input=DET2D_BARE)
    return rows


def _lens_rows(root: str) -> dict[str, Job]:
    return {
        "lens, known": main_job(LENS2D, root=root),
        "lens, taken for a pinhole": main_job(LENS2D_PINHOLE, root=root),
    }


def _table(bench: Bench) -> Table:
    last = bench.schedule.stages
    shown = sorted({0, 1, min(2, last), last})
    table = Table(
        "beyond",
        "Beyond the paper: MPJPE, mm, and change of the last stage against the first row, %",
        [
            *("input", "root", "method"),
            *("lifter" if k == 0 else f"stage {k}" for k in shown),
            "change",
        ],
        note="Known size: in the test, the model is told the length of each person's bones. "
        f"--recipe best is stage 2 of '{_BEST}', of '{_LIMITED}' where the 2D has no confidences.",
    )
    for kind in INPUTS:
        for root in ROOTS:
            jobs = _rows(kind, root)
            rows = {title: _by_stage(bench, job) for title, job in jobs.items() if bench.has(job)}
            told = [
                bench.runner.with_known_size(each)
                for each in bench.seeds(main_job(kind, root=root))
            ]
            rows["known size"] = [Spread(values) for values in zip(*told, strict=True)]
            _add_rows(table, kind, root, rows, shown)
    for root in ROOTS:
        jobs = _lens_rows(root)
        if all(bench.has(job) for job in jobs.values()):
            rows = {title: _by_stage(bench, job) for title, job in jobs.items()}
            _add_rows(table, GT2D, root, rows, shown)
    return table


def _by_stage(bench: Bench, job: Job) -> list[Spread]:
    return [bench.stage(job, k) for k in range(bench.schedule.stages + 1)]


def _add_rows(
    table: Table, kind: str, root: str, rows: dict[str, list[Spread]], shown: list[int]
) -> None:
    first = next(iter(rows.values()))
    for title, errors in rows.items():
        change: Cell = None
        if errors is not first:
            ratio = errors[-1] / first[-1]
            change = Spread(tuple(100 * (value - 1) for value in ratio.values))
        table.add(kind, ROOTS[root], title, *(errors[k] for k in shown), change)


BEYOND = Experiment(
    "Beyond the paper",
    tuple(
        job
        for root in ROOTS
        for rows in (_rows(GT2D, root), _rows(DET2D, root), _lens_rows(root))
        for job in rows.values()
    ),
    _table,
)
