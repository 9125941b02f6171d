"""Poses per second of the fused op against torch eager running the very same stages."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from erd_cuda.modules.normalization import scale_of
from erd_cuda.ops import refine

if TYPE_CHECKING:
    from erd_cuda.data import PoseDataset
    from erd_cuda.modules import ERD

__all__ = ["Speed", "compare_speed", "eager_stages", "machine"]

INPUT_SETS = 8  # different inputs in turn, so that no call finds the last one's results
LIFTED_AT_ONCE = 16_384
ROUND_SECONDS = 0.02  # a timing much shorter than this is mostly the clock's noise
ENOUGH_SECONDS, ENOUGH_ROUNDS = 6.0, 3  # a slow or busy machine stops here


@dataclass(frozen=True)
class Speed:
    """Median poses per second of both, at one batch size.

    Attributes:
        batch: poses per call.
        rounds: how many rounds were timed.
        fused, eager: poses per second.
        ratio, lowest, highest: how many times faster fused is: median, least and most of the
            rounds, each round timing both right after each other.
        difference: largest difference between the two results in mm.
    """

    batch: int
    rounds: int
    fused: float
    eager: float
    ratio: float
    lowest: float
    highest: float
    difference: float


def eager_stages(
    erd: ERD, keypoints: Tensor, pose: Tensor, root: Tensor, intrinsics: Tensor
) -> Tensor:
    """The stages as they are written in the paper, with torch's operators only.

    Projection (Eq. 5), z-scored features and each stage's Linear, BatchNorm, ReLU and linear
    blocks run one after the other; nothing is folded or collapsed.

    Args:
        erd: the model, in eval mode.
        keypoints: (N, J, 2) px.
        pose: (N, J, 3) mm, the lifter's.
        root: (N, 3) mm.
        intrinsics: (N, 4) or (4,) of a pinhole camera, px.

    Returns:
        (N, J, 3) mm.
    """
    scale, camera = scale_of(erd.std2d), intrinsics.unsqueeze(-2)
    for regressor in erd.regressors:
        point = pose + root.unsqueeze(-2)
        projection = point[..., :2] / point[..., 2:] * camera[..., :2] + camera[..., 2:]
        if erd.features in ("residual", "residual+pose"):
            residual = keypoints - projection
            if erd.residual_limit is not None:
                residual = residual.clamp(-erd.residual_limit, erd.residual_limit)
            z = (residual / scale).flatten(-2)
            z = z if erd.pca is None else erd.pca.rotate(z)
            if erd.mean3d is not None and erd.std3d is not None:
                z3d = (pose - erd.mean3d) / scale_of(erd.std3d)
                z = torch.cat([z, z3d.flatten(-2)], dim=-1)
        else:
            seen = {"init2d": [keypoints], "proj2d": [projection]}.get(
                erd.features, [keypoints, projection]
            )
            parts = [((points - erd.mean2d) / scale).flatten(-2) for points in seen]
            z = torch.cat(parts if erd.pca is None else [erd.pca(part) for part in parts], dim=-1)
        pose = pose + regressor(z).unflatten(-1, (erd.num_joints, 3))
    return pose


@torch.inference_mode()
def compare_speed(erd: ERD, dataset: PoseDataset, batch: int, rounds: int) -> Speed:
    """Time `erd_cuda.refine` and `eager_stages` in alternating rounds, with a given root.

    Args:
        erd: the model; it is put in eval mode.
        dataset: where the poses come from.
        batch: poses per call.
        rounds: how often each is timed, at most; fewer (but 3) if that takes more than 6 s.
    """
    erd.eval()
    weights = erd.packed()
    inputs = [random_input(erd, dataset, batch, seed) for seed in range(INPUT_SETS)]

    def fused(keypoints: Tensor, pose: Tensor, root: Tensor, intrinsics: Tensor) -> Tensor:
        return refine(keypoints, pose, root, intrinsics, weights)

    def eager(keypoints: Tensor, pose: Tensor, root: Tensor, intrinsics: Tensor) -> Tensor:
        return eager_stages(erd, keypoints, pose, root, intrinsics)

    difference = max(float((fused(*x) - eager(*x)).abs().max()) for x in inputs[:2])
    calls = {function: _calls_for(function, inputs) for function in (fused, eager)}
    seconds: dict[Callable[..., Tensor], list[float]] = {fused: [], eager: []}
    start = time.perf_counter()
    for number in range(rounds):
        if number >= ENOUGH_ROUNDS and time.perf_counter() - start > ENOUGH_SECONDS:
            break
        # Who goes first alternates too: the second finds the caches warm or the core throttled.
        for function in (fused, eager) if number % 2 else (eager, fused):
            seconds[function].append(_time(function, inputs, calls[function]))
    ratios = [b / a for a, b in zip(seconds[fused], seconds[eager], strict=True)]
    return Speed(
        batch=batch,
        rounds=len(ratios),
        fused=batch / statistics.median(seconds[fused]),
        eager=batch / statistics.median(seconds[eager]),
        ratio=statistics.median(ratios),
        lowest=min(ratios),
        highest=max(ratios),
        difference=difference,
    )


def random_input(
    erd: ERD, dataset: PoseDataset, batch: int, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keypoints, the lifter's poses, roots and intrinsics of samples drawn with replacement.

    The keypoints get a pixel of noise, so that no two samples are equal.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(dataset), (batch,), generator=generator)
    keypoints = dataset.keypoints[rows]
    keypoints = keypoints + torch.randn(keypoints.shape, generator=generator)
    pose = torch.cat([erd.lift(part) for part in keypoints.split(LIFTED_AT_ONCE)])
    return keypoints, pose, dataset.root[rows], dataset.camera.intrinsics[rows]


def machine() -> str:
    """Processor, number of threads and versions, as a heading for timings."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():  # Linux gives only the architecture otherwise
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = models[0] if models else name
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' * (threads > 1)}, torch {torch.__version__}"


def _calls_for(function: Callable[..., Tensor], inputs: Sequence[tuple[Tensor, ...]]) -> int:
    """How many calls fill a round; finding out warms up as well."""
    calls = 1
    while (elapsed := _time(function, inputs, calls) * calls) < ROUND_SECONDS / 2:
        calls *= 2
    return max(1, round(calls * ROUND_SECONDS / elapsed))


def _time(
    function: Callable[..., Tensor], inputs: Sequence[tuple[Tensor, ...]], calls: int
) -> float:
    """Seconds per call."""
    start = time.perf_counter()
    for number in range(calls):
        function(*inputs[number % len(inputs)])
    return (time.perf_counter() - start) / calls
