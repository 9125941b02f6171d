"""Times the machine's ceilings."""

from __future__ import annotations

from collections.abc import Callable

from erd_cuda.benchmarks.cases import Case
from erd_cuda.benchmarks.ceiling_cases import cases

__all__ = ["cases"]


def test_ceilings(case: Case, turn: int, take_turn: Callable[[Case, int], None]) -> None:
    take_turn(case, turn)
