"""Times refine and its peers."""

from __future__ import annotations

from collections.abc import Callable

from erd_cuda.benchmarks.cases import Case
from erd_cuda.benchmarks.refine_cases import cases

__all__ = ["cases"]


def test_refine(case: Case, turn: int, take_turn: Callable[[Case, int], None]) -> None:
    take_turn(case, turn)
