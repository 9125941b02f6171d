"""A whole training step as one operator, against the layers, autograd and Adam in float64."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from philox import kept_units
from regressor_batches import Batch, make_batch
from torch import Tensor

operators = torch.ops.erd_cuda

SEEDS = (0x7EDC_BA98_7654_3210, 5, 0x1234_5678_9ABC)
BETAS, ADAM_EPS, MOMENTUM, LR = (0.9, 0.99), 1e-2, 0.1, 0.03
B_IN = 1


@dataclass
class Training:
    """Three batches of one epoch, the last of them smaller.

    Attributes:
        network: features of all samples, then the parameters.
        targets: as many rows as the features have.
    """

    network: Batch
    targets: Tensor
    rows: tuple[int, ...]
    root_joint: int

    @property
    def order(self) -> Tensor:
        generator = torch.Generator().manual_seed(2)
        return torch.randperm(len(self.targets), generator=generator)


def training(
    batch: int,
    features: int,
    width: int,
    joints: int,
    dropout: float = 0.25,
    relu_block: bool = False,
    root_joint: int = 0,
) -> Training:
    samples = 2 * batch + 5
    network = make_batch(samples, features, width, 3 * joints, dropout, relu_block)
    generator = torch.Generator().manual_seed(8)
    targets = torch.randn(samples, 3 * joints, generator=generator, dtype=torch.float64)
    return Training(network, targets, (batch, batch, 5), root_joint)


class Adam:
    """Kingma and Ba 2015, algorithm 1. That torch's does the same, test_training_fused.py tells;
    importing that takes seconds."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters = parameters
        self.exp_avgs = [torch.zeros_like(p) for p in parameters]
        self.exp_avg_sqs = [torch.zeros_like(p) for p in parameters]
        self.taken = 0

    @torch.no_grad()
    def step(self, gradients: list[Tensor]) -> None:
        self.taken += 1
        first, second = (1 - beta**self.taken for beta in BETAS)
        for value, mean, square, gradient in zip(
            self.parameters, self.exp_avgs, self.exp_avg_sqs, gradients, strict=True
        ):
            mean.lerp_(gradient, 1 - BETAS[0])
            square.lerp_(gradient**2, 1 - BETAS[1])
            value -= LR * (mean / first) / ((square / second).sqrt() + ADAM_EPS)


def expected_state(problem: Training) -> dict[str, Tensor]:
    """What autograd and Adam make of the epoch in float64."""
    network = problem.network
    features, *parameters = (t.detach().clone() for t in network.tensors)
    for parameter in parameters:
        parameter.requires_grad_()
    adam = Adam(parameters)
    width = len(parameters[B_IN])
    mean, variance = torch.zeros(width).double(), torch.ones(width).double()
    sums, done = torch.zeros(2).double(), 0
    for seed, rows in zip(SEEDS, problem.rows, strict=True):
        batch = problem.order[done : done + rows]
        done += rows
        kept = torch.from_numpy(kept_units(seed, rows, width, network.dropout))
        x = features[batch]
        error = network.layers(kept, x, *parameters) - problem.targets[batch]
        loss = error.square().mean()
        gradients = list(torch.autograd.grad(loss, parameters))
        # The mean over the batch takes this bias out again: what is left is rounding.
        gradients[B_IN] = torch.zeros(width).double()
        with torch.no_grad():
            z = F.linear(x, parameters[0], parameters[B_IN])
            mean.lerp_(z.mean(0), MOMENTUM)
            variance.lerp_(z.var(0), MOMENTUM)
            joints = error.view(rows, -1, 3)
            if problem.root_joint >= 0:
                joints = joints - joints[:, problem.root_joint, None]
            sums += torch.stack([loss, joints.norm(dim=-1).mean()])
        adam.step(gradients)
    state = {"running_mean": mean, "running_variance": variance, "sums": sums}
    for i, parameter in enumerate(parameters):
        state |= {f"parameter {i}": parameter.detach(), f"exp_avg {i}": adam.exp_avgs[i]}
        state[f"exp_avg_sq {i}"] = adam.exp_avg_sqs[i]
    return state


def arguments(problem: Training, dtype: torch.dtype, device: str, **changes: Any) -> dict[str, Any]:
    """A call of the operator for the epoch's first batch."""
    network = problem.network
    features, *parameters = (
        t.detach().to(device, dtype, copy=True).contiguous() for t in network.tensors
    )
    width, outputs = len(parameters[B_IN]), problem.targets.shape[1]
    size = operators.regressor_step_workspace(
        problem.rows[0], features.shape[1], width, outputs, dtype == torch.float64, device != "cpu"
    )
    call: dict[str, Any] = {
        "features": features,
        "targets": problem.targets.to(device, dtype),
        "order": problem.order.to(device),
        "progress": torch.zeros(2, dtype=torch.int64, device=device),
        "parameters": parameters,
        "exp_avgs": [torch.zeros_like(p) for p in parameters],
        "exp_avg_sqs": [torch.zeros_like(p) for p in parameters],
        "steps": [torch.zeros((), device=device) for _ in parameters],
        "running_mean": torch.zeros(width, dtype=dtype, device=device),
        "running_variance": torch.ones(width, dtype=dtype, device=device),
        "batches": torch.tensor(0, device=device),
        "sums": torch.zeros(2, dtype=torch.float64, device=device),
        # What a step finds here must not matter.
        "workspace": torch.full((size,), 255, dtype=torch.uint8, device=device),
        "seeds": torch.tensor(SEEDS, device=device) if network.dropout > 0 else None,
        "lr": torch.tensor(LR, dtype=torch.float64, device=device),
        "rows": problem.rows[0],
        "dropout": network.dropout,
        "norm_eps": network.eps,
        "momentum": MOMENTUM,
        "relu_block": network.relu_block,
        "beta1": BETAS[0],
        "beta2": BETAS[1],
        "adam_eps": ADAM_EPS,
        "root_joint": problem.root_joint,
    }
    return call | changes


