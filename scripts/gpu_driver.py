"""Runs the kernels for gpu_check.py: under the sanitizers, under the profiler, or to be described.

    python scripts/gpu_driver.py describe     versions and GPUs, as JSON
    python scripts/gpu_driver.py build        what erd_cuda.build_info() says, as JSON
    python scripts/gpu_driver.py every        each kernel once, at sizes that leave tails
    python scripts/gpu_driver.py hot          the kernels that count, at the sizes that count

``--device cpu`` runs the same calls on the CPU's kernels.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

#: Poses a call: one, an odd few, more than a tile of any kernel.
SIZES = (1, 19, 149)


def describe() -> None:
    import torch

    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "packages": {},
        "gpus": [],
    }
    wanted = "triton numpy cupy-cuda13x cupy-cuda12x cupy safetensors pytest hypothesis expecttest"
    for name in [*wanted.split(), "pytest-benchmark", "pytest-timeout", "pytest-xdist"]:
        try:
            facts["packages"][name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts["packages"][name] = None
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        facts["gpus"].append(
            {
                "name": found.name,
                "capability": f"{found.major}.{found.minor}",
                "multiprocessors": found.multi_processor_count,
                "memory": found.total_memory,
            }
        )
    print(json.dumps(facts))


def describe_build() -> None:
    try:
        import erd_cuda

        facts = erd_cuda.build_info()
    except (ImportError, OSError) as error:
        facts = {"missing": str(error)}
    print(json.dumps(facts))


def refine_calls(device: str, wgmma: bool) -> Iterator[tuple[str, Any]]:
    """Calls of Hopper's own kernels, or of all others."""
    from erd_cuda.benchmarks.problems import FEATURES, ROOT_MODES, make_network, make_problem
    from erd_cuda.benchmarks.refine_kernels import KERNELS, run_variant, runs_here

    for block, precision, variant in KERNELS:
        if (variant == "wgmma") != wgmma or not runs_here(variant, device):
            continue
        network = make_network(block=block)
        for size in SIZES:
            problem = make_problem((size,))
            yield (
                f"refine {precision} {variant} {block} {size}",
                lambda a=(problem, network, precision, variant): run_variant(*a, device=device),
            )
        # Other joints, widths, cameras, features and roots, two stages deep.
        for joints, width, model, mode, features in (
            (1, 16, "opencv", ROOT_MODES[0], FEATURES[0]),
            (19, 48, "h36m", ROOT_MODES[1], FEATURES[2]),
            (32, 512, "opencv", ROOT_MODES[2], FEATURES[3]),
            (17, 256, "pinhole", ROOT_MODES[2], FEATURES[0]),
            # An odd number of features, which the linear block has no tensor-core kernel for.
            *([(15, 32, "h36m", ROOT_MODES[0], FEATURES[4])] if block == "relu" else []),
        ):
            network = make_network(joints, 2, width, block, features)
            # A single joint has no root to solve for, but its status to report.
            problem = make_problem((37,), joints, model)
            yield (
                f"refine {precision} {variant} {block} {joints} joints {mode}",
                lambda a=(problem, network, precision, variant, mode, True, True): run_variant(
                    *a, device=device
                ),
            )


def feature_calls(device: str) -> Iterator[tuple[str, Any]]:
    """What the refiner can be fed with, in plain float32 and float64."""
    import torch

    from erd_cuda.benchmarks.problems import FEATURES, make_network, make_problem

    for features in FEATURES:
        network = make_network(17, 2, 40, "relu", features)
        problem = make_problem((23,))
        for dtype in (torch.float32, torch.float64):
            yield (
                f"refine simt {features} {dtype}",
                lambda a=(problem, network, dtype): _public(*a, device),
            )


def _public(problem: Any, network: Any, dtype: Any, device: str) -> Any:
    import erd_cuda
    from erd_cuda.benchmarks.problems import pack

    weights = pack(network, dtype, device)
    inputs = (problem.tensor(name, dtype, device) for name in ("keypoints", "pose", "root"))
    return erd_cuda.refine(*inputs, problem.camera(dtype, device), weights)


def geometry_calls(device: str) -> Iterator[tuple[str, Any]]:
    """Forward, backward and double backward."""
    import torch
    from op_calls import GEOMETRY_CASES

    from erd_cuda.benchmarks.problems import make_problem

    def differentiate(case: Any, problem: Any, dtype: Any) -> Any:
        inputs = {
            name: value.to(device).requires_grad_()
            for name, value in case.tensors(problem, dtype).items()
        }
        output = case(inputs)
        leaves = list(inputs.values())
        first = torch.autograd.grad(output.square().sum(), leaves, create_graph=True)
        torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        return output

    for case in GEOMETRY_CASES:
        for dtype in (torch.float32, torch.float64):
            for size in (19, 149):
                problem = make_problem((size,), model=case.model)
                yield (
                    f"{case} {dtype} {size}",
                    lambda a=(case, problem, dtype): differentiate(*a),
                )


