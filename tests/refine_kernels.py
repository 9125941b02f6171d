"""The refiner's kernels one by one, for calls that are made often: everything prepared."""

from __future__ import annotations

from collections.abc import Callable

import torch
from problems import FEATURES, ROOT_MODES
from refine_variants import VARIANTS, arrange
from torch import Tensor

from erd_cuda import PackedRegressors
from erd_cuda._fragments import PRECISIONS
from erd_cuda._library import operators

#: Block, precision and variant of every kernel: on tensor cores the linear block has three.
KERNELS = [(block, "fp32", "simt") for block in ("linear", "relu")]
KERNELS += [
    ("linear", precision, variant)
    for variant in ("throughput", "latency")
    for precision in ("fp16", "bf16", "split")
]
KERNELS += [("linear", precision, "wgmma") for precision in ("fp16", "bf16")]
KERNELS += [("relu", precision, "automatic") for precision in ("fp16", "bf16", "split")]

Refine = Callable[..., Tensor]


def runs_here(variant: str, device: str) -> bool:
    """Whether a GPU has the instructions; Hopper's own exist on no other."""
    if variant != "wgmma" or device == "cpu":
        return True
    return torch.cuda.get_device_capability(device) == (9, 0)


def refine_kernel(
    weights: PackedRegressors, precision: str = "fp32", variant: str = "automatic"
) -> Refine | None:
    """refine(keypoints, pose, root, intrinsics, confidence=None) by one kernel.

    Arguments are (N, J, 2), (N, J, 3), (N, 3) or the root's mode, and (4,) or (N, 4). A variant
    that does not fit a call leaves it to another kernel, as the operator has it. None where the
    weights have no form for this precision and variant.
    """
    fragments = arrange(weights, precision, variant)
    if precision != "fp32" and fragments is None:
        return None
    scale = 1.0 if fragments is None else fragments.feature_scale
    arranged = (None, None) if fragments is None else (fragments.weights, fragments.biases)
    choice = (PRECISIONS[precision], VARIANTS[variant])

    def refine(
        keypoints: Tensor,
        pose: Tensor,
        root: Tensor | str,
        intrinsics: Tensor,
        confidence: Tensor | None = None,
    ) -> Tensor:
        count, joints = pose.shape[:2]
        mode = root if isinstance(root, str) else "given"
        result: Tensor = operators.refine(
            keypoints.reshape(count, -1),
            pose.reshape(count, -1),
            root if isinstance(root, Tensor) else None,
            intrinsics.expand(count, 4),
            None,
            confidence,
            weights.w_in,
            weights.b_in,
            weights.w_hidden,
            weights.b_hidden,
            weights.w_out,
            weights.b_out,
            weights.mean2d,
            *arranged,
            0,
            FEATURES.index(weights.features),
            ROOT_MODES.index(mode),
            False,
            scale,
            *choice,
        )
        return result.view(count, joints, 3)

    return refine


def kernels_run(function: Callable[[], object]) -> list[str]:
    """Names of this library's GPU kernels that a call launches, as the profiler sees them."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        function()
        torch.cuda.synchronize()
    on_gpu = (e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA)
    return [name for name in on_gpu if "erd::" in name]
