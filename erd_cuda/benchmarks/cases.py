"""What a suite consists of: cases, each one contender on one problem, and how long all may take."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from erd_cuda.benchmarks.gpu_timing import Stopwatch
from erd_cuda.benchmarks.inputs import Inputs

#: The contender that all others are compared with.
OURS = "erd_cuda"
#: Batches of so many poses take up to seconds.
MANY = 10_000


class WrongResultError(Exception):
    """A contender is too far from the oracle to be timed."""


@dataclass(frozen=True)
class Ready:
    """A contender that has been checked.

    Attributes:
        run: what is timed.
        calls: of the contender that `run` makes.
        error: by how much it was off; the suite says of what.
    """

    run: Callable[[], object]
    calls: int
    error: float


@dataclass(frozen=True, eq=False)
class Case:
    """One contender on one problem.

    Attributes:
        suite: "refine", "solve_root", ...
        contender: `OURS` or the peer's name.
        prepare: makes and checks the contender; ImportError if it is missing here, ValueError if it
            has no such precision, `WrongResultError` if it is not right.
        batch: poses a call.
        precision: of the matrix products.
        block: "linear" or "relu", or "" where there is none.
        collapsed: whether a stage of the linear block is two layers instead of four.
        flop: floating-point operations a call that the method needs; 0 where nobody counts.
        bytes: that a call must read and write; 0 where nobody counts.
    """

    suite: str
    contender: str
    prepare: Callable[[], Ready]
    batch: int
    precision: str = "fp32"
    block: str = ""
    collapsed: bool = False
    flop: float = 0.0
    bytes: float = 0.0

    @property
    def group(self) -> tuple[str, str, int]:
        """Cases of one group take turns."""
        return self.suite, self.block, self.batch

    def facts(self) -> dict[str, Any]:
        """What a report has to know of it."""
        names = ("suite", "contender", "batch", "precision", "block", "collapsed", "flop", "bytes")
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        form = "collapsed" if self.collapsed else ""
        parts = [self.suite, self.block, str(self.batch), self.precision, self.contender, form]
        return "-".join(part.replace(" ", "_") for part in parts if part)


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        turns: how often each contender has its turn, the more the better it follows the drift.
        turns_of_many: the same of batches whose calls take long, `MANY` poses or more.
        seconds: a contender's turn, about; a call that takes longer is made once.
        round_seconds: the shortest time that is read off the clock.
        refine: batches of the linear and of the relu block.
        geometry: batches of project, residual and solve_root.
        forward: batches of the whole model.
        uncollapsed: whether all peers run the linear block without the collapse, too.
        ahead_of_time: whether AOTInductor is a peer, which compiles for half a minute.
        training_steps: between two readings of the clock.
        matrix, copied: size of the ceilings' matrices, and bytes of their copy.
        compiler: options of torch.compile.
    """

    turns: int
    turns_of_many: int
    seconds: float
    round_seconds: float
    refine: dict[str, tuple[int, ...]]
    geometry: tuple[int, ...]
    forward: tuple[int, ...]
    uncollapsed: bool
    ahead_of_time: bool
    training_steps: int
    matrix: int
    copied: int
    compiler: dict[str, Any]

    def turns_of(self, case: Case) -> int:
        """How often the case has its turn."""
        return self.turns_of_many if case.batch >= MANY else self.turns


_ALL = (1, 16, 200, 4096, 65_536)
_FULL = Plan(
    turns=9,
    turns_of_many=9,
    seconds=0.3,
    round_seconds=0.01,
    refine={"linear": _ALL, "relu": _ALL},
    geometry=(1, 200, 4096, 65_536),
    forward=(1, 16, 200, 4096),
    uncollapsed=True,
    ahead_of_time=True,
    training_steps=20,
    matrix=2048,
    copied=1 << 28,
    compiler={"dynamic": False},
)
PLANS = {
    "full": _FULL,
    "quick": replace(
        _FULL,
        turns=8,
        turns_of_many=4,
        seconds=0.04,
        round_seconds=0.005,
        refine={"linear": (1, 200, 4096, 65_536), "relu": (1, 4096, 65_536)},
        geometry=(65_536,),
        forward=(1, 200),
        uncollapsed=False,
        ahead_of_time=False,
        training_steps=10,
    ),
    # To see that everything runs.
    "tiny": replace(
        _FULL,
        turns=2,
        turns_of_many=2,
        seconds=0.0,
        round_seconds=0.0,
        refine={"linear": (1, 40), "relu": (3,)},
        geometry=(5,),
        forward=(2,),
        ahead_of_time=False,
        training_steps=2,
        matrix=32,
        copied=1 << 16,
        compiler={"backend": "eager"},
    ),
}


def rotating(function: Callable[..., object], inputs: Inputs, graph: bool, error: float) -> Ready:
    """Calls with one set of inputs after the other; on a GPU, a whole pass to its end.

    Args:
        graph: replay a captured pass, on a GPU.
    """
    for values in inputs:
        for value in values:
            assert value.any(), "a benchmark of zeros measures a special case"
    if inputs[0][0].is_cuda:
        watch = Stopwatch(function, inputs, graph)
        return Ready(watch.timed_pass, watch.calls, error)
    # Without a frame of Python's own around the call, which one pose would feel.
    return Ready(itertools.starmap(function, itertools.cycle(inputs)).__next__, 1, error)


def accept(error: float, tolerance: float) -> float:
    """The error, if it is small enough; NaN never is."""
    if not error <= tolerance:
        raise WrongResultError(f"error {error:.2g}, at most {tolerance:.2g} is right")
    return error


def checked(
    function: Callable[..., Tensor],
    inputs: Inputs,
    error_of: Callable[[Tensor, Any], float],
    tolerance: float,
    graph: bool = True,
) -> Ready:
    """The function ready to be timed, after two calls whose results are right.

    Args:
        error_of: of a result and the inputs it was computed from.
    """
    errors = [error_of(function(*values), values) for values in inputs[:2]]
    for error in errors:
        accept(error, tolerance)
    return rotating(function, inputs, graph, max(errors))
