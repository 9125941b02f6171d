"""The refine operator with its kernel pinned: on a GPU, or on the CPU in the emulated library."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from erd_cuda import Camera, PackedRegressors
from erd_cuda._definitions import CAMERA_MODELS
from erd_cuda._fragments import PRECISIONS
from erd_cuda._fragments_wgmma import fits_wgmma, wgmma_fragments
from erd_cuda._library import operators
from erd_cuda.benchmarks import oracle
from erd_cuda.benchmarks.problems import FEATURES, ROOT_MODES, Problem, pack
from erd_cuda.modules.packed import ArrangedWeights

#: Numbers of RefineVariant in csrc/core/calls.h.
VARIANTS = {"automatic": 0, "simt": 1, "throughput": 2, "latency": 3, "wgmma": 4}

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


def arrange(weights: PackedRegressors, precision: str, variant: str) -> ArrangedWeights | None:
    """The weights in the order of the variant's tensor-core kernel, or None where it has none."""
    if precision == "fp32":
        return None
    if variant != "wgmma":
        return weights.for_tensor_cores(precision)
    sizes = (weights.block, weights.features, weights.num_joints, weights.width)
    if not fits_wgmma(*sizes, precision):
        return None
    w_in, b_in, w_out, b_out = (
        m.cpu().numpy() for m in (weights.w_in, weights.b_in, weights.w_out, weights.b_out)
    )
    made = wgmma_fragments(w_in, b_in, w_out, b_out, precision)
    device = weights.w_in.device
    return ArrangedWeights(
        torch.from_numpy(made.weights.view(np.int16)).to(device),
        torch.from_numpy(made.biases).to(device),
        made.feature_scale,
    )


def refine_kernel(
    weights: PackedRegressors, precision: str = "fp32", variant: str = "automatic"
) -> Refine | None:
    """One kernel, prepared for calls that are made often; see :func:`pinned`.

    None where the weights have no form for this precision and variant.
    """
    arranged = arrange(weights, precision, variant)
    if precision != "fp32" and arranged is None:
        return None
    return pinned(weights, arranged, precision, variant)


def pinned(
    weights: PackedRegressors, arranged: ArrangedWeights | None, precision: str, variant: str
) -> Refine:
    """refine(keypoints, pose, root, camera, confidence=None, return_stages=False) by one kernel.

    Arguments are (N, J, 2), (N, J, 3), (N, 3) or the root's mode, and a Camera or intrinsics, (4,)
    or (N, 4). A variant that does not fit a call leaves it to another kernel, as the operator has
    it.
    """
    scale = 1.0 if arranged is None else arranged.feature_scale
    fragments = (None, None) if arranged is None else (arranged.weights, arranged.biases)
    choice = (PRECISIONS[precision], VARIANTS[variant])

    def refine(
        keypoints: Tensor,
        pose: Tensor,
        root: Tensor | str,
        camera: Camera | Tensor,
        confidence: Tensor | None = None,
        return_stages: bool = False,
    ) -> Tensor:
        count, joints = pose.shape[:2]
        mode = root if isinstance(root, str) else "given"
        if isinstance(camera, Tensor):
            camera = Camera(camera)
        distortion = camera.distortion
        result: Tensor = operators.refine(
            keypoints.reshape(count, -1),
            pose.reshape(count, -1),
            root if isinstance(root, Tensor) else None,
            camera.intrinsics.expand(count, 4),
            None if distortion is None else distortion.expand(count, 5),
            confidence,
            weights.w_in,
            weights.b_in,
            weights.w_hidden,
            weights.b_hidden,
            weights.w_out,
            weights.b_out,
            weights.mean2d,
            *fragments,
            CAMERA_MODELS[camera.model],
            FEATURES.index(weights.features),
            ROOT_MODES.index(mode),
            return_stages,
            scale,
            *choice,
            weights.residual_limit,
        )
        return result.unflatten(-1, (joints, 3))

    return refine


def run_variant(
    problem: Problem,
    network: oracle.Network,
    precision: str,
    variant: str,
    root_mode: str = "given",
    with_confidence: bool = False,
    return_stages: bool = False,
    device: str = "cpu",
) -> Tensor:
    """(N, J, 3), or (K, N, J, 3): float32, from one batch dimension.

    ``precision`` is "fp32", "split", "fp16" or "bf16".
    """

    def tensor(name: str) -> Tensor:
        return problem.tensor(name, torch.float32, device)

    weights = pack(network, torch.float32, device)
    refine = pinned(weights, arrange(weights, precision, variant), precision, variant)
    return refine(
        tensor("keypoints"),
        tensor("pose"),
        tensor("root") if root_mode == "given" else root_mode,
        problem.camera(torch.float32, device),
        tensor("confidence") if with_confidence else None,
        return_stages,
    )


def kernels_run(function: Callable[[], object]) -> list[str]:
    """Names of this library's GPU kernels that a call launches, as the profiler sees them."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        function()
        torch.cuda.synchronize()
    on_gpu = (e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA)
    return [name for name in on_gpu if "erd::" in name]
