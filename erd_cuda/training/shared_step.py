"""Steps that several processes take together, each on its part of every batch."""

from __future__ import annotations

import inspect

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

    Args:
        phase: what to train.
        optimizer: `make_optimizer`'s.
        ranks: the processes; each makes this object at the same point of its run.

    Attributes:
        sums: the epoch's. Until its last batch they hold what this rank's part alone suggests.
    """

    def __init__(self, phase: Phase, optimizer: torch.optim.Optimizer, ranks: Ranks) -> None:
        self.sums = EpochSums(phase.inputs.device)
        self._phase = phase
        self._optimizer = optimizer
        self._ranks = ranks
        self._part = BatchPart(ranks)
        self._order = torch.empty(0, dtype=torch.int64)
        self._steps_done = 0
        # The statistics of batch normalisation are the same on all ranks as they are.
        self._model = DistributedDataParallel(
            _Part(phase, self._part),
            **{_SYNCHRONISE_BUFFERS: False},  # type: ignore[arg-type]
        )

    def begin_epoch(self, order: Tensor) -> None:
        """Start over with the samples in a new order ``(N,)``."""
        self._order = order
        self._steps_done = 0
        self.sums.clear()

    def run(self) -> int:
        """Train on the next batch; returns how many batches that was.

        Raises:
            KeyboardInterrupt: in all ranks, if one of them was interrupted.
        """
        phase, size = self._phase, self._ranks.size
        if self._steps_done % STEPS_UNHEEDED == 0:
            self._ranks.stop_together()
        first = self._steps_done * phase.batch_size
        self._steps_done += 1
        batch = self._order[first : first + phase.batch_size]
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
            self.sums.loss += loss
            if len(rows) > 0:
                share = size * len(rows) / len(batch)
                self.sums.mpjpe += mean_joint_error(error, phase) * share
            if self._steps_done == phase.steps:
                for value in (self.sums.loss, self.sums.mpjpe):
                    self._ranks.sum_(value)
                    value /= size
        return 1


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
        with shared_layers(self.module, self._part):
            return self._forward(inputs)
