"""A stage's whole training step, forward, backward and Adam, at the paper's batch of 200.

Each contender first takes a few steps without dropout, and its parameters are compared with those
that the paper's layers have in float64 after as many; what is timed has dropout, and must bring the
loss down.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import erd_cuda
from erd_cuda.benchmarks import ceiling_cases
from erd_cuda.benchmarks.cases import OURS, Case, Plan, Ready, WrongResultError, accept
from erd_cuda.benchmarks.inputs import JOINTS, WIDTH
from erd_cuda.benchmarks.problems import make_network
from erd_cuda.benchmarks.torch_layers import PaperLayers
from erd_cuda.training.loop import Phase, make_optimizer, make_steps, train_epoch

Function = Callable[[], object]
Data = tuple[Tensor, Tensor]
#: Of data and Adam's epsilon: a function that takes the steps of an epoch.
Maker = Callable[..., Function]

SUITE = "training step"
BATCH, LEARNING_RATE = 200, 1e-3
#: Largest error of the parameters' change over the change, by their norms.
TOLERANCE = 1e-3
#: Adam's in that comparison, about as large as gradients are. With the usual 1e-8 a parameter whose
#: gradient is nothing but rounding, as a bias before batch norm, would move as far as any other.
_CHECKED_EPS = 1.0
_CHECKED_STEPS = 5
#: Our module in a user's own loop, where `OURS` is the loop of erd_cuda.training.
OUR_MODULE = "erd_cuda module, own loop"
#: A step multiplies each weight matrix forward, and twice backward; the input takes no gradient.
FLOP = 2 * BATCH * WIDTH * (2 * 2 * JOINTS + 3 * (2 * WIDTH + 3 * JOINTS))


def draw_data(steps: int, device: str) -> Data:
    """Features and targets that are a linear function of them: who trains brings the loss down."""
    generator = torch.Generator(device).manual_seed(0)
    features = torch.randn(BATCH * steps, 2 * JOINTS, generator=generator, device=device)
    mixing = torch.randn(2 * JOINTS, 3 * JOINTS, generator=generator, device=device)
    return features, features @ (5.0 * mixing)


def our_module(device: str) -> nn.Module:
    """The regressor that trains by the fused operators."""
    module = erd_cuda.ResidualRegressor(2 * JOINTS, JOINTS, WIDTH)
    # Both list their layers in the same order.
    layers = zip(module.state_dict(), torch_module("cpu").state_dict().values(), strict=True)
    module.load_state_dict(dict(layers))
    return module.to(device).train()


def torch_module(device: str) -> nn.Module:
    """The paper's layers in plain torch, with equal weights."""
    module = PaperLayers(make_network(JOINTS, 1, WIDTH)).regressors[0]
    return module.to(device).train().requires_grad_(True)


def cases(plan: Plan, device: str) -> list[Case]:
    """One group: the loops of all contenders."""
    data = draw_data(plan.training_steps, device)

    def plain(make: Callable[[str], nn.Module], graph: bool = False) -> Ready:
        module = make(device)
        return _ready(module, partial(stepper, module, module, graph), data)

    def ours() -> Ready:
        module = our_module(device)
        return _ready(module, partial(loop, module), data)

    def compiled(graph: bool = False) -> Ready:
        module = torch_module(device)
        function = torch.compile(module, fullgraph=True, **plan.compiler)
        return _ready(module, partial(stepper, module, function, graph), data)

    made: dict[str, Callable[[], Ready]] = {
        OURS: ours,
        OUR_MODULE: partial(plain, our_module),
        "torch eager": partial(plain, torch_module),
        "torch.compile": compiled,
    }
    if device == "cuda":
        made["torch graph"] = partial(plain, torch_module, graph=True)
        made["torch.compile, graph"] = partial(compiled, graph=True)
    ceilings = ceiling_cases.arithmetic(plan, device, SUITE, BATCH)
    return ceilings + [Case(SUITE, name, make, BATCH, flop=FLOP) for name, make in made.items()]


def loop(regressor: nn.Module, data: Data, eps: float = 1e-8) -> Function:
    """An epoch as erd_cuda.training runs it."""
    phase = _phase(regressor, data)
    optimizer, shuffle = make_optimizer(phase), torch.Generator().manual_seed(0)
    optimizer.param_groups[0]["eps"] = eps
    steps = make_steps(phase, optimizer)
    return lambda: train_epoch(phase, 0, optimizer, shuffle, None, steps)


