"""ERD modules with an oracle network's weights, and calls of them on oracle problems."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from erd_cuda import ERD, MartinezLifter, ResidualRegressor
from erd_cuda.benchmarks import oracle
from erd_cuda.benchmarks.problems import Problem

Array = NDArray[np.float64]


def load_stage(regressor: ResidualRegressor, stage: oracle.Stage) -> None:
    values = {
        "input.weight": stage.w_in,
        "input.bias": stage.b_in,
        "norm.weight": stage.gamma,
        "norm.bias": stage.beta,
        "norm.running_mean": stage.running_mean,
        "norm.running_var": stage.running_var,
        "norm.num_batches_tracked": np.array(1),
        "hidden.0.weight": stage.w_hidden[0],
        "hidden.0.bias": stage.b_hidden[0],
        "hidden.1.weight": stage.w_hidden[1],
        "hidden.1.bias": stage.b_hidden[1],
        "output.weight": stage.w_out,
        "output.bias": stage.b_out,
    }
    regressor.load_state_dict({name: torch.from_numpy(value) for name, value in values.items()})


def make_erd(
    network: oracle.Network,
    root: str = "given",
    dtype: torch.dtype = torch.float64,
    lifter: Any = None,
) -> ERD:
    """In eval mode, with dropout 0 so that train mode differs by BatchNorm alone."""
    stage = network.stages[0]
    erd = ERD(
        lifter,
        num_joints=network.mean2d.shape[0],
        stages=len(network.stages),
        width=stage.w_in.shape[0],
        block=network.block,
        features=network.features,
        pca=None if network.pca is None else network.pca.components.shape[0],
        root=root,
        dropout=0.0,
        residual_limit=network.residual_limit,
    ).double()
    with torch.no_grad():
        erd.mean2d.copy_(torch.from_numpy(network.mean2d))
        erd.std2d.copy_(torch.from_numpy(network.std2d))
        if network.mean3d is not None and network.std3d is not None:
            erd.mean3d.copy_(torch.from_numpy(network.mean3d))
            erd.std3d.copy_(torch.from_numpy(network.std3d))
        if erd.pca is not None and network.pca is not None:
            erd.pca.basis.copy_(torch.from_numpy(network.pca.components))
            erd.pca.mean.copy_(torch.from_numpy(network.pca.mean))
    for regressor, weights in zip(erd.regressors, network.stages, strict=True):
        load_stage(regressor, weights)
    return erd.to(dtype).eval()


def make_lifter(joints: int = 17, width: int = 16, **options: Any) -> MartinezLifter:
    """A small lifter whose answers are some tenths of a metre, in eval mode."""
    lifter = MartinezLifter(joints, width=width, **options)
    keypoints = 500 + 100 * torch.randn(64, joints, 2)
    pose = 300 * torch.randn(64, joints, 3)
    pose[:, 0] = 0
    lifter.fit_normalization(keypoints, pose)
    with torch.no_grad():
        lifter(keypoints)  # in train mode: BatchNorm's statistics leave 0 and 1
    return lifter.eval()


def scramble(module: nn.Module, scale: float = 0.3) -> None:
    """Move every parameter and statistic away from its initial value."""
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.is_floating_point():
                value.mul_(1 + scale * torch.rand_like(value))


def inputs_of(
    problem: Problem,
    root: str = "given",
    dtype: torch.dtype = torch.float64,
    with_confidence: bool = False,
) -> dict[str, Any]:
    """A problem as keyword arguments of an ERD without a lifter."""
    return {
        "keypoints": problem.tensor("keypoints", dtype),
        "camera": problem.camera(dtype),
        "root": problem.tensor("root", dtype) if root == "given" else None,
        "confidence": problem.tensor("confidence", dtype) if with_confidence else None,
        "pose": problem.tensor("pose", dtype),
    }


def through_stages(erd: ERD, inputs: dict[str, Any]) -> Tensor:
    """The pose after the last stage through `ERD.stage`, root solved as the model says."""
    pose, root = inputs["pose"], inputs["root"]
    rest = (inputs["camera"], inputs["confidence"])
    for k in range(erd.stages):
        if erd.root == "solve_each_stage" or (erd.root == "solve" and k == 0):
            root = erd.resolve_root(inputs["keypoints"], pose, *rest)
        pose = erd.stage(k, inputs["keypoints"], pose, root, *rest)
    return pose


def expected_stages(
    problem: Problem, network: oracle.Network, root: str = "given", with_confidence: bool = False
) -> Array:
    return oracle.refine(
        problem.keypoints,
        problem.pose,
        problem.root if root == "given" else root,
        network,
        *problem.lens,
        confidence=problem.confidence if with_confidence else None,
    )