def found_state(problem: Training, call: dict[str, Any]) -> dict[str, Tensor]:
    for rows in problem.rows:
        operators.regressor_step_(**call | {"rows": rows})
    assert call["progress"].tolist() == [len(problem.targets), 3]
    assert [int(step) for step in call["steps"]] == [3] * 10 and int(call["batches"]) == 3
    state = {name: call[name] for name in ("running_mean", "running_variance", "sums")}
    for i in range(10):
        state[f"parameter {i}"] = call["parameters"][i]
        state[f"exp_avg {i}"] = call["exp_avgs"][i]
        state[f"exp_avg_sq {i}"] = call["exp_avg_sqs"][i]
    return {name: value.cpu() for name, value in state.items()}


PROBLEMS = {
    "linear": training(19, 34, 24, 17),
    "relu": training(20, 34, 24, 17, relu_block=True, root_joint=4),
    "no dropout": training(9, 5, 7, 2, dropout=0.0, root_joint=-1),
    "relu, no dropout": training(33, 6, 40, 3, dropout=0.0, relu_block=True),
    # More units, or outputs, than a GPU's block has threads.
    "wide": training(6, 3, 260, 1, dropout=0.5),
    "outputs": training(9, 3, 8, 88, dropout=0.5, root_joint=87),
    "many": training(140, 3, 9, 1, root_joint=-1),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_steps_are_those_of_the_layers_and_adam(name: str, dtype: torch.dtype, device: str) -> None:
    problem = PROBLEMS[name]
    found = found_state(problem, arguments(problem, dtype, device))
    tolerance = 1e-9 if dtype == torch.float64 else 2e-4
    for key, value in expected_state(problem).items():
        error = (found[key].double() - value).norm() / (value.norm() + 1e-12)
        assert error < tolerance, f"{key}: {error}"


def test_equal_calls_give_equal_bits(device: str) -> None:
    problem = PROBLEMS["relu"]
    states = [found_state(problem, arguments(problem, torch.float32, device)) for _ in range(2)]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_it_changes_what_it_says_and_nothing_else(device: str) -> None:
    """torch.library.opcheck would trace it, and compare a workspace that nobody is to read."""
    read_only = ("features", "targets", "order", "seeds", "lr")
    schema = operators.regressor_step_.default._schema
    for argument in schema.arguments:
        if "Tensor" in str(argument.type):
            changes = argument.alias_info is not None and argument.alias_info.is_write
            assert changes is (argument.name not in read_only), argument.name
    call = arguments(PROBLEMS["linear"], torch.float32, device)
    before = copy.deepcopy(call)
    operators.regressor_step_(**call)
    for name in read_only:
        assert torch.equal(call[name], before[name]), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": torch.tensor([3, 23, 1, 2, 4])}, "order names sample 23, there are 23"),
        ({"order": torch.tensor([-1, 3, 5, 6, 0])}, "order names sample -1, there are 23"),
        ({"progress": torch.tensor([19, 1])}, "order has 23 samples, and after 19 there are no 5"),
        ({"progress": torch.tensor([5, 3])}, "there are 3 seeds, and batch 3 has none"),
        ({"progress": torch.zeros(2)}, "progress must be two contiguous int64"),
        ({"rows": 1}, "at least two samples"),
        ({"targets": torch.zeros(23, 5)}, "three columns a joint"),
        ({"targets": torch.zeros(22, 6)}, "targets must have 138 elements, it has 132"),
        ({"targets": torch.zeros(23, 6, dtype=torch.float64)}, "targets has another dtype"),
        ({"seeds": None}, "seeds are needed exactly when there is dropout"),
        ({"lr": torch.tensor(0.1)}, "lr must be one float64"),
        ({"root_joint": 2}, "root_joint is 2, there are 2 joints"),
        ({"workspace": torch.empty(9, dtype=torch.uint8)}, "workspace must have .* it has 9"),
        ({"running_mean": torch.zeros(14)[::2]}, "running_mean must be contiguous"),
        ({"parameters": []}, "a regressor has 10 parameters"),
        ({"steps": [torch.zeros((), dtype=torch.float64)] * 10}, "steps must be float32 scalars"),
    ],
    # Not the tensors: what an empty one holds differs from process to process.
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_the_operator_refuses_what_does_not_fit(change: dict[str, Any], message: str) -> None:
    call = arguments(training(9, 5, 7, 2), torch.float32, "cpu", **{"rows": 5} | change)
    before = [p.clone() for p in call["parameters"]]
    with pytest.raises(RuntimeError, match=message):
        operators.regressor_step_(**call)
    for value, old in zip(call["parameters"], before, strict=True):
        assert torch.equal(value, old)
