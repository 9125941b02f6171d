"""What every kernel of the refiner must show, whatever its block and arithmetic.

A kernel is given as ``run(problem, root_mode)`` where a check needs results only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from precision import relative_error
from torch import Tensor

from erd_cuda.benchmarks import oracle
from erd_cuda.benchmarks.problems import Problem, make_network, make_problem
from erd_cuda.benchmarks.refine_kernels import run_variant

#: Largest relative error of the increments of a few poses. float32 itself is at 0.7e-6 to 2e-6: it
#: rounds points of hundreds of pixels, of which residuals of tens are left.
LIMITS = {"fp32": 3e-6, "split": 3e-6, "fp16": 2e-3, "bf16": 1.6e-2}

Run = Callable[[Problem], Tensor]


def increment_error(
    problem: Problem,
    network: oracle.Network,
    precision: str,
    variant: str,
    root_mode: str = "given",
    with_confidence: bool = False,
    return_stages: bool = False,
    device: str = "cpu",
) -> float:
    """Relative error of the refined minus the given pose against the float64 oracle.

    That of the worst stage with ``return_stages``, else of the last.
    """
    problem = problem.rounded(torch.float32)
    got = run_variant(
        problem, network, precision, variant, root_mode, with_confidence, return_stages, device
    )
    expected = oracle.refine(
        problem.keypoints,
        problem.pose,
        problem.root if root_mode == "given" else root_mode,
        network,
        *problem.lens,
        problem.confidence if with_confidence else None,
    )
    stages = (got, expected) if return_stages else (got[None], expected[-1:])
    pose = problem.pose
    return max(
        relative_error(after.double().cpu() - torch.from_numpy(pose), exact - pose)
        for after, exact in zip(*stages, strict=True)
    )


def one_sample(problem: Problem, i: int) -> Problem:
    """Sample i alone, of a problem with a camera for each."""
    names = ("keypoints", "pose", "root", "intrinsics", "distortion", "confidence")
    values = {name: getattr(problem, name) for name in names}
    return replace(problem, **{k: v if v is None else v[i : i + 1] for k, v in values.items()})


def check_samples_alone(run: Run, problem: Problem, samples: Sequence[int]) -> None:
    """A sample's result is the same bits without its neighbours."""
    together = run(problem)
    for i in samples:
        assert torch.equal(run(one_sample(problem, i))[0], together[i])


def check_bad_samples(run: Run, good: Problem, root_mode: str) -> None:
    """NaN stays with its sample; a sample without a root keeps its pose. `good` has 40 samples."""
    bad = replace(good, keypoints=good.keypoints.copy(), pose=good.pose.copy())
    bad.keypoints[3] = 500.0  # one image point
    bad.keypoints[17, 2] = np.nan
    bad.pose[33, 5, 1] = np.nan
    clean, mixed = run(good), run(bad)
    others = [i for i in range(40) if i not in (3, 17, 33)]
    assert torch.equal(mixed[others], clean[others])
    if root_mode == "given":
        assert mixed[17].isnan().any() and mixed[33].isnan().any()
    else:
        pose = torch.from_numpy(bad.pose).float()
        assert torch.equal(mixed[[3, 17]], pose[[3, 17]])
        assert torch.allclose(mixed[33], pose[33], atol=0, equal_nan=True)


def check_wild_residuals(run: Run, problem: Problem) -> None:
    """A joint beside the camera projects to millions of pixels; fp16 ends at 65504."""
    problem.root[1] = (0.0, 0.0, 1.0)
    assert run(problem).isfinite().all()


def check_residual_limit(
    block: str, precision: str, variant: str, device: str = "cpu", features: str = "residual"
) -> None:
    """A good part of the residuals is clipped, and weighted then."""
    network = replace(make_network(17, 3, 64, block, features), residual_limit=4.0)
    problem = make_problem((21,))
    for root_mode in ("given", "solve"):
        error = increment_error(
            problem, network, precision, variant, root_mode, with_confidence=True, device=device
        )
        # A solved root hands the rounding of pixels on, some tens of times as large.
        assert error < LIMITS[precision] * (1 if root_mode == "given" else 10)
