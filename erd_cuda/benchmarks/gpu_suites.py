"""What else is measured on a GPU: its ceilings, the geometry operators, calls, a training step."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import erd_cuda
from erd_cuda.benchmarks import call_cases, geometry_cases, peers, training_cases
from erd_cuda.benchmarks.bundled_model import TEST_SET, errors_in_mm
from erd_cuda.benchmarks.cases import WrongResultError
from erd_cuda.benchmarks.gpu_timing import Clock, Function, Stopwatch, host_seconds, in_turn
from erd_cuda.benchmarks.inputs import JOINTS, STAGES, WIDTH, draw_inputs, input_sets
from erd_cuda.benchmarks.problems import make_network, pack

Row = dict[str, Any]

GEOMETRY_BATCHES = (65_536, 1_048_576, 4096)


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


def geometry_suite(batch: int, device: str, compiler_clock: Clock, options: Row) -> list[Row]:
    """project, residual and solve_root beside torch's operators, in CUDA graphs."""
    inputs = draw_inputs(batch, options["sets"] or input_sets(batch), device)
    rows: list[Row] = []
    for op, floats in geometry_cases.FLOATS.items():
        ours, torchs = geometry_cases.functions(op, device)
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
    (inputs,) = draw_inputs(1, 1, device)
    keypoints, pose, root, camera = inputs
    layers = peers.Layers(pack(make_network(JOINTS, STAGES, WIDTH), torch.float32, device))
    model = erd_cuda.ERD.from_pretrained("cmu17-given-root", device)
    functions: dict[str, Callable[[], object]] = {
        name: partial(function, *inputs) for name, function in call_cases.functions(device).items()
    }
    functions |= {
        "ERD.forward, pose given": lambda: model(keypoints, camera, root, pose=pose),
        "torch eager, collapsed": lambda: layers(*inputs),
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


def training_suite(device: str, compiler_clock: Clock, options: Row) -> list[Row]:
    """A stage's training step at the paper's batch of 200, beside torch eager and torch.compile.

    "erd_cuda steps" are what this project wants within 25 us, and did not measure yet: nothing but
    replays of the graphs that the training loop uses, without its shuffling. The targets are a
    linear function of the features: who trains brings the loss down.
    """
    batch, steps = training_cases.BATCH, options["steps"]
    data = training_cases.draw_data(steps, device)
    rows: list[Row] = []

    def measure(
        name: str, module: nn.Module, make: Callable[[nn.Module], Callable[[], object]]
    ) -> None:
        row: Row = {"suite": "training", "batch": batch, "contender": name}
        rows.append(row)
        try:
            row["loss_before"] = training_cases.mean_loss(module, data)
            run = make(module)
            run()
            row["loss_after"] = training_cases.mean_loss(module, data)
            training_cases.check_loss(row["loss_before"], row["loss_after"])
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
        except WrongResultError as error:
            row["failed"] = str(error)
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {error}"[:500]

    def stepper(
        graph: bool, compiler: dict[str, Any] | None = None
    ) -> Callable[[nn.Module], Callable[[], object]]:
        def make(module: nn.Module) -> Callable[[], object]:
            function: Callable[..., Any] = module
            if compiler is not None:
                function = torch.compile(module, fullgraph=True, **compiler)
            return training_cases.stepper(module, function, graph, data)

        return make

    make_ours, make_torchs = training_cases.our_module, training_cases.torch_module
    measure("erd_cuda training loop", make_ours(device), lambda m: training_cases.loop(m, data))
    measure("erd_cuda steps", make_ours(device), lambda m: training_cases.steps_alone(m, data))
    measure("erd_cuda operator, graph", make_ours(device), stepper(True))
    measure("torch layers, eager", make_torchs(device), stepper(False))
    measure("torch layers, graph", make_torchs(device), stepper(True))
    if compiler_clock.left > 0:
        compiled = stepper(True, options["compiler"])
        measure("torch.compile, graph", make_torchs(device), compiled)
    return rows
