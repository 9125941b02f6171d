"""The inner loop: one epoch of Adam, on the CPU or on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from erd_cuda.training.captured import CapturedSteps
from erd_cuda.training.fused import FusedSteps
from erd_cuda.training.step import AutogradSteps, EpochSums, Phase

if TYPE_CHECKING:
    from erd_cuda.training.ranks import Ranks

__all__ = [
    "EpochResult",
    "Phase",
    "Steps",
    "make_optimizer",
    "make_steps",
    "restore_optimizer",
    "train_epoch",
]


class Steps(Protocol):
    """Runs the batches of a phase.

    Attributes:
        sums: the epoch's, so far.
    """

    sums: EpochSums

    def begin_epoch(self, order: Tensor) -> None:
        """Start over with the samples in a new order ``(N,)``."""

    def run(self) -> int:
        """Train on the next batch or batches; returns how many."""


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


def make_steps(phase: Phase, optimizer: torch.optim.Optimizer, ranks: Ranks | None = None) -> Steps:
    """The fastest way to run the phase's batches.

    Args:
        phase: What to train; the network of a stage by an operator of its own, and on a GPU every
            network in CUDA graphs of many steps.
        optimizer: From :func:`make_optimizer` or :func:`restore_optimizer`.
        ranks: The processes that take the steps together, if there are several.
    """
    if ranks is not None:
        # Imported only where it is used: it takes a second.
        from erd_cuda.training.shared_step import SharedSteps

        return SharedSteps(phase, optimizer, ranks)
    if phase.inputs.device.type != "cpu":
        return CapturedSteps(phase, optimizer)
    if FusedSteps.can_run(phase):
        return FusedSteps(phase, optimizer)
    return AutogradSteps(phase, optimizer)


def train_epoch(
    phase: Phase,
    epoch: int,
    optimizer: torch.optim.Optimizer,
    shuffle: torch.Generator,
    on_step: Callable[[int, Tensor, Tensor], None] | None = None,
    steps: Steps | None = None,
) -> EpochResult:
    """One pass over the data in a new random order.

    Args:
        phase: What to train; its module is put in train mode.
        epoch: Number of the epoch, from 0; sets the learning rate.
        optimizer: From :func:`make_optimizer` or :func:`restore_optimizer`.
        shuffle: Generator of the order, a CPU one; advanced by one permutation.
        on_step: Called after every batch, or after the batches of a CUDA graph, with the number of
            finished batches and the sums of their losses and MPJPEs so far, still tensors: only who
            shows them pays for reading them.
        steps: From :func:`make_steps`; runs the batches. None for `take_step`.
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
        steps = AutogradSteps(phase, optimizer)
    steps.begin_epoch(order)
    sums, done = steps.sums, 0
    while done < phase.steps:
        done += steps.run()
        if on_step is not None:
            on_step(done, sums.loss, sums.mpjpe)
    return EpochResult(sums.loss.item() / phase.steps, sums.mpjpe.item() / phase.steps)
