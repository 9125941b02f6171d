"""Writes the cases that runner.cpp runs: calls of the CPU kernels, and what must come out.

What must come out is float64: the oracle's for refine and the status of roots, for refine in bf16
rounded where the kernels round, else that of this machine's own kernels, which the tests have
compared with the oracle. float32 may be off by three times as much as on this machine's own
instruction set; bf16 besides by some numbers that round to the other side, which is a tenth of what
all roundings do.

    python scripts/instruction_sets/make_cases.py CASES
"""

from __future__ import annotations

import dataclasses
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from op_calls import GEOMETRY_CASES, Case, unit_scale  # noqa: E402
from regressor_batches import Batch, make_batch  # noqa: E402
from rounded_network import features_of, increment_of  # noqa: E402

import erd_cuda  # noqa: E402
from erd_cuda._columns import weight_columns  # noqa: E402
from erd_cuda._fragments import PRECISIONS  # noqa: E402
from erd_cuda._library import operators  # noqa: E402
from erd_cuda.benchmarks import oracle  # noqa: E402
from erd_cuda.benchmarks.problems import (  # noqa: E402
    CAMERA_MODELS,
    FEATURES,
    ROOT_MODES,
    Problem,
    make_network,
    make_problem,
    pack,
)

DTYPES = (torch.float32, torch.float64)
#: In the order of GeometrySlot in csrc/core/calls.h.
SLOTS = ("keypoints", "pose", "root", "intrinsics", "distortion", "std", "confidence")
#: Enough for whole blocks of every instruction set, parts of a block and parts of a vector.
POSES = 101
SAMPLES = 37
#: What single numbers that round up in place of down do to all increments, as a share.
OTHER_SIDE = 2e-4

Value = int | float | Tensor | NDArray[Any] | None


def write_case(file: BinaryIO, name: str, values: Iterable[Value]) -> None:
    """Numbers are eight bytes, arrays their length in bytes and then themselves."""
    file.write(struct.pack("<q", len(name)) + name.encode())
    for value in values:
        if isinstance(value, (int, np.integer)):
            file.write(struct.pack("<q", value))
        elif isinstance(value, float):
            file.write(struct.pack("<d", value))
        else:
            array = value.detach().numpy() if isinstance(value, Tensor) else value
            data = b"" if array is None else np.ascontiguousarray(array).tobytes()
            file.write(struct.pack("<q", len(data)) + data)


def with_tolerance(
    expected: Any, reached: Any, dtype: torch.dtype, other_side: float = 0.0
) -> NDArray[np.float64]:
    """What the runner compares with: the tolerance, then what must come out."""
    exact = np.asarray(torch.as_tensor(expected).detach(), np.float64).ravel()
    here = np.asarray(torch.as_tensor(reached).detach(), np.float64).ravel()
    error = np.linalg.norm(here - exact) / np.linalg.norm(exact)
    floor = 1e-6 if dtype is torch.float32 else 1e-12
    return np.concatenate([[3 * error + floor + other_side], exact])


def scalar_of(dtype: torch.dtype) -> int:
    return DTYPES.index(dtype)


def in_bf16(problem: Problem, weights: erd_cuda.PackedRegressors) -> NDArray[np.float64]:
    """The poses after every stage, in float64 that rounds where the kernels do."""
    poses = []
    for k in range(weights.stages):
        step = increment_of(weights, k, features_of(weights, problem, problem.confidence))
        pose = problem.pose + step.reshape(problem.pose.shape)
        problem = dataclasses.replace(problem, pose=pose)
        poses.append(pose)
    return np.stack(poses)


def refine_case(
    file: BinaryIO,
    block: str,
    features: str,
    root: str,
    model: str,
    dtype: torch.dtype,
    joints: int = 15,
    precision: str = "fp32",
) -> None:
    # 70 units and 15 joints: neither fills whole tiles or vectors.
    network = make_network(joints, 3, 70, block, features)
    problem = make_problem((POSES,), joints, model).rounded(dtype)
    weights = pack(network, dtype)
    with_root = root == "given"
    if precision == "bf16":
        exact = in_bf16(problem, weights)
    else:
        where = problem.root if with_root else root
        exact = oracle.refine(
            problem.keypoints, problem.pose, where, network, *problem.lens, problem.confidence
        )
    tensors = {name: problem.tensor(name, dtype) for name in ("keypoints", "pose", "confidence")}
    reached = erd_cuda.refine(
        tensors["keypoints"],
        tensors["pose"],
        problem.tensor("root", dtype) if with_root else root,
        problem.camera(dtype),
        weights,
        tensors["confidence"],
        return_stages=True,
        precision=precision if dtype is torch.float32 else "auto",
    )
    parts = {
        name: None if (value := getattr(weights, name)) is None else value.numpy()
        for name in ("w_in", "b_in", "w_hidden", "b_hidden", "w_out", "b_out")
    }
    increments = exact - problem.pose, reached.double().numpy() - problem.pose
    expected = with_tolerance(*increments, dtype, OTHER_SIDE if precision == "bf16" else 0.0)
    values: list[Value] = [
        scalar_of(dtype),
        CAMERA_MODELS.index(model),
        ("linear", "relu").index(block),
        FEATURES.index(features),
        ROOT_MODES.index(root),
        PRECISIONS[precision],
        POSES,
        joints,
        3,
        70,
        float(network.residual_limit),
        tensors["keypoints"],
        tensors["pose"],
        problem.tensor("root", dtype) if with_root else None,
        problem.tensor("intrinsics", dtype),
        None if problem.distortion is None else problem.tensor("distortion", dtype),
        tensors["confidence"],
        *parts.values(),
        weights.mean2d,
        weight_columns(**parts, precision=precision),  # type: ignore[arg-type]
        expected,
    ]
    kind = f"{block} {features} {root} {model} {joints} joints {precision} {dtype}"
    write_case(file, f"refine {kind}".lower(), values)


