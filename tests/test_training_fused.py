"""A stage's training step as one operator, against the same step by autograd and torch's Adam."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from erd_cuda import ResidualRegressor
from erd_cuda.training.fused import FusedSteps
from erd_cuda.training.loop import (
    Phase,
    make_optimizer,
    make_steps,
    restore_optimizer,
    train_epoch,
)
from erd_cuda.training.step import AutogradSteps


def phase_of(module: ResidualRegressor, samples: int, **changes: Any) -> Phase:
    generator = torch.Generator().manual_seed(3)
    dtype = module.output.weight.dtype
    phase = Phase(
        name="test",
        module=module,
        forward=module,
        inputs=torch.randn(samples, module.num_features, generator=generator, dtype=dtype),
        targets=100 * torch.randn(samples, 3 * module.num_joints, generator=generator, dtype=dtype),
        root_joint=0,
        unit=None,
        epochs=3,
        batch_size=20,
        lr=0.01,
        lr_decay=0.5,
        decay_every=1,
    )
    return replace(phase, **changes)


def regressor(*size: int, dtype: torch.dtype = torch.float64, **options: Any) -> ResidualRegressor:
    torch.manual_seed(4)
    return ResidualRegressor(*size, **options).to(dtype)


def trained(phase: Phase, fused: bool, epochs: int = 3) -> tuple[list[Any], dict[str, Any]]:
    """Results of the epochs, and everything that training leaves."""
    phase = replace(phase, module=copy.deepcopy(phase.module))
    phase.forward = phase.module
    optimizer, shuffle = make_optimizer(phase), torch.Generator().manual_seed(9)
    steps = make_steps(phase, optimizer)
    assert isinstance(steps, FusedSteps)
    results = []
    torch.manual_seed(6)
    for epoch in range(epochs):
        runner = steps if fused else None
        results.append(train_epoch(phase, epoch, optimizer, shuffle, None, runner))
    state: dict[str, Any] = dict(phase.module.state_dict())
    for (name, _), values in zip(
        phase.module.named_parameters(), optimizer.state_dict()["state"].values(), strict=True
    ):
        state |= {f"{name} {key}": value for key, value in values.items()}
    return results, state | {"generator": torch.get_rng_state()}


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((34, 17, 256), {"dropout": 0.5}),
        ((34, 17, 256), {"block": "relu"}),
        ((5, 2, 7), {"dropout": 0.0, "block": "relu"}),
        ((70, 100, 41), {}),
    ],
    ids=str,
)
def test_epochs_are_those_of_autograd_and_torchs_adam(
    size: tuple[int, ...], options: dict[str, Any]
) -> None:
    # A ragged last batch, too.
    phase = phase_of(regressor(*size, **options), 107)
    expected, expected_state = trained(phase, fused=False)
    found, state = trained(phase, fused=True)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-9)
        assert ours.mpjpe == pytest.approx(theirs.mpjpe, rel=1e-9)
    assert found[-1].loss < found[0].loss
    assert state.keys() == expected_state.keys()
    for name, value in expected_state.items():
        # Adam divides by the gradients' size: where they are nothing but rounding, it shows.
        torch.testing.assert_close(state[name], value, rtol=1e-6, atol=1e-8, msg=name)


def test_many_samples_are_summed_in_parts() -> None:
    phase = phase_of(regressor(34, 17, 24), 1300, batch_size=1300)
    expected, expected_state = trained(phase, fused=False, epochs=2)
    found, state = trained(phase, fused=True, epochs=2)
    assert found[1].loss == pytest.approx(expected[1].loss, rel=1e-12)
    for name, value in expected_state.items():
        torch.testing.assert_close(state[name], value, rtol=1e-7, atol=1e-9, msg=name)


def test_float32_loses_no_more_than_autograd_does() -> None:
    exact = phase_of(regressor(34, 17, 64), 100)
    single = replace(
        exact,
        module=copy.deepcopy(exact.module).float(),
        inputs=exact.inputs.float(),
        targets=exact.targets.float(),
    )
    single.forward = single.module
    truth = trained(exact, fused=False, epochs=1)[1]["output.weight"]
    errors = [
        (trained(single, fused=fused, epochs=1)[1]["output.weight"].double() - truth).norm()
        for fused in (True, False)
    ]
    assert errors[0] < 2 * errors[1] + 1e-6 and errors[0] < 1e-3 * truth.norm()


def test_without_a_root_joint_nothing_is_aligned() -> None:
    phase = phase_of(regressor(5, 2, 7), 40, root_joint=None)
    (expected,), (found,) = (trained(phase, fused, epochs=1)[0] for fused in (False, True))
    assert found.mpjpe == pytest.approx(expected.mpjpe, rel=1e-9)
    aligned = trained(replace(phase, root_joint=1), True, epochs=1)[0][0]
    assert abs(aligned.mpjpe - found.mpjpe) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_threads_change_no_bit(dtype: torch.dtype, set_threads: Callable[[int], None]) -> None:
    phase = phase_of(regressor(34, 17, 72, dtype=dtype, block="relu"), 203, batch_size=203)
    states = []
    for threads in (1, 2, 5):
        set_threads(threads)
        states.append(trained(phase, fused=True, epochs=2))
    for results, state in states[1:]:
        assert results == states[0][0]
        for name, value in state.items():
            assert torch.equal(value, states[0][1][name]), name


def test_both_kinds_of_steps_go_on_from_each_other() -> None:
    phase = phase_of(regressor(5, 2, 7), 60)
    expected = trained(phase, fused=True)[1]
    optimizer, shuffle = make_optimizer(phase), torch.Generator().manual_seed(9)
    steps = make_steps(phase, optimizer)
    torch.manual_seed(6)
    train_epoch(phase, 0, optimizer, shuffle, None, steps)
    optimizer = restore_optimizer(phase, copy.deepcopy(optimizer.state_dict()))
    train_epoch(phase, 1, optimizer, shuffle)
    train_epoch(phase, 2, optimizer, shuffle, None, make_steps(phase, optimizer))
    for name, value in phase.module.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-8, msg=name)


def freeze(phase: Phase) -> None:
    next(phase.module.parameters()).requires_grad_(False)


def watch(phase: Phase) -> None:
    assert isinstance(phase.module, ResidualRegressor)
    phase.module.output.register_forward_hook(lambda *_: None)


def wrap(phase: Phase) -> None:
    phase.module = nn.Sequential(phase.module)


def other_forward(phase: Phase) -> None:
    phase.forward = lambda x: phase.module(x) + 1


def units(phase: Phase) -> None:
    phase.unit = torch.ones(6)


def no_momentum(phase: Phase) -> None:
    assert isinstance(phase.module, ResidualRegressor)
    phase.module.norm.momentum = None


@pytest.mark.parametrize(
    "change", [freeze, watch, wrap, other_forward, units, no_momentum], ids=lambda f: f.__name__
)
def test_what_the_operator_cannot_do_is_left_to_autograd(change: Callable[[Phase], None]) -> None:
    phase = phase_of(regressor(5, 2, 7), 60)
    assert FusedSteps.can_run(phase)
    change(phase)
    assert isinstance(make_steps(phase, make_optimizer(phase)), AutogradSteps)
