"""Training steps of a stage on the CPU as one operator call each, forward, backward and Adam."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from erd_cuda._library import operators
from erd_cuda.modules.regressor import ResidualRegressor
from erd_cuda.ops.regressor import draw_seed
from erd_cuda.training.step import EpochSums, Phase

__all__ = ["FusedSteps"]


class FusedSteps:
    """The batches of one phase whose network is a `ResidualRegressor` on the CPU.

    A step is that of `take_step` but for rounding: the same batch, the same units dropped, the mean
    squared error, Adam. It changes the module's parameters and statistics and the optimiser's state
    in place, so that steps of both kinds may follow each other, and checkpoints are the same.

    Args:
        phase: what to train; `can_run` must hold.
        optimizer: `make_optimizer`'s.

    Attributes:
        sums: the epoch's, so far.
    """

    takes_smaller_batches = True

    def __init__(self, phase: Phase, optimizer: torch.optim.Optimizer) -> None:
        module = phase.module
        assert isinstance(module, ResidualRegressor)
        self.sums = EpochSums(phase.inputs.device)
        self._phase = phase
        self._module = module
        self._optimizer = optimizer
        self._order = torch.empty(0, dtype=torch.int64)
        self._done = 0
        self._tensors: tuple[Any, ...] = ()
        size = operators.regressor_step_workspace(
            min(phase.batch_size, len(phase.inputs)),
            module.num_features,
            module.width,
            3 * module.num_joints,
            phase.inputs.dtype == torch.float64,
        )
        self._workspace = torch.empty(size, dtype=torch.uint8)

    @staticmethod
    def can_run(phase: Phase) -> bool:
        """Whether the operator does what `take_step` would."""
        module = phase.module
        return (
            isinstance(module, ResidualRegressor)
            and phase.forward is module
            and phase.unit is None
            and phase.inputs.device.type == "cpu"
            and phase.targets.dtype == phase.inputs.dtype
            and len(phase.inputs) >= 2
            and all(p.requires_grad and p.is_contiguous() for p in module.parameters())
            and module.norm.momentum is not None
            and module.trains_as_one(phase.inputs)
        )

    def begin_epoch(self, order: Tensor) -> None:
        """Start over with the samples in a new order ``(N,)``."""
        self._order = order
        self._done = 0
        self.sums.clear()
        parameters = list(self._module.parameters())
        states = [self._state(p) for p in parameters]
        norm = self._module.norm
        self._tensors = (
            parameters,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["step"] for state in states],
            norm.running_mean,
            norm.running_var,
            norm.num_batches_tracked,
            self.sums.both,
            self._workspace,
        )

    @torch.no_grad()
    def step(self) -> None:
        """Train on the next batch."""
        phase, module = self._phase, self._module
        batch = self._order[self._done : self._done + phase.batch_size]
        self._done += len(batch)
        (group,) = self._optimizer.param_groups
        dropout = module.dropout.p
        operators.regressor_step_(
            phase.inputs,
            phase.targets,
            batch,
            *self._tensors,
            draw_seed(phase.inputs.device) if dropout > 0 else None,
            dropout,
            module.norm.eps,
            module.norm.momentum,
            module.block == "relu",
            group["lr"],
            *group["betas"],
            group["eps"],
            -1 if phase.root_joint is None else phase.root_joint,
        )

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        """The optimiser's, made as it makes it itself at its first step."""
        state: dict[str, Tensor] = self._optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state