def derivatives(
    case: Case, tensors: dict[str, Tensor], grad: Tensor, tangents: Sequence[Tensor]
) -> list[list[Tensor]]:
    """Of each order: the output and the gradients of all inputs."""
    inputs = [tensor.requires_grad_() for tensor in tensors.values()]
    grad = grad.requires_grad_()
    output = case(tensors)
    flat = output if output.shape == grad.shape else output.reshape(grad.shape)
    first = torch.autograd.grad(flat, inputs, grad, create_graph=True)
    second = torch.autograd.grad(first, [grad, *inputs], tangents, allow_unused=True)
    filled = [
        torch.zeros_like(t) if g is None else g
        for g, t in zip(second, [grad, *inputs], strict=True)
    ]
    return [[flat], [flat, *first], filled]


def geometry_cases(file: BinaryIO, case: Case, joints: int, dtype: torch.dtype) -> None:
    problem = unit_scale(make_problem((SAMPLES,), joints, case.model)).rounded(torch.float32)
    rng = np.random.default_rng(5)

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(rng.normal(size=shape).astype(np.float32)).double()

    exact = case.tensors(problem)
    if "std" in exact:
        exact["std"] = exact["std"].expand(SAMPLES, joints, 2).contiguous()
    width = case(exact).reshape(SAMPLES, -1).shape[1]
    grad = normal(SAMPLES, width)
    tangents = [normal(*tensor.shape) for tensor in exact.values()]

    def all_derivatives(to: torch.dtype) -> list[list[Tensor]]:
        return derivatives(
            case,
            {name: tensor.detach().clone().to(to) for name, tensor in exact.items()},
            grad.detach().clone().to(to),
            [tangent.to(to) for tangent in tangents],
        )

    expected, reached = all_derivatives(torch.float64), all_derivatives(dtype)
    has_status = case.op in ("solve_root", "solve_residual")
    for order in range(3):
        values: list[Value] = [
            ("project", "residual", "solve_root", "solve_residual").index(case.op),
            order,
            scalar_of(dtype),
            CAMERA_MODELS.index(case.model),
            SAMPLES,
            joints,
        ]
        names = list(exact)
        values += [exact[slot].to(dtype) if slot in exact else None for slot in SLOTS]
        values += [
            tangents[names.index(slot)].to(dtype) if order == 2 and slot in exact else None
            for slot in SLOTS
        ]
        values.append(grad.to(dtype) if order > 0 else None)
        results = [
            with_tolerance(e, r, dtype)
            for e, r in zip(expected[order], reached[order], strict=True)
        ]
        values.append(None if order == 1 else results[0])
        values.append(np.zeros(SAMPLES, np.int32) if has_status and order == 0 else None)
        values += [
            results[1 + names.index(slot)] if order > 0 and slot in exact else None
            for slot in SLOTS
        ]
        name = f"{case} {('forward', 'backward', 'double backward')[order]} of {joints} joints"
        write_case(file, f"{name} {dtype}", values)


def roots_that_fail_case(file: BinaryIO, dtype: torch.dtype) -> None:
    """Every status among good samples."""
    problem = make_problem((SAMPLES,), 17).rounded(dtype)
    problem.confidence[3] = 0.0
    problem.keypoints[9] = 500.0
    problem.keypoints[20, 4] = np.nan
    problem.keypoints[31] = problem.lens[0][31, None, 2:] * 2 - problem.keypoints[31]
    arrays = [problem.tensor(name, dtype) for name in ("keypoints", "pose", "confidence")]
    roots, status = oracle.solve_root(
        problem.keypoints, problem.pose, *problem.lens, problem.confidence
    )
    assert set(status) == set(range(5)), status
    reached = erd_cuda.solve_root(*arrays[:2], problem.camera(dtype), arrays[2])
    values: list[Value] = [2, 0, scalar_of(dtype), 0, SAMPLES, 17]
    values += [
        arrays[0],
        arrays[1],
        None,
        problem.tensor("intrinsics", dtype),
        None,
        None,
        arrays[2],
    ]
    values += [None] * 7 + [None, with_tolerance(roots, reached, dtype), status.astype(np.int32)]
    write_case(file, f"solve_root where some have none {dtype}", values + [None] * 7)


