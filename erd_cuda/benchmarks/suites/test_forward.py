"""Times the whole model beside torch eager."""

from __future__ import annotations

from collections.abc import Callable

from erd_cuda.benchmarks.cases import Case
from erd_cuda.benchmarks.forward_cases import cases

__all__ = ["cases"]


def test_forward(case: Case, turn: int, take_turn: Callable[[Case, int], None]) -> None:
    take_turn(case, turn)
