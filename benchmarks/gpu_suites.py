"""What else is measured on a GPU: its ceilings, the geometry operators, calls, a training step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import peers
import torch
import torch_layers
from bundled_model import TEST_SET, errors_in_mm
from gpu_refine import JOINTS, STAGES, WIDTH, draw_inputs, input_sets
from gpu_timing import Clock, Function, Stopwatch, host_seconds, in_turn
from problems import make_network, pack
from refine_kernels import refine_kernel
from torch import Tensor, nn

import erd_cuda
from erd_cuda.training.loop import Phase, make_optimizer, make_steps, train_epoch

Row = dict[str, Any]

GEOMETRY_BATCHES = (65_536, 1_048_576, 4096)
#: Floats of a pose that each operator must read and write.
GEOMETRY_FLOATS = {
    "project": 3 * JOINTS + 3 + 2 * JOINTS,
    "residual": 2 * JOINTS + 3 * JOINTS + 3 + 2 * JOINTS,
    "solve_root": 2 * JOINTS + 3 * JOINTS + 3,
}


def ceilings_suite(device: str, options: Row) -> list[Row]:
    """What the machine gives to programs that do nothing else."""
    size = options["matrix"]
    rows: list[Row] = []

    def measure(name: str, function: Function, inputs: list[list[Tensor]], **work: float) -> None:
        row: Row = {"suite": "ceilings", "contender": name}
        rows.append(row)
        try:
            watch = Stopwatch(function, inputs)
            (timing,) = in_turn({"": watch}, options["rounds"], options["seconds"]).values()
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {error}"[:500]
            return
        row |= timing.figures()
        row |= {unit: amount / timing.median for unit, amount in work.items()}

    # One element: what a kernel costs that has nothing to do, inside a graph of many.
    measure("empty kernel", lambda t: t.add_(1.0), [[torch.ones(1, device=device)]] * 64)
    source = torch.rand(options["copied"] // 4, device=device) + 1.0
    target = torch.empty_like(source)
    measure("copy", target.copy_, [[source]], bytes_per_s=8 * source.numel())
    del source, target
    for name, dtype, tf32 in (
        ("matmul fp16", torch.float16, False),
        ("matmul bf16", torch.bfloat16, False),
        ("matmul tf32", torch.float32, True),
        ("matmul fp32", torch.float32, False),
    ):
        pair = [torch.randn(size, size, device=device).to(dtype) for _ in range(2)]
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = tf32
        try:
            measure(name, torch.matmul, [pair], flop_per_s=2.0 * size**3)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
    return rows


def _geometry_functions(op: str, device: str) -> tuple[Function, Function]:
    """The operator and its composition from torch's, of keypoints, pose, root and camera."""
    std = torch.linspace(60.0, 140.0, 2 * JOINTS, device=device).view(JOINTS, 2)
    functions: dict[str, tuple[Function, Function]] = {
        "project": (
            lambda k, p, r, c: erd_cuda.project(p, r, c),
            lambda k, p, r, c: torch_layers.project(p, r, c),
        ),
        "residual": (
            lambda k, p, r, c: erd_cuda.residual(k, p, r, c, std),
            lambda k, p, r, c: torch_layers.residual(k, p, r, c, std=std),
        ),
        "solve_root": (
            lambda k, p, r, c: erd_cuda.solve_root(k, p, c),
            lambda k, p, r, c: peers.solve_root(k, p, c),
        ),
    }
    return functions[op]


def geometry_suite(batch: int, device: str, compiler_clock: Clock, options: Row) -> list[Row]:
    """project, residual and solve_root beside torch's operators, in CUDA graphs."""
    inputs = draw_inputs(batch, options["sets"] or input_sets(batch), device)
    rows: list[Row] = []
    for op, floats in GEOMETRY_FLOATS.items():
        ours, torchs = _geometry_functions(op, device)
        reference = torchs(*(t.double()[:256] if t.dim() > 1 else t.double() for t in inputs[0]))
        functions: dict[str, tuple[Function, bool]] = {
            "erd_cuda": (ours, True),
            "torch eager": (torchs, False),
            "torch graph": (torchs, True),
        }
        if compiler_clock.left > 0:
            compiled = torch.compile(torchs, fullgraph=True, **options["compiler"])
            functions["torch.compile"] = compiled, True
        if op == "solve_root" and batch <= 65_536:
            functions["torch.linalg.lstsq"] = lambda k, p, r, c: peers.lstsq_root(k, p, c), False
        watches, timed = {}, {}
        for name, (function, graph) in functions.items():
            row: Row = {"suite": "geometry", "op": op, "batch": batch, "contender": name}
            row["in_graph"] = graph
            rows.append(row)
            try:
                error = function(*inputs[0])[:256].double() - reference
                row["error"] = float((error.norm() / reference.norm()).cpu())
                if not row["error"] < 1e-4:
                    row["failed"] = "wrong result"
                    continue
                watches[name], timed[name] = Stopwatch(function, inputs, graph), row
            except Exception as error:
                row["failed"] = f"{type(error).__name__}: {error}"[:500]
        for name, timing in in_turn(watches, options["rounds"], options["seconds"]).items():
            timed[name] |= timing.figures()
            timed[name]["poses_per_s"] = round(batch / timing.median)
            timed[name]["bytes_per_s"] = 4 * floats * batch / timing.median
    return rows


