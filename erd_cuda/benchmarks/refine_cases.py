"""The refiner beside torch eager, torch.compile and the runtimes; gpu_refine has a GPU's peers.

The collapse of the linear block is algebra that any implementation may use: peers run with it and
without. Their relu block has BatchNorm folded into the first layer, as a careful user would; the
paper's layers as they are trained are a peer of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

import erd_cuda
from erd_cuda.benchmarks import ceiling_cases, gpu_refine, oracle, runtimes
from erd_cuda.benchmarks.cases import OURS, Case, Plan, Ready, checked
from erd_cuda.benchmarks.gpu_refine import Contender
from erd_cuda.benchmarks.inputs import (
    FLOP,
    JOINTS,
    STAGES,
    TOLERANCE,
    WIDTH,
    Inputs,
    draw_inputs,
    increment_error,
    input_sets,
)
from erd_cuda.benchmarks.machine import has_bf16
from erd_cuda.benchmarks.peers import Layers
from erd_cuda.benchmarks.problems import make_network, pack
from erd_cuda.benchmarks.torch_layers import PaperLayers

Refine = Callable[..., Tensor]

#: Torch's layers compiled ahead of time.
AHEAD = "AOTInductor"
#: The network of the paper in plain torch, BatchNorm and all.
PAPER = "torch eager, the paper's layers"

#: Why bf16 is missing: without them it is correct everywhere, and slow everywhere.
NO_BF16 = "this processor has no bf16 instructions"


@lru_cache(maxsize=1)
def inputs_of(batch: int, device: str) -> list[list[Tensor]]:
    """The same sets of inputs for all contenders of one batch size."""
    return draw_inputs(batch, input_sets(batch, device), device)


def cases(plan: Plan, device: str) -> list[Case]:
    """All of them, a group after the other."""
    found = []
    for block, batches in plan.refine.items():
        network = make_network(JOINTS, STAGES, WIDTH, block)
        peers = list(_contenders(block, network, device, plan))
        for batch in batches:
            found += ceiling_cases.arithmetic(plan, device, "refine", batch, block)
            found += [
                _case(block, batch, peer, network, device)
                for peer in peers
                # What it compiles is torch.compile's but for the cost of a call.
                if peer.name != AHEAD or batch <= runtimes.FEW
            ]
    return found


def _case(block: str, batch: int, peer: Contender, network: oracle.Network, device: str) -> Case:
    def prepare() -> Ready:
        inputs = inputs_of(batch, device)
        return checked(
            peer.prepare(inputs),
            inputs,
            lambda result, values: increment_error(result, values, network)[0],
            TOLERANCE[peer.precision],
            peer.graph,
        )

    return Case(
        "refine",
        peer.name,
        prepare,
        batch,
        peer.precision,
        block,
        peer.collapsed,
        # What the method needs, however a peer goes about it.
        flop=FLOP[block == "linear"] * batch,
    )


def _contenders(
    block: str, network: oracle.Network, device: str, plan: Plan
) -> Iterator[Contender]:
    paper = PaperLayers(network).to(device)
    as_written = Contender(PAPER, "fp32", False, lambda _: paper, graph=False)
    if device == "cuda":
        contenders = gpu_refine.contenders(block, device, plan.compiler)
        yield from (c for c in contenders if c.collapsed or plan.uncollapsed or block == "relu")
        yield as_written
        return
    yield from _on_cpu(block, network, plan)
    yield as_written


def has_bf16_kernel() -> bool:
    """Whether our kernel for bf16 uses the processor's instructions for it."""
    return str(erd_cuda.build_info()["cpu_capability"]).endswith("bf16")


def _no_bf16(_: Inputs) -> Refine:
    raise ImportError(NO_BF16)


def _on_cpu(block: str, network: oracle.Network, plan: Plan) -> Iterator[Contender]:
    relu = block == "relu"
    packed = pack(network, torch.float32)
    # The same linear layers one by one: folding keeps the hidden ones of a relu block.
    layered = pack(replace(network, block="relu"), torch.float32)

    def ours(precision: str) -> Callable[[Inputs], Refine]:
        return lambda _: lambda k, p, r, c: erd_cuda.refine(k, p, r, c, packed, precision=precision)

    def peers(precision: str, collapsed: bool) -> Iterator[Contender]:
        weights = packed if collapsed else layered
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]

        def add(name: str, prepare: Callable[[Inputs], Refine]) -> Contender:
            return Contender(name, precision, collapsed, prepare, graph=False)

        def compiled(options: dict[str, Any]) -> Refine:
            layers = Layers(weights, dtype, relu)
            chosen = plan.compiler if "backend" in plan.compiler else plan.compiler | options
            return torch.compile(lambda *i: layers(*i), fullgraph=True, **chosen)

        def ahead_of_time(inputs: Inputs) -> Refine:
            if not plan.ahead_of_time:
                raise ImportError("compiles for half a minute: in a full run only")
            return runtimes.aot_inductor(Layers(weights, dtype, relu), inputs)

        if precision == "bf16" and not has_bf16():
            yield add("all bf16 peers", _no_bf16)
            return
        yield add("torch eager", lambda _: Layers(weights, dtype, relu))
        yield add("torch.compile", lambda _: compiled({}))
        frozen = {"options": {"freezing": True}}
        yield add("torch.compile, frozen", lambda _: compiled(frozen))
        if precision == "fp32":
            yield add(AHEAD, ahead_of_time)
            yield add("ONNX Runtime", lambda i: runtimes.onnx_runtime(weights, relu, i))
        yield add("OpenVINO", lambda i: runtimes.openvino(weights, relu, i, precision))

    yield Contender(OURS, "fp32", not relu, ours("fp32"), graph=False)
    in_bf16 = ours("bf16") if has_bf16_kernel() else _no_bf16
    yield Contender(OURS, "bf16", not relu, in_bf16, graph=False)
    for precision in ("fp32", "bf16"):
        yield from peers(precision, not relu)
    if plan.uncollapsed and not relu:
        yield from peers("fp32", False)
