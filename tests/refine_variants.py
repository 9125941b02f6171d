"""The refine operator with a pinned kernel: on a GPU, or on the CPU in the emulated library."""

from __future__ import annotations

import numpy as np
import oracle
import torch
from problems import FEATURES, ROOT_MODES, Problem, pack
from torch import Tensor

from erd_cuda._fragments import PRECISIONS
from erd_cuda._fragments_wgmma import fits_wgmma, wgmma_fragments
from erd_cuda._library import operators
from erd_cuda.modules.packing import PackedRegressors, TensorCoreWeights
from erd_cuda.ops.arguments import as_rows

#: Numbers of RefineVariant in csrc/core/calls.h.
VARIANTS = {"automatic": 0, "simt": 1, "throughput": 2, "latency": 3, "wgmma": 4}


def arrange(weights: PackedRegressors, precision: str, variant: str) -> TensorCoreWeights | None:
    """The weights in the order of the variant's tensor-core kernel, or None where it has none."""
    if precision == "fp32":
        return None
    if variant != "wgmma":
        return weights.for_tensor_cores(precision)
    sizes = (weights.block, weights.features, weights.num_joints, weights.width)
    if not fits_wgmma(*sizes, precision):
        return None
    matrices = (weights.w_in, weights.b_in, weights.w_out, weights.b_out)
    made = wgmma_fragments(*(m.cpu().numpy() for m in matrices), precision)
    device = weights.w_in.device
    return TensorCoreWeights(
        torch.from_numpy(made.weights.view(np.int16)).to(device),
        torch.from_numpy(made.biases).to(device),
        made.feature_scale,
    )


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

    inputs = {"keypoints": tensor("keypoints"), "pose": tensor("pose")}
    if root_mode == "given":
        inputs["root"] = tensor("root")
    if with_confidence:
        inputs["confidence"] = tensor("confidence")
    rows = as_rows(problem.camera(torch.float32, device), **inputs)
    weights = pack(network, torch.float32, device)
    arranged = arrange(weights, precision, variant)
    result: Tensor = operators.refine(
        *(rows[name] for name in ("keypoints", "pose", "root")),
        *(rows[name] for name in ("intrinsics", "distortion", "confidence")),
        weights.w_in,
        weights.b_in,
        weights.w_hidden,
        weights.b_hidden,
        weights.w_out,
        weights.b_out,
        weights.mean2d,
        None if arranged is None else arranged.weights,
        None if arranged is None else arranged.biases,
        rows.model,
        FEATURES.index(network.features),
        ROOT_MODES.index(root_mode),
        return_stages,
        1.0 if arranged is None else arranged.feature_scale,
        PRECISIONS[precision],
        VARIANTS[variant],
    )
    return result.unflatten(-1, (rows.joints, 3))