def calls_suite(device: str, options: Row) -> list[Row]:
    """How long a call keeps the host busy, at batch 1."""
    ((keypoints, pose, root, camera),) = draw_inputs(1, 1, device)
    weights = pack(make_network(JOINTS, STAGES, WIDTH), torch.float32, device)
    operator = refine_kernel(weights)
    assert operator is not None
    layers = peers.Layers(weights)
    model = erd_cuda.ERD.from_pretrained("cmu17-given-root", device)
    functions: dict[str, Callable[[], object]] = {
        "torch add": lambda: root + 1.0,
        "project": lambda: erd_cuda.project(pose, root, camera),
        "solve_root": lambda: erd_cuda.solve_root(keypoints, pose, camera),
        "refine": lambda: erd_cuda.refine(keypoints, pose, root, camera, weights),
        "refine operator": lambda: operator(keypoints, pose, root, camera),
        "ERD.forward, pose given": lambda: model(keypoints, camera, root, pose=pose),
        "torch eager, collapsed": lambda: layers(keypoints, pose, root, camera),
    }
    rows = []
    for name, function in functions.items():
        row: Row = {"suite": "calls", "batch": 1, "contender": name}
        rows.append(row)
        try:
            with torch.inference_mode():
                row |= host_seconds(function, options["calls"]).figures()
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {error}"[:500]
    return rows


def accuracy_suite(device: str) -> list[Row]:
    """The bundled model in every precision, in mm: no time, but what the time is bought with.

    On the poses that `bundled_model.TEST_SET` names, which lie in the repository.
    """
    precisions = ("auto", "fp32") if device == "cpu" else ("fp32", "auto", "fp16", "bf16")
    rows = []
    for precision in precisions:
        row: Row = {"suite": "accuracy", "precision": precision, "test_set": TEST_SET}
        rows.append(row)
        try:
            row |= errors_in_mm(precision, device)
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {error}"[:500]
    return rows


def training_suite(device: str, options: Row) -> list[Row]:
    """A stage's training step at the paper's batch of 200.

    The targets are a linear function of the features: who trains brings the loss down.
    """
    batch, steps = 200, options["steps"]
    features = torch.randn(batch * steps, 2 * JOINTS, device=device)
    targets = features @ (5.0 * torch.randn(2 * JOINTS, 3 * JOINTS, device=device))
    rows: list[Row] = []

    def loss(module: nn.Module) -> float:
        with torch.no_grad():
            return float((module(features) - targets).square().mean())

    def measure(
        name: str, module: nn.Module, make: Callable[[nn.Module], Callable[[], object]]
    ) -> None:
        row: Row = {"suite": "training", "batch": batch, "contender": name}
        rows.append(row)
        try:
            row["loss_before"] = loss(module)
            run = make(module)
            run()
            row["loss_after"] = loss(module)
            # More than dropout's noise.
            if not row["loss_after"] < 0.998 * row["loss_before"] < math.inf:
                row["failed"] = "the loss did not go down"
                return
            # A pass is long and synchronises: the clock is good enough.
            samples = []
            for _ in range(options["rounds"]):
                begin = time.perf_counter()
                run()
                if device != "cpu":
                    torch.cuda.synchronize()
                samples.append((time.perf_counter() - begin) / steps)
            row["us"] = round(1e6 * sorted(samples)[len(samples) // 2], 3)
            row |= {"us_low": round(1e6 * min(samples), 3), "us_high": round(1e6 * max(samples), 3)}
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {error}"[:500]

    def loop(regressor: nn.Module) -> Callable[[], object]:
        """As erd_cuda.training runs it."""
        phase = Phase(
            "stage", regressor, regressor, features, targets, 0, None, 1, batch, 1e-3, 0.96, 2
        )
        optimizer, shuffle = make_optimizer(phase), torch.Generator().manual_seed(0)
        runner = make_steps(phase, optimizer)
        return lambda: train_epoch(phase, 0, optimizer, shuffle, None, runner)

    def stepper(module: nn.Module, graph: bool) -> Callable[[], object]:
        module.requires_grad_(True)
        capturable = device != "cpu"
        optimizer = torch.optim.Adam(
            module.parameters(), lr=1e-3, fused=True, capturable=capturable
        )
        x, y = features[:batch].clone(), targets[:batch].clone()

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            (module(x) - y).square().mean().backward()
            optimizer.step()

        run: Callable[[], None] = step
        if graph and device != "cpu":
            run = _captured_step(step)

        def steps_in_a_row() -> None:
            for i in range(steps):
                x.copy_(features[i * batch : (i + 1) * batch])
                y.copy_(targets[i * batch : (i + 1) * batch])
                run()

        return steps_in_a_row

    def ours() -> nn.Module:
        return erd_cuda.ResidualRegressor(2 * JOINTS, JOINTS, WIDTH).to(device).train()

    def paper_layers() -> nn.Module:
        network = make_network(JOINTS, 1, WIDTH)
        return torch_layers.PaperLayers(network).regressors[0].to(device).train()

    measure("erd_cuda training loop", ours(), loop)
    measure("erd_cuda operator, graph", ours(), lambda module: stepper(module, True))
    measure("torch layers, eager", paper_layers(), lambda module: stepper(module, False))
    measure("torch layers, graph", paper_layers(), lambda module: stepper(module, True))
    return rows


def _captured_step(step: Callable[[], None]) -> Callable[[], None]:
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
