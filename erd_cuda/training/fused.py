"""Training steps of a stage as one operator call each: forward, backward and Adam."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from erd_cuda._library import operators
from erd_cuda.modules.regressor import ResidualRegressor
from erd_cuda.ops.regressor import draw_seeds
from erd_cuda.training.step import EpochSums, Phase

__all__ = ["FusedSteps"]


class FusedSteps:
    """The batches of one phase whose network is a `ResidualRegressor`.

    A step is that of `take_step` but for rounding: the same batch, the mean squared error, Adam; on
    the CPU also the same units dropped. It changes the module's parameters and statistics and the
    optimiser's state in place, so that steps of both kinds may follow each other, and checkpoints
    are the same.

    All that differs from step to step (the place in the epoch's order, seeds, the learning rate)
    lies in tensors that stay where they are, and that the operator itself moves on: the next step
    is the same call. On a GPU, where that call is three kernels, a graph of it can be replayed. Not
    yet run on a GPU: tested on an emulated one.

    Args:
        phase: what to train; `can_run` must hold.
        optimizer: `make_optimizer`'s.

    Attributes:
        sums: the epoch's, so far.
    """

    def __init__(self, phase: Phase, optimizer: torch.optim.Optimizer) -> None:
        module, device = phase.module, phase.inputs.device
        assert isinstance(module, ResidualRegressor)
        self.sums = EpochSums(device)
        self._phase = phase
        self._module = module
        self._optimizer = optimizer
        self._left = 0
        self._order = torch.zeros(len(phase.inputs), dtype=torch.int64, device=device)
        self._progress = torch.zeros(2, dtype=torch.int64, device=device)
        self._seeds: Tensor | None = None
        if module.dropout.p > 0:
            self._seeds = torch.zeros(phase.steps, dtype=torch.int64, device=device)
        self._lr = torch.zeros((), dtype=torch.float64, device=device)
        size = operators.regressor_step_workspace(
            min(phase.batch_size, len(phase.inputs)),
            module.num_features,
            module.width,
            3 * module.num_joints,
            phase.inputs.dtype == torch.float64,
            device.type != "cpu",
        )
        self._workspace = torch.empty(size, dtype=torch.uint8, device=device)
        self._tensors: tuple[Any, ...] = ()

    @staticmethod
    def can_run(phase: Phase) -> bool:
        """Whether the operator does what `take_step` would."""
        module = phase.module
        return (
            isinstance(module, ResidualRegressor)
            and phase.forward is module
            and phase.unit is None
            and phase.targets.dtype == phase.inputs.dtype
            and len(phase.inputs) >= 2
            and all(p.requires_grad and p.is_contiguous() for p in module.parameters())
            and module.norm.momentum is not None
            and module.trains_as_one(phase.inputs)
        )

    def begin_epoch(self, order: Tensor) -> None:
        """Start over with the samples in a new order ``(N,)``."""
        self._left = len(order)
        self._order.copy_(order)
        self._progress.zero_()
        if self._seeds is not None:
            self._seeds.copy_(draw_seeds(self._order.device, len(self._seeds)))
        (group,) = self._optimizer.param_groups
        # A copy on the device: steps read it there, and nothing waits for it.
        self._lr.copy_(torch.as_tensor(group["lr"], dtype=torch.float64))
        self.sums.clear()
        parameters = list(self._module.parameters())
        states = [self._state(p) for p in parameters]
        norm = self._module.norm
        self._tensors = (
            self._order,
            self._progress,
            parameters,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["step"] for state in states],
            norm.running_mean,
            norm.running_var,
            norm.num_batches_tracked,
            self.sums.both,
            self._workspace,
            self._seeds,
            self._lr,
        )

    def run(self) -> int:
        """Train on the next batch; returns how many batches that was."""
        rows = min(self._left, self._phase.batch_size)
        self._left -= rows
        self.take(rows)
        return 1

    @torch.no_grad()
    def take(self, rows: int) -> None:
        """Train on the next ``rows`` samples of the order; on a GPU nothing waits for it."""
        phase, module = self._phase, self._module
        (group,) = self._optimizer.param_groups
        operators.regressor_step_(
            phase.inputs,
            phase.targets,
            *self._tensors,
            rows,
            module.dropout.p,
            module.norm.eps,
            module.norm.momentum,
            module.block == "relu",
            *group["betas"],
            group["eps"],
            -1 if phase.root_joint is None else phase.root_joint,
        )

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        """The optimiser's, made as it makes it itself at its first step."""
        state: dict[str, Tensor] = self._optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state
