"""The refiner on a GPU beside torch eager, CUDA graphs, torch.compile, CuPy and a Triton kernel.

The collapse of the linear block is algebra that any implementation may use: every peer runs with it
and without. Each contender is checked against the float64 oracle before it is timed.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import erd_cuda
from erd_cuda.benchmarks import oracle
from erd_cuda.benchmarks.gpu_timing import Clock, Inputs, Stopwatch, captured, in_turn
from erd_cuda.benchmarks.inputs import (
    BYTES,
    FLOP,
    JOINTS,
    STAGES,
    TOLERANCE,
    WIDTH,
    draw_inputs,
    increment_error,
    input_sets,
)
from erd_cuda.benchmarks.peers import ArrayLayers, Layers
from erd_cuda.benchmarks.problems import make_network, pack
from erd_cuda.benchmarks.refine_kernels import KERNELS, kernels_run, refine_kernel, runs_here

Refine = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Row = dict[str, Any]

BATCHES = (65_536, 1, 1_048_576, 200, 4096, 16)
VARIANT_BATCHES = (1, 16, 64, 256, 512, 1024, 2112, 4096, 8192, 65_536, 1_048_576)
_TORCH = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16}


@dataclass(frozen=True)
class Contender:
    """One way to compute the refiner.

    Attributes:
        name: "erd_cuda" or the peer.
        precision: of the matrix products; "tf32" are torch's of float32 tensors, where tensor cores
            may round them to ten bits of mantissa.
        collapsed: whether a stage is two layers instead of four.
        prepare: makes the function for a batch, which may take a while or fail.
        graph: captured in a CUDA graph.
        compiles: for how long the time limit of compilers has a say in it.
    """

    name: str
    precision: str
    collapsed: bool
    prepare: Callable[[Inputs], Refine]
    graph: bool = True
    compiles: bool = False

    def row(self, suite: str, block: str, batch: int) -> Row:
        return {
            "suite": suite,
            "block": block,
            "batch": batch,
            "contender": self.name,
            "precision": self.precision,
            "collapsed": self.collapsed,
            "in_graph": self.graph,
        }


def contenders(block: str, device: str, compiler: dict[str, Any]) -> list[Contender]:
    """All that compute `block` ("linear" or "relu").

    Args:
        compiler: options of torch.compile.
    """
    network = make_network(JOINTS, STAGES, WIDTH, block)
    packed = pack(network, torch.float32, device)
    # The same linear layers one by one: folding keeps the hidden ones of a relu block.
    layered = pack(replace(network, block="relu"), torch.float32, device)
    relu = block == "relu"

    def ours(precision: str) -> Refine:
        return lambda k, p, r, c: erd_cuda.refine(k, p, r, c, packed, precision=precision)

    def peers(collapsed: bool) -> Iterator[Contender]:
        weights = packed if collapsed else layered
        for precision in ("fp32", "tf32", "fp16"):
            dtype, tf32 = _TORCH[precision], precision == "tf32"

            def eager(_: Inputs, dtype: torch.dtype = dtype, tf32: bool = tf32) -> Refine:
                layers = Layers(weights, dtype, relu)
                return _with_tf32(layers) if tf32 else layers

            def graph(_: Inputs, dtype: torch.dtype = dtype, tf32: bool = tf32) -> Refine:
                layers = Layers(weights, dtype, relu, epilogue=True)
                return _with_tf32(layers) if tf32 else layers

            def compiled(_: Inputs, dtype: torch.dtype = dtype) -> Refine:
                layers = Layers(weights, dtype, relu)
                return torch.compile(lambda *i: layers(*i), fullgraph=True, **compiler)

            def cupy(_: Inputs) -> Refine:
                return ArrayLayers(weights, importlib.import_module("cupy"), relu)

            def triton(inputs: Inputs, dtype: torch.dtype = dtype) -> Refine:
                return _tuned_triton(weights, dtype, relu, inputs)

            if precision == "fp32":
                yield Contender("cupy", precision, collapsed, cupy, graph=False)
            yield Contender("torch eager", precision, collapsed, eager, graph=False)
            yield Contender("torch graph", precision, collapsed, graph)
            if precision == "fp16":
                yield Contender(
                    "torch.compile", precision, collapsed, compiled, compiles=device != "cpu"
                )
            # A hidden layer's weights fit into shared memory in 16 bits only.
            if precision == "fp16" or (collapsed and not tf32):
                yield Contender("triton", precision, collapsed, triton, compiles=device != "cpu")

    # In 16 bits there are kernels for a GPU only.
    precisions = ("auto", "fp32") if device == "cpu" else ("fp16", "bf16", "auto", "fp32")
    mine = [
        Contender("erd_cuda", p, not relu, lambda _, p=p: ours(p))  # type: ignore[misc]
        for p in precisions
    ]
    theirs = [p for collapsed in ((False,) if relu else (True, False)) for p in peers(collapsed)]
    return mine + theirs


def _with_tf32(function: Refine) -> Refine:
    """What a float32 peer does where TF32 is allowed."""

    def allowed(*inputs: Tensor) -> Tensor:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            return function(*inputs)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    return allowed


def _tuned_triton(
    weights: erd_cuda.PackedRegressors, dtype: torch.dtype, relu: bool, inputs: Inputs
) -> Refine:
    if not inputs[0][0].is_cuda:
        raise ImportError("triton has no GPU here")
    from erd_cuda.benchmarks.triton_refine import TritonRefine

    function = TritonRefine(weights, dtype, relu)
    best = float("inf")
    for shape in function.candidates(len(inputs[0][0])):
        trial = replace_shape(function, shape)
        try:
            watch = Stopwatch(trial, inputs[:2], passes=5)
        except Exception as error:  # a shape that needs more than this GPU has
            failure = error
            continue
        seconds = min(watch.sample() for _ in range(3))
        if seconds < best:
            best, chosen = seconds, trial
    if best == float("inf"):
        raise failure
    return chosen


def replace_shape(function: Any, shape: Any) -> Any:
    """The same weights under another shape of the launch."""
    copy = object.__new__(type(function))
    vars(copy).update(vars(function), shape=shape)
    return copy


def checked(
    function: Refine, inputs: list[list[Tensor]], network: oracle.Network, row: Row, graph: bool
) -> Stopwatch | None:
    """A watch for one who is right, by a call and by a pass as it is timed; else None.

    The row gets its ``error`` and, in mm, ``error_mm``, of the worse of the two.
    """
    errors = [increment_error(function(*inputs[0]), inputs[0], network)]
    watch = Stopwatch(function, inputs, graph)
    errors.append(increment_error(watch.last_result(), inputs[-1], network))
    row["error"], row["error_mm"] = (max(values) for values in zip(*errors, strict=True))
    # Not a number is not below either; max() may pass it over.
    if all(error <= TOLERANCE[row["precision"]] for error, _ in errors):
        return watch
    row["failed"] = "wrong result"
    row["errors"] = [error for error, _ in errors]
    return None


def refine_suite(
    block: str, batch: int, device: str, clock: Clock, compiler_clock: Clock, options: Row
) -> list[Row]:
    """Everyone at one batch size, in turn."""
    network = make_network(JOINTS, STAGES, WIDTH, block)
    inputs = draw_inputs(batch, options["sets"] or input_sets(batch), device)
    rows: list[Row] = []
    watches: dict[str, Stopwatch] = {}
    timed: dict[str, Row] = {}
    for contender in contenders(block, device, options["compiler"]):
        row = contender.row("refine", block, batch)
        rows.append(row)
        if clock.left < 0 or (contender.compiles and compiler_clock.left < 0):
            row["skipped"] = "out of time"
            continue
        key = str(len(rows))
        begin = time.monotonic()
        try:
            function = contender.prepare(inputs)
            watch = checked(function, inputs, network, row, contender.graph)
            if watch is not None:
                watches[key], timed[key] = watch, row
        except ImportError as error:
            row["skipped"] = str(error)
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {error}"[:500]
        row["prepare_s"] = round(time.monotonic() - begin, 2)
    for key, timing in in_turn(watches, options["rounds"], options["seconds"]).items():
        row = timed[key]
        row |= timing.figures()
        row["poses_per_s"] = round(batch / timing.median)
        row["flop_per_s"] = row["poses_per_s"] * FLOP[row["collapsed"]]
        row["bytes_per_s"] = row["poses_per_s"] * BYTES
    return rows


def variant_suite(batch: int, device: str, clock: Clock, options: Row) -> list[Row]:
    """Each kernel at one batch size, to see where one overtakes the other."""
    rows: list[Row] = []
    watches: dict[str, Stopwatch] = {}
    timed: dict[str, Row] = {}
    inputs = draw_inputs(batch, options["sets"] or input_sets(batch), device)
    for block, precision, variant in KERNELS:
        row = {"suite": "variants", "block": block, "batch": batch}
        row |= {"precision": precision, "variant": variant, "collapsed": block == "linear"}
        rows.append(row)
        if clock.left < 0:
            row["skipped"] = "out of time"
            continue
        if not runs_here(variant, device):
            row["skipped"] = "this GPU has no such instructions"
            continue
        network = make_network(JOINTS, STAGES, WIDTH, block)
        function = refine_kernel(pack(network, torch.float32, device), precision, variant)
        assert function is not None
        try:
            watch = checked(function, inputs, network, row, graph=True)
            if watch is not None:
                watches[str(len(rows))], timed[str(len(rows))] = watch, row
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {error}"[:500]
    for key, timing in in_turn(watches, options["rounds"], options["seconds"]).items():
        timed[key] |= timing.figures() | {"poses_per_s": round(batch / timing.median)}
    return rows


def kernels_suite(device: str) -> list[Row]:
    """Which kernels run where one was asked for: a variant that does not fit leaves the call to
    another. Last of all, because the profiler stays in the process.
    """
    inputs = draw_inputs(300, 1, device)[0]
    rows = []
    for block, precision, variant in KERNELS:
        row: Row = {"suite": "kernels", "block": block, "precision": precision, "variant": variant}
        rows.append(row)
        if device == "cpu" or not runs_here(variant, device):
            row["skipped"] = "no such GPU"
            continue
        network = make_network(JOINTS, STAGES, WIDTH, block)
        function = refine_kernel(pack(network, torch.float32, device), precision, variant)
        assert function is not None
        row["kernels"] = kernels_run(lambda f=function: f(*inputs))  # type: ignore[misc]
    return rows


def latency_suite(device: str, options: Row) -> list[Row]:
    """Replays of a graph of a single call, back to back: what a tracker with one person has."""
    network = make_network(JOINTS, STAGES, WIDTH)
    weights = pack(network, torch.float32, device)
    inputs = draw_inputs(1, 1, device)
    precisions = ("auto", "fp32") if device == "cpu" else ("fp16", "bf16", "auto", "fp32")
    rows = []
    for precision in precisions:
        row: Row = {"suite": "latency", "batch": 1, "precision": precision}
        rows.append(row)

        def call(k: Tensor, p: Tensor, r: Tensor, c: Tensor, precision: str = precision) -> Tensor:
            return erd_cuda.refine(k, p, r, c, weights, precision=precision)

        try:
            watch = Stopwatch(call, inputs, passes=100)
            (timing,) = in_turn({"": watch}, options["rounds"], options["seconds"]).values()
            row |= timing.figures()
            row["waited_us"] = _waited(call, inputs) if watch.on_gpu else None
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {error}"[:500]
    return rows


def _waited(call: Refine, inputs: Inputs) -> float:
    """Microseconds on the host from a replay to the end of its work, the median of many."""
    replay = captured(call, inputs)
    taken = []
    for _ in range(200):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        replay()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - begin)
    return round(1e6 * float(np.median(taken)), 3)
