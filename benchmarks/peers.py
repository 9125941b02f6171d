"""Torch without extensions, written for speed: what a careful user has without the ops."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import torch_layers
from torch import Tensor

from erd_cuda import PackedRegressors


def collapsed_layers(
    keypoints: Tensor, pose: Tensor, root: Tensor, intrinsics: Tensor, weights: PackedRegressors
) -> Tensor:
    """The loop with each stage collapsed to two matrices (residual features, linear block)."""
    for w_in, b_in, w_out, b_out in zip(
        weights.w_in, weights.b_in, weights.w_out, weights.b_out, strict=True
    ):
        difference = keypoints - torch_layers.project(pose, root, intrinsics)
        hidden = F.linear(difference.flatten(-2), w_in, b_in).relu_()
        pose = pose + F.linear(hidden, w_out, b_out).unflatten(-1, pose.shape[-2:])
    return pose


def solve_root(keypoints: Tensor, pose: Tensor, intrinsics: Tensor) -> Tensor:
    """The centred closed form."""
    focal, centre = intrinsics.unsqueeze(-2).chunk(2, dim=-1)
    u = (keypoints - centre) / focal
    b = u * pose[..., 2:] - pose[..., :2]
    mean_u, mean_b = u.mean(-2, keepdim=True), b.mean(-2, keepdim=True)
    centred = focal * (u - mean_u)
    depth = -(centred * focal * (b - mean_b)).sum((-1, -2)) / centred.square().sum((-1, -2))
    depth = depth.unsqueeze(-1)
    return torch.cat([mean_b.squeeze(-2) + mean_u.squeeze(-2) * depth, depth], dim=-1)
