"""Training steps on a GPU as CUDA graphs: one launch from Python for many steps.

Not yet run on a GPU: tested with graphs on the CPU that play back the same calls, and the kernels
on an emulated GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from erd_cuda.training.fused import FusedSteps
from erd_cuda.training.step import EpochSums, Phase, take_step

__all__ = ["CapturedSteps"]

WARM_UP_STEPS = 3
#: Steps of a graph: what a replay costs Python is shared by so many. Not tuned on a GPU yet.
STEPS_IN_A_RUN = 32


class CapturedSteps:
    """The full batches of one phase, from the gathering of the batch to Adam, as graphs.

    The phase's first three full batches run as they are, on a side stream: they create the
    optimiser's state and make the libraries choose their kernels, and they are steps of the
    training like all others. Then runs of 32 steps are replays of one graph, which is captured on
    that stream, and the full batches that an epoch has left are replays of a graph of a single
    step. A last, smaller batch runs as it is. All they work on stays in place: the epoch's order
    and the place in it, which a step itself moves on, the learning rate, a tensor, and the sums.

    A step of a stage is one operator call, three kernels (`FusedSteps`); its dropout has its seeds
    from the epoch's beginning. That of another network is `take_step`, some fifty kernels; its
    dropout draws from the device's default generator, which a graph advances at every replay as its
    steps would.

    Args:
        phase: what to train.
        optimizer: `make_optimizer`'s.

    Attributes:
        sums: the epoch's, so far.
    """

    def __init__(self, phase: Phase, optimizer: torch.optim.Optimizer) -> None:
        device = phase.inputs.device
        self._phase = phase
        self._optimizer = optimizer
        self._steps: FusedSteps | _GatheredSteps = (
            FusedSteps(phase, optimizer)
            if FusedSteps.can_run(phase)
            else _GatheredSteps(phase, optimizer)
        )
        self.sums = self._steps.sums
        self._device = device
        self._side_stream = torch.cuda.Stream(device)
        self._warm_up_steps = 0
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._full_batches = self._rest = 0

    def begin_epoch(self, order: Tensor) -> None:
        """Start over with the samples in a new order ``(N,)``."""
        self._steps.begin_epoch(order)
        self._full_batches, self._rest = divmod(len(order), self._phase.batch_size)

    def run(self) -> int:
        """Train on the next batch or batches; returns how many. Nothing waits for the GPU."""
        if self._full_batches == 0:
            self._steps.take(self._rest)
            return 1
        if self._warm_up_steps < WARM_UP_STEPS:
            self._warm_up_steps += 1
            self._warm_up()
            steps = 1
        else:
            steps = STEPS_IN_A_RUN if self._full_batches >= STEPS_IN_A_RUN else 1
            if steps not in self._graphs:
                self._graphs[steps] = self._capture(steps)
            self._graphs[steps].replay()
        self._full_batches -= steps
        return steps

    def _warm_up(self) -> None:
        stream = torch.cuda.current_stream(self._device)
        self._side_stream.wait_stream(stream)
        with torch.cuda.stream(self._side_stream):
            self._steps.take(self._phase.batch_size)
        stream.wait_stream(self._side_stream)

    def _capture(self, steps: int) -> torch.cuda.CUDAGraph:
        # Gradients that the graph finds missing are allocated in its own memory.
        self._optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        # The stream is named, because torch's own for captures stays on the GPU of the first one.
        with torch.cuda.device(self._device), torch.cuda.graph(graph, stream=self._side_stream):
            for _ in range(steps):
                self._steps.take(self._phase.batch_size)
        return graph


class _GatheredSteps:
    """`take_step` on batches whose samples the device looks up itself."""

    def __init__(self, phase: Phase, optimizer: torch.optim.Optimizer) -> None:
        device = phase.inputs.device
        self.sums = EpochSums(device)
        self._phase = phase
        self._optimizer = optimizer
        self._order = torch.zeros(len(phase.inputs), dtype=torch.int64, device=device)
        self._first_rows = torch.arange(phase.batch_size, device=device)
        self._rows = self._first_rows.clone()

    def begin_epoch(self, order: Tensor) -> None:
        """Start over with the samples in a new order ``(N,)``."""
        self._order.copy_(order)
        self._rows.copy_(self._first_rows)
        self.sums.clear()

    def take(self, rows: int) -> None:
        """Train on the next ``rows`` samples of the order."""
        batch = self._order.index_select(0, self._rows[:rows])
        take_step(self._phase, self._optimizer, batch, self.sums)
        self._rows.add_(rows)