def training_calls(device: str) -> Iterator[tuple[str, Any]]:
    """A step of a regressor: forward and backward, and three whole ones as training takes them."""
    import torch

    import erd_cuda
    from erd_cuda.training.fused import FusedSteps
    from erd_cuda.training.loop import Phase, make_optimizer

    def step(block: str, dtype: Any, rows: int) -> Any:
        regressor = erd_cuda.ResidualRegressor(34, 17, 256, block=block).to(device, dtype)
        features = torch.randn(rows, 34, dtype=dtype).to(device).requires_grad_()
        increment = regressor(features)
        increment.square().mean().backward()
        return increment

    def whole_steps(block: str, dtype: Any, rows: int) -> Any:
        """Two full batches and a smaller one."""
        regressor = erd_cuda.ResidualRegressor(34, 17, 256, block=block).to(device, dtype)
        samples = [torch.randn(2 * rows + 2, n, dtype=dtype).to(device) for n in (34, 51)]
        phase = Phase("stage", regressor, regressor, *samples, 0, None, 1, rows, 1e-3, 1.0, 1)
        steps = FusedSteps(phase, make_optimizer(phase))
        steps.begin_epoch(torch.randperm(len(samples[0])).to(device))
        for _ in range(3):
            steps.run()
        return steps.sums.both

    for block in ("linear", "relu"):
        for dtype in (torch.float32, torch.float64):
            for rows in (2, 67, 200):
                yield (
                    f"training {block} {dtype} {rows}",
                    lambda a=(block, dtype, rows): step(*a),
                )
                yield (
                    f"training step {block} {dtype} {rows}",
                    lambda a=(block, dtype, rows): whole_steps(*a),
                )


def every(device: str, seconds: float) -> int:
    """Calls until the time is over or the context lost; a hanging one is the last that is named."""
    import torch

    from erd_cuda.benchmarks.gpu_timing import lost_context

    begin = time.monotonic()
    failures = done = left_out = 0
    # Hopper's barriers are the likeliest to wait for ever: nothing comes after them.
    calls = itertools.chain(
        refine_calls(device, wgmma=False),
        feature_calls(device),
        geometry_calls(device),
        training_calls(device),
        refine_calls(device, wgmma=True),
    )
    for name, call in calls:
        if time.monotonic() - begin > seconds:
            left_out += 1
            continue
        print(f"call {name}", flush=True)
        try:
            result = call()
            if device != "cpu":
                torch.cuda.synchronize()
            assert torch.isfinite(result.detach().cpu()).all(), "a result is not finite"
            done += 1
        except Exception as error:
            failures += 1
            print(f"FAILED {name}: {type(error).__name__}: {error}", flush=True)
            if lost_context():
                print("the CUDA context is lost: nothing more can run here", flush=True)
                break
    print(f"{done} calls ran, {failures} failed, {left_out} left out for want of time", flush=True)
    return 1 if failures else 0


def hot(device: str) -> int:
    """The profiler looks at what lies between start and stop."""
    import torch

    import erd_cuda
    from erd_cuda.benchmarks.inputs import draw_inputs
    from erd_cuda.benchmarks.problems import make_network, pack
    from erd_cuda.benchmarks.refine_kernels import KERNELS, refine_kernel, runs_here

    many, few = (1 << 20, 65_536) if device != "cpu" else (8, 4)
    calls = []
    for block, precision, variant in sorted(KERNELS, key=lambda kernel: kernel[2] == "wgmma"):
        if precision == "bf16" or not runs_here(variant, device):
            continue
        kernel = refine_kernel(
            pack(make_network(block=block), torch.float32, device), precision, variant
        )
        for size in (few,) if variant == "simt" else (many, 1):
            calls.append((kernel, draw_inputs(size, 1, device)[0]))
    keypoints, pose, root, camera = draw_inputs(many, 1, device)[0]
    with torch.inference_mode():
        for kernel, inputs in calls:
            kernel(*inputs)
        if device != "cpu":
            torch.cuda.synchronize()
            torch.cuda.profiler.start()
        for kernel, inputs in calls:
            kernel(*inputs)
        erd_cuda.project(pose, root, camera)
        erd_cuda.residual(keypoints, pose, root, camera)
        erd_cuda.solve_root(keypoints, pose, camera)
        with torch.inference_mode(False):
            dict(training_calls(device))["training step linear torch.float32 200"]()
        if device != "cpu":
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()
    print(f"{len(calls) + 4} calls ran")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["describe", "build", "every", "hot"])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--seconds", type=float, default=600.0, help="every: begin no call after")
    chosen = parser.parse_args()
    if chosen.what in ("describe", "build"):
        describe() if chosen.what == "describe" else describe_build()
        return 0
    return every(chosen.device, chosen.seconds) if chosen.what == "every" else hot(chosen.device)


if __name__ == "__main__":
    sys.exit(main())