def steps_alone(regressor: nn.Module, data: Data) -> Function:
    """The steps of that epoch, on a GPU replays of graphs, in an order that stays the same."""
    phase = _phase(regressor, data)
    steps = make_steps(phase, make_optimizer(phase))
    order = torch.randperm(len(data[0])).to(data[0].device)

    def epoch() -> None:
        steps.begin_epoch(order)
        done = 0
        while done < phase.steps:
            done += steps.run()

    # The steps before the graphs are captured, and the captures.
    epoch()
    return epoch


def _phase(regressor: nn.Module, data: Data) -> Phase:
    return Phase("stage", regressor, regressor, *data, 0, None, 1, BATCH, LEARNING_RATE, 0.96, 2)


def stepper(
    module: nn.Module, function: Callable[..., Any], graph: bool, data: Data, eps: float = 1e-8
) -> Function:
    """An epoch as a user of torch writes it, with torch's fastest Adam.

    Args:
        function: the module, or a compiled form of it.
        graph: replay a step that was captured, on a GPU.
    """
    features, targets = data
    on_gpu = features.is_cuda
    optimizer = torch.optim.Adam(
        module.parameters(), lr=LEARNING_RATE, eps=eps, fused=True, capturable=on_gpu
    )
    x, y = features[:BATCH].clone(), targets[:BATCH].clone()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        (function(x) - y).square().mean().backward()
        optimizer.step()

    run = captured_step(step) if graph and on_gpu else step

    def steps_in_a_row() -> None:
        for i in range(len(features) // BATCH):
            x.copy_(features[i * BATCH : (i + 1) * BATCH])
            y.copy_(targets[i * BATCH : (i + 1) * BATCH])
            run()

    return steps_in_a_row


def captured_step(step: Callable[[], None]) -> Callable[[], None]:
    """A CUDA graph of the step."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return lambda: graph.replay()


def _ready(module: nn.Module, make: Maker, data: Data) -> Ready:
    error = accept(step_error(module, make, data), TOLERANCE)
    before, epoch = mean_loss(module, data), make(data)
    epoch()
    check_loss(before, mean_loss(module, data))
    run = epoch
    if data[0].is_cuda:

        def run() -> None:
            epoch()
            torch.cuda.synchronize()

    return Ready(run, len(data[0]) // BATCH, error)


def mean_loss(module: nn.Module, data: Data) -> float:
    """Over all samples, in the module's mode."""
    with torch.no_grad():
        return float((module(data[0]) - data[1]).square().mean())


def check_loss(before: float, after: float) -> None:
    """Raise WrongResultError unless the loss fell by more than dropout's noise."""
    if not after < 0.998 * before < math.inf:
        raise WrongResultError("the loss did not go down")


def step_error(module: nn.Module, make: Maker, data: Data) -> float:
    """Of the change of all parameters as one vector, by a few steps on one batch, no dropout.

    The module is left as it was.
    """
    batch = data[0][:BATCH], data[1][:BATCH]
    before, saved = flat(module), copy.deepcopy(module.state_dict())
    dropouts = [(part, part.p) for part in module.modules() if isinstance(part, nn.Dropout)]
    for part, _ in dropouts:
        part.p = 0.0
    step = make(batch, eps=_CHECKED_EPS)
    # Later steps see what the first left in Adam's averages, and on a GPU are replayed.
    for _ in range(_CHECKED_STEPS):
        step()
    after, taken = flat(module), counted(module) - counted(saved)
    for part, p in dropouts:
        part.p = p
    module.load_state_dict(saved)
    change, expected = after - before, reference_change(batch, taken)
    return float((change - expected).norm() / expected.norm())


def reference_change(batch: Data, steps: int) -> Tensor:
    """What steps with the paper's layers add to the parameters, in float64, without dropout."""
    module = torch_module("cpu").double()
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    x, y = (values.double().cpu() for values in batch)
    before = flat(module)
    optimizer = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE, eps=_CHECKED_EPS)
    for _ in range(steps):
        optimizer.zero_grad()
        (module(x) - y).square().mean().backward()
        optimizer.step()
    return flat(module) - before


def flat(module: nn.Module) -> Tensor:
    """All parameters as one vector, float64 on the CPU."""
    return torch.cat([p.detach().flatten().double().cpu() for p in module.parameters()])


def counted(module: nn.Module | dict[str, Tensor]) -> int:
    """Steps that a module has taken, by its batch norm: before a capture some are a warm-up."""
    state = module if isinstance(module, dict) else module.state_dict()
    (steps,) = (int(value) for name, value in state.items() if "num_batches" in name)
    return steps
