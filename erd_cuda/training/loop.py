"""The inner loop: one epoch of Adam, on the CPU or on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from erd_cuda.training.captured import CapturedSteps
from erd_cuda.training.fused import FusedSteps
from erd_cuda.training.step import EpochSums, Phase, take_step

__all__ = [
    "EpochResult",
    "Phase",
    "make_optimizer",
    "make_steps",
    "restore_optimizer",
    "train_epoch",
]


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
    device = phase.inputs.device
    if device.type == "cpu":
        return torch.optim.Adam(phase.module.parameters(), lr=phase.lr, fused=True)
    # A captured step reads the learning rate anew at every replay, if it is a tensor.
    lr = torch.tensor(phase.lr, device=device)
    return torch.optim.Adam(phase.module.parameters(), lr=lr, fused=True, capturable=True)


def restore_optimizer(phase: Phase, state: dict[str, Any]) -> torch.optim.Adam:
    """`make_optimizer`'s with the state dict of an earlier one, whatever device that was on."""
    optimizer = make_optimizer(phase)
    settings = [
        {name: value for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
    return optimizer


def make_steps(phase: Phase, optimizer: torch.optim.Optimizer) -> CapturedSteps | FusedSteps | None:
    """The fastest way to run the phase's batches, None if that is `take_step`.

    Args:
        phase: What to train; on a GPU a CUDA graph does, on the CPU an operator of its own for the
            network of a stage.
        optimizer: From :func:`make_optimizer` or :func:`restore_optimizer`.
    """
    if phase.inputs.device.type != "cpu":
        return CapturedSteps(phase, optimizer)
    return FusedSteps(phase, optimizer) if FusedSteps.can_run(phase) else None


def train_epoch(
    phase: Phase,
    epoch: int,
    optimizer: torch.optim.Optimizer,
    shuffle: torch.Generator,
    on_step: Callable[[int, Tensor, Tensor], None] | None = None,
    steps: CapturedSteps | FusedSteps | None = None,
) -> EpochResult:
    """One pass over the data in a new random order.

    Args:
        phase: What to train; its module is put in train mode.
        epoch: Number of the epoch, from 0; sets the learning rate.
        optimizer: From :func:`make_optimizer` or :func:`restore_optimizer`.
        shuffle: Generator of the order, a CPU one; advanced by one permutation.
        on_step: Called after every batch with the number of finished batches and the sums of the
            batches' losses and MPJPEs so far, still tensors: only who shows them pays for reading
            them.
        steps: From :func:`make_steps`; runs the batches, or on a GPU the full ones. None for
            `take_step`.
    """
    lr = phase.lr_at(epoch)
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
    phase.module.train()
    device = phase.inputs.device
    order = torch.randperm(len(phase.inputs), generator=shuffle).to(device)
    if steps is None:
        sums = EpochSums(device)
    else:
        sums = steps.sums
        steps.begin_epoch(order)
    for step in range(phase.steps):
        batch = order[step * phase.batch_size : (step + 1) * phase.batch_size]
        full = len(batch) == phase.batch_size
        if steps is not None and (full or steps.takes_smaller_batches):
            steps.step()
        else:
            take_step(phase, optimizer, batch, sums)
        if on_step is not None:
            on_step(step + 1, sums.loss, sums.mpjpe)
    return EpochResult(sums.loss.item() / phase.steps, sums.mpjpe.item() / phase.steps)
