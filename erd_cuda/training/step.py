"""One step of training on flat tensors, the same for the lifter and the stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["AutogradSteps", "EpochSums", "Phase", "mean_joint_error", "take_step"]


@dataclass(eq=False)
class Phase:
    """One network to fit, with its data and schedule.

    Attributes:
        name: "lifter" or "stage k".
        module: The network; the optimiser gets its parameters.
        forward: Maps inputs ``(B, F)`` to outputs ``(B, 3J)``; runs through ``module``.
        inputs: ``(N, F)``, contiguous.
        targets: ``(N, 3J)``, contiguous.
        root_joint: Index of the joint that MPJPE aligns at, or None for no alignment.
        unit: Millimetres per unit of output ``(3J,)``, or None if outputs are in millimetres.
        epochs, batch_size, lr, lr_decay, decay_every: The schedule.
    """

    name: str
    module: nn.Module
    forward: Callable[[Tensor], Tensor]
    inputs: Tensor
    targets: Tensor
    root_joint: int | None
    unit: Tensor | None
    epochs: int
    batch_size: int
    lr: float
    lr_decay: float
    decay_every: int

    @property
    def steps(self) -> int:
        """Batches an epoch. A last batch of a single sample is left out: batch norm needs two."""
        full, rest = divmod(len(self.inputs), self.batch_size)
        return full + (rest > 1)

    def lr_at(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 0."""
        return self.lr * self.lr_decay ** (epoch // self.decay_every)


class EpochSums:
    """What an epoch adds up, on the device: reading it is what waits for a GPU.

    Attributes:
        loss, mpjpe: Sums over the batches so far, float64 scalars.
        both: ``(2,)``, the same numbers in the same memory.
    """

    def __init__(self, device: torch.device) -> None:
        self.both = torch.zeros(2, dtype=torch.float64, device=device)
        self.loss, self.mpjpe = self.both.unbind()

    def clear(self) -> None:
        self.both.zero_()


def take_step(
    phase: Phase, optimizer: torch.optim.Optimizer, batch: Tensor, sums: EpochSums
) -> None:
    """Train on the samples that ``batch`` ``(B,)`` numbers."""
    error = phase.forward(phase.inputs.index_select(0, batch)) - phase.targets.index_select(
        0, batch
    )
    loss = error.square().mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        sums.loss += loss
        sums.mpjpe += mean_joint_error(error, phase)


class AutogradSteps:
    """The batches of one phase by `take_step`, as it is.

    Args:
        phase: what to train.
        optimizer: of the module's parameters.

    Attributes:
        sums: the epoch's, so far.
    """

    def __init__(self, phase: Phase, optimizer: torch.optim.Optimizer) -> None:
        self.sums = EpochSums(phase.inputs.device)
        self._phase = phase
        self._optimizer = optimizer
        self._order = torch.empty(0, dtype=torch.int64)

    def begin_epoch(self, order: Tensor) -> None:
        """Start over with the samples in a new order ``(N,)``."""
        self._order = order
        self.sums.clear()

    def run(self) -> int:
        """Train on the next batch; returns how many batches that was."""
        batch = self._order[: self._phase.batch_size]
        self._order = self._order[len(batch) :]
        take_step(self._phase, self._optimizer, batch, self.sums)
        return 1


def mean_joint_error(error: Tensor, phase: Phase) -> Tensor:
    """MPJPE in mm of outputs that are off by ``error`` ``(B, 3J)``."""
    joints = (error if phase.unit is None else error * phase.unit).view(len(error), -1, 3)
    if phase.root_joint is not None:
        joints = joints - joints[:, phase.root_joint : phase.root_joint + 1]
    return torch.linalg.vector_norm(joints, dim=-1).mean()
