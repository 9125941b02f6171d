"""Training steps on a GPU as a CUDA graph: one launch from Python instead of some fifty.

Not yet run on a GPU: tested with a graph on the CPU that plays back the same calls.
"""

from __future__ import annotations

import torch
from torch import Tensor

from erd_cuda.training.step import EpochSums, Phase, take_step

__all__ = ["CapturedSteps"]

WARM_UP_STEPS = 3


class CapturedSteps:
    """The full batches of one phase, from the gathering of the batch to Adam, captured once.

    The phase's first three full batches run as they are, on a side stream: they create the
    optimiser's state and make the libraries choose their kernels, and they are steps of the
    training like all others. Then one step is captured on that stream, and every further full batch
    is a replay. All it works on stays in place: the epoch's order and the rows of the next batch,
    which the step itself moves on, the learning rate, a tensor, and the sums. Dropout draws from
    the device's default generator, which a graph advances at every replay as a step would.
    """

    takes_smaller_batches = False

    def __init__(self, phase: Phase, optimizer: torch.optim.Optimizer) -> None:
        device = phase.inputs.device
        self.sums = EpochSums(device)
        self._phase = phase
        self._optimizer = optimizer
        self._order = torch.zeros(len(phase.inputs), dtype=torch.int64, device=device)
        self._first_rows = torch.arange(phase.batch_size, device=device)
        self._rows = self._first_rows.clone()
        self._side_stream = torch.cuda.Stream(device)
        self._warm_up_steps = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def begin_epoch(self, order: Tensor) -> None:
        """Start over with the samples in a new order ``(N,)``."""
        self._order.copy_(order)
        self._rows.copy_(self._first_rows)
        self.sums.clear()

    def step(self) -> None:
        """Train on the next full batch; nothing waits for the GPU."""
        if self._graph is None and self._warm_up_steps == WARM_UP_STEPS:
            self._graph = self._capture()
        if self._graph is not None:
            self._graph.replay()
            return
        self._warm_up_steps += 1
        stream = torch.cuda.current_stream(self._order.device)
        self._side_stream.wait_stream(stream)
        with torch.cuda.stream(self._side_stream):
            self._take_next_batch()
        stream.wait_stream(self._side_stream)

    def _capture(self) -> torch.cuda.CUDAGraph:
        # Gradients that the graph finds missing are allocated in its own memory.
        self._optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        # The stream is named, because torch's own for captures stays on the GPU of the first one.
        device = self._order.device
        with torch.cuda.device(device), torch.cuda.graph(graph, stream=self._side_stream):
            self._take_next_batch()
        return graph

    def _take_next_batch(self) -> None:
        batch = self._order.index_select(0, self._rows)
        take_step(self._phase, self._optimizer, batch, self.sums)
        self._rows.add_(self._phase.batch_size)
