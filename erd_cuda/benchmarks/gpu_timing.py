"""Times functions on a GPU, in turn, over inputs that rotate.

A sample is the time of one pass over all input sets, between two CUDA events; where a function can
be captured, the pass is one replay of a CUDA graph of it. On a CPU the same code uses the clock,
which is only to see that the benchmarks still run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Any]
Inputs = Sequence[Sequence[Tensor]]


@dataclass(frozen=True)
class Timing:
    """Seconds a call, over the samples.

    Attributes:
        median, low, high: the median and the quartiles.
        samples: how many there were.
    """

    median: float
    low: float
    high: float
    samples: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        if len(seconds) == 1:
            return cls(seconds[0], seconds[0], seconds[0], 1)
        low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(median, low, high, len(seconds))

    def figures(self) -> dict[str, float]:
        """For the JSON file: microseconds."""
        named = {"us": self.median, "us_low": self.low, "us_high": self.high}
        return {name: round(1e6 * t, 3) for name, t in named.items()} | {"samples": self.samples}


def captured(function: Function, inputs: Inputs) -> Callable[[], Any]:
    """One CUDA graph of the calls on all inputs, one after the other; returns the last's result."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for values in inputs[:2]:
            function(*values)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for values in inputs[:-1]:
            # What they return is dropped, and its memory is the next one's.
            function(*values)
        result = function(*inputs[-1])

    def replay(_: Inputs = inputs) -> Any:
        # The closure keeps the graph, the result's memory and the inputs'.
        graph.replay()
        return result

    return replay


class Stopwatch:
    """Times passes of one function over its inputs.

    Args:
        function: called with one set of inputs.
        inputs: on one device, none of them zero.
        graph: replay a captured pass instead of calling; on a GPU only.
        passes: per sample.
    """

    def __init__(
        self, function: Function, inputs: Inputs, graph: bool = True, passes: int = 1
    ) -> None:
        for values in inputs:
            for value in values:
                assert value.any(), "a benchmark of zeros measures a special case"
        self.on_gpu = any(value.is_cuda for value in inputs[0])
        self.calls = len(inputs) * passes
        if graph and self.on_gpu:
            once = captured(function, inputs)
        else:

            def once() -> Any:
                for values in inputs[:-1]:
                    function(*values)
                return function(*inputs[-1])

        self._pass, self._passes = once, passes

    def last_result(self) -> Any:
        """Of a pass as it is timed, what it computes from the last set of inputs.

        What an earlier pass has left in the result's memory is overwritten first.
        """
        result = self._pass()
        if isinstance(result, Tensor):
            result.fill_(float("nan"))
        return self._pass()

    def timed_pass(self) -> None:
        """All calls, to their end: for those who bring a clock of their own."""
        for _ in range(self._passes):
            self._pass()
        if self.on_gpu:
            torch.cuda.synchronize()

    def sample(self) -> float:
        """Seconds a call, after a pass that warms up caches and clocks."""
        self._pass()
        if not self.on_gpu:
            begin = time.perf_counter()
            for _ in range(self._passes):
                self._pass()
            return (time.perf_counter() - begin) / self.calls
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(self._passes):
            self._pass()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) * 1e-3 / self.calls


def in_turn(watches: Mapping[str, Stopwatch], rounds: int, seconds: float) -> dict[str, Timing]:
    """Samples of all, a round at a time; at least three rounds, no new one after `seconds`."""
    taken: dict[str, list[float]] = {name: [] for name in watches}
    end = time.monotonic() + seconds
    for done in range(rounds):
        if done >= 3 and time.monotonic() > end:
            break
        # Neighbours in time change sides.
        order = list(watches) if done % 2 == 0 else list(watches)[::-1]
        for name in order:
            taken[name].append(watches[name].sample())
    return {name: Timing.of(samples) for name, samples in taken.items()}


def host_seconds(function: Callable[[], object], calls: int, rounds: int = 7) -> Timing:
    """Seconds that a call keeps the host busy, whatever the GPU still has to do.

    Args:
        calls: between two synchronisations; a few hundred, or a full queue of launches makes the
            host wait for the GPU.
    """
    function()
    samples = []
    for _ in range(rounds):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(calls):
            function()
        samples.append((time.perf_counter() - begin) / calls)
    return Timing.of(samples)


def lost_context() -> str | None:
    """What ended the CUDA context of this process, or None while there is one or none was made."""
    if not torch.cuda.is_initialized():
        return None
    reason = None
    # What only one call got wrong is gone when the next one asks.
    for _ in range(2):
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
        else:
            return None
    return reason


class Clock:
    """How much of a run's time is left."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self._end - time.monotonic()


@contextmanager
def memory_returned() -> Iterator[None]:
    """Gives what the block has freed back to the GPU, for the next one."""
    try:
        yield
    finally:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
