"""Steps that several processes take together, each on its part of every batch."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from erd_cuda.modules import ResidualRegressor
from erd_cuda.training.ranks import Ranks
from erd_cuda.training.shared_layers import BatchPart, regress_part, shared_layers
from erd_cuda.training.step import EpochSums, Phase, mean_joint_error

__all__ = ["SharedSteps"]

# Steps between two looks at whether somebody was interrupted: fractions of a second.
STEPS_UNHEEDED = 16

# Newer versions of torch warn of the old name.
_SYNCHRONISE_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


class SharedSteps:
    """One phase's steps over whole batches, equal to those of a single process up to rounding.

    Every rank has all the data and the same shuffled order, and takes its part of each batch.
    Statistics, losses and gradients are sums over the ranks, divided by the whole batch's size.
    """

    def __init__(self, phase: Phase, optimizer: torch.optim.Optimizer, ranks: Ranks) -> None:
        self._phase = phase
        self._optimizer = optimizer
        self._ranks = ranks
        self._part = BatchPart(ranks)
        self._until_heeded = 0
        # The statistics of batch normalisation are the same on all ranks as they are.
        self._model = DistributedDataParallel(
            _Part(phase, self._part),
            **{_SYNCHRONISE_BUFFERS: False},  # type: ignore[arg-type]
        )

    @contextmanager
    def epoch(self, sums: EpochSums) -> Iterator[None]:
        """For the steps of one epoch; at the end ``sums`` are those over all ranks' parts."""
        regressor = isinstance(self._phase.module, ResidualRegressor)
        with nullcontext() if regressor else shared_layers(self._phase.module, self._part):
            yield
        for value in (sums.loss, sums.mpjpe):
            self._ranks.sum_(value)
            value /= self._ranks.size

    def take(self, batch: Tensor, sums: EpochSums) -> None:
        """Train on the samples that ``batch`` ``(B,)`` numbers.

        Until the epoch ends, ``sums`` hold what this rank's part alone suggests.

        Raises:
            KeyboardInterrupt: in all ranks, if one of them was interrupted.
        """
        if self._until_heeded == 0:
            self._ranks.stop_together()
            self._until_heeded = STEPS_UNHEEDED
        self._until_heeded -= 1
        phase, size = self._phase, self._ranks.size
        self._part.total = len(batch)
        rows = batch[self._part.rows]
        error = self._model(phase.inputs.index_select(0, rows))
        error = error - phase.targets.index_select(0, rows)
        # What is to be added up over the ranks, DistributedDataParallel averages.
        loss = error.square().sum() * (size / (len(batch) * error.shape[1]))
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        with torch.no_grad():
            sums.loss += loss
            if len(rows) > 0:
                share = size * len(rows) / len(batch)
                sums.mpjpe += mean_joint_error(error, phase) * share


class _Part(nn.Module):
    """The phase's network on this rank's rows, as DistributedDataParallel wants it."""

    def __init__(self, phase: Phase, part: BatchPart) -> None:
        super().__init__()
        self.module = phase.module
        self._forward = phase.forward
        self._part = part

    def forward(self, inputs: Tensor) -> Tensor:
        if isinstance(self.module, ResidualRegressor):
            return regress_part(self.module, inputs, self._part)
        return self._forward(inputs)
