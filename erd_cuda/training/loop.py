"""The inner loop: one epoch of Adam on flat tensors, the same for the lifter and the stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["EpochResult", "Phase", "make_optimizer", "train_epoch"]


@dataclass(eq=False)
class Phase:
    """One network to fit, with its data and schedule.

    Attributes:
        name: "lifter" or "stage k".
        module: The network; the optimiser gets its parameters.
        forward: Maps inputs ``(B, F)`` to outputs ``(B, 3J)``; runs through ``module``.
        inputs: ``(N, F)``, contiguous.
        targets: ``(N, 3J)``, contiguous.
        root_joint: Index of the joint that MPJPE aligns at.
        unit: Millimetres per unit of output ``(3J,)``, or None if outputs are in millimetres.
        epochs, batch_size, lr, lr_decay, decay_every: The schedule.
    """

    name: str
    module: nn.Module
    forward: Callable[[Tensor], Tensor]
    inputs: Tensor
    targets: Tensor
    root_joint: int
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


@dataclass(frozen=True)
class EpochResult:
    """Means over the batches of an epoch, measured while training (dropout on).

    Attributes:
        loss: Mean squared error, in the units of the outputs.
        mpjpe: Root-aligned mean joint distance in mm.
    """

    loss: float
    mpjpe: float


def make_optimizer(phase: Phase) -> torch.optim.Adam:
    """Adam over the phase's parameters; fused, the fastest of torch's three kinds on CPUs too."""
    return torch.optim.Adam(phase.module.parameters(), lr=phase.lr, fused=True)


def train_epoch(
    phase: Phase,
    epoch: int,
    optimizer: torch.optim.Optimizer,
    shuffle: torch.Generator,
    on_step: Callable[[int, Tensor, Tensor], None] | None = None,
) -> EpochResult:
    """One pass over the data in a new random order.

    Args:
        phase: What to train; its module is put in train mode.
        epoch: Number of the epoch, from 0; sets the learning rate.
        optimizer: From :func:`make_optimizer`, or restored.
        shuffle: Generator of the order; advanced by one permutation.
        on_step: Called after every batch with the number of finished batches and the sums of the
            batches' losses and MPJPEs so far, still tensors: only who shows them pays for reading
            them.
    """
    for group in optimizer.param_groups:
        group["lr"] = phase.lr_at(epoch)
    phase.module.train()
    order = torch.randperm(len(phase.inputs), generator=shuffle)
    loss_sum = torch.zeros((), dtype=torch.float64)
    mpjpe_sum = torch.zeros((), dtype=torch.float64)
    for step in range(phase.steps):
        batch = order[step * phase.batch_size : (step + 1) * phase.batch_size]
        error = phase.forward(phase.inputs.index_select(0, batch)) - phase.targets.index_select(
            0, batch
        )
        loss = error.square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            loss_sum += loss
            mpjpe_sum += _mpjpe(error, phase)
        if on_step is not None:
            on_step(step + 1, loss_sum, mpjpe_sum)
    return EpochResult(loss_sum.item() / phase.steps, mpjpe_sum.item() / phase.steps)


def _mpjpe(error: Tensor, phase: Phase) -> Tensor:
    joints = (error if phase.unit is None else error * phase.unit).view(len(error), -1, 3)
    root = joints[:, phase.root_joint : phase.root_joint + 1]
    return torch.linalg.vector_norm(joints - root, dim=-1).mean()