def shape_of(batch: Batch, dtype: torch.dtype) -> list[Value]:
    features, w_in = batch.tensors[:2]
    outputs = batch.tensors[-2].shape[0]
    return [scalar_of(dtype), *features.shape, w_in.shape[0], outputs, batch.dropout]


def regressor_case(
    file: BinaryIO, sizes: tuple[int, ...], dtype: torch.dtype, **options: Any
) -> None:
    batch = make_batch(*sizes, **options).to(torch.float32).to(torch.float64)
    generator = torch.Generator().manual_seed(2)
    grad = torch.randn(sizes[0], sizes[3], generator=generator).double()
    order = (0, 1, 3, 4, 5, 7, 6, 8, 9, 10)  # of RegressorGradient, without the first layer's bias

    def run(b: Batch) -> list[Tensor]:
        result = b()
        gradients = torch.autograd.grad(result.increment, b.tensors, grad.to(b.tensors[0]))
        return [*result, *(gradients[i] for i in order)]

    expected, reached = run(batch), run(batch.to(dtype))
    results = [with_tolerance(e, r, dtype) for e, r in zip(expected, reached, strict=True)]
    values = [*shape_of(batch, dtype), int(batch.relu_block), batch.seed, batch.eps]
    values += [*batch.to(dtype).tensors, grad.to(dtype), *results]
    write_case(file, f"regressor {sizes} {options} {dtype}", values)


def step_case(file: BinaryIO, sizes: tuple[int, ...], dtype: torch.dtype, **options: Any) -> None:
    """An epoch of three steps."""
    made = make_batch(*sizes, **options).to(torch.float32).to(torch.float64)
    rows, width, outputs = sizes[0], sizes[2], sizes[3]
    generator = torch.Generator().manual_seed(2)
    targets = torch.randn(3 * rows, outputs, generator=generator).double()
    features = torch.randn(3 * rows, sizes[1], generator=generator).double()
    order = torch.randperm(3 * rows, generator=generator)
    seeds = made.seed + torch.arange(3) if made.dropout else None
    lr, *adam = 1e-3, 0.9, 0.999, 1e-8

    def run(to: torch.dtype) -> list[Tensor]:
        def fresh(tensors: Iterable[Tensor]) -> list[Tensor]:
            return [tensor.detach().clone().to(to) for tensor in tensors]

        parameters = fresh(made.tensors[1:])
        zeros = [torch.zeros_like(p) for p in parameters], [torch.zeros_like(p) for p in parameters]
        counts = [torch.zeros(()) for _ in parameters]
        running = torch.zeros(width, dtype=to), torch.ones(width, dtype=to)
        sums = torch.zeros(2, dtype=torch.float64)
        size = operators.regressor_step_workspace(*sizes, to is torch.float64, False)
        progress = torch.zeros(2, dtype=torch.int64)
        for _ in range(3):
            operators.regressor_step_(
                *fresh([features, targets]), order, progress, parameters, *zeros, counts, *running,
                torch.zeros((), dtype=torch.int64), sums, torch.empty(size, dtype=torch.uint8),
                seeds, torch.tensor(lr, dtype=torch.float64), rows, made.dropout, made.eps, 0.1,
                made.relu_block, *adam, 0,
            )  # fmt: skip
        return [*parameters, *running, sums]

    expected, reached = run(torch.float64), run(dtype)
    values: list[Value] = [*shape_of(made, dtype), int(made.relu_block), 0, 3]
    values += [made.eps, 0.1, lr, *adam, features.to(dtype), targets.to(dtype), order, seeds]
    values += [parameter.to(dtype) for parameter in made.tensors[1:]]
    values += [torch.zeros(width, dtype=dtype), torch.ones(width, dtype=dtype)]
    values += [with_tolerance(e, r, dtype) for e, r in zip(expected, reached, strict=True)]
    write_case(file, f"step {sizes} {options} {dtype}", values)


def write_cases(file: BinaryIO) -> None:
    for block in ("linear", "relu"):
        for features, model in [("residual", "pinhole"), ("residual+pose", "opencv")]:
            refine_case(file, block, features, "given", model, torch.float32, precision="bf16")
    for dtype in DTYPES:
        for block in ("linear", "relu"):
            for features, root, model in [
                ("residual", "given", "pinhole"),
                ("residual", "solve_each_stage", "opencv"),
                ("concat", "solve", "h36m"),
                ("residual+pose", "given", "opencv"),
            ]:
                refine_case(file, block, features, root, model, dtype)
            # Of 51 outputs the last three have a place of their own.
            refine_case(file, block, "residual", "given", "pinhole", dtype, joints=17)
        for case in GEOMETRY_CASES:
            for joints in (3, 17):
                geometry_cases(file, case, joints, dtype)
        roots_that_fail_case(file, dtype)
        trained: list[Callable[..., None]] = [regressor_case, step_case]
        for write in trained:
            write(file, (50, 34, 130, 51), dtype, dropout=0.5)
            write(file, (7, 5, 9, 6), dtype, relu_block=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with open(sys.argv[1], "wb") as target:
        write_cases(target)
