"""Times the cost of a call."""

from __future__ import annotations

from collections.abc import Callable

from erd_cuda.benchmarks.call_cases import cases
from erd_cuda.benchmarks.cases import Case

__all__ = ["cases"]


def test_calls(case: Case, turn: int, take_turn: Callable[[Case, int], None]) -> None:
    take_turn(case, turn)
