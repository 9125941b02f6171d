"""Torch without extensions, written for speed: what a careful user has without the ops."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from erd_cuda import PackedRegressors
from erd_cuda.benchmarks import torch_layers


class Layers:
    """The loop with each stage as torch's matrix products (residual features).

    Poses and projections stay in float32: pixels and millimetres do not fit into 16 bits.

    Args:
        weights: two layers a stage where they have no hidden ones, else four.
        dtype: of the products.
        activation: a ReLU in the hidden layers.
        epilogue: bias and first ReLU inside the product, as cuBLAS offers them.
    """

    def __init__(
        self,
        weights: PackedRegressors,
        dtype: torch.dtype = torch.float32,
        activation: bool = False,
        epilogue: bool = False,
    ) -> None:
        self.activation, self.epilogue = activation, epilogue
        given = (weights.w_in, weights.b_in, weights.w_out, weights.b_out)
        w_in, b_in, w_out, b_out = (list(values.to(dtype)) for values in given)
        self.stages = list(zip(w_in, b_in, w_out, b_out, strict=True))
        self.hidden: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self.stages]
        if weights.w_hidden is not None and weights.b_hidden is not None:
            pairs = zip(weights.w_hidden.to(dtype), weights.b_hidden.to(dtype), strict=True)
            self.hidden = [list(zip(*pair, strict=True)) for pair in pairs]

    def __call__(self, keypoints: Tensor, pose: Tensor, root: Tensor, intrinsics: Tensor) -> Tensor:
        for (w_in, b_in, w_out, b_out), layers in zip(self.stages, self.hidden, strict=True):
            difference = keypoints - torch_layers.project(pose, root, intrinsics)
            hidden = self._first(difference.flatten(-2).to(w_in.dtype), w_in, b_in)
            for weight, bias in layers:
                inner = F.linear(hidden, weight, bias)
                hidden = hidden + (inner.relu_() if self.activation else inner)
            pose = pose + F.linear(hidden, w_out, b_out).unflatten(-1, pose.shape[-2:])
        return pose

    def _first(self, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if self.epilogue:
            return torch._addmm_activation(bias, features, weight.t())
        return F.linear(features, weight, bias).relu_()


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


def lstsq_root(keypoints: Tensor, pose: Tensor, intrinsics: Tensor) -> Tensor:
    """The library's least squares on the rows of all joints."""
    return torch.linalg.lstsq(*_rows(keypoints, pose, intrinsics)).solution.squeeze(-1)


def _rows(keypoints: Tensor, pose: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices (N, 2 J, 3) and right-hand sides (N, 2 J, 1) of the root's equations."""
    focal, centre = intrinsics.unsqueeze(-2).chunk(2, dim=-1)
    u = (keypoints - centre) / focal
    scale = focal.expand_as(u).unsqueeze(-1)
    eye = torch.eye(2, dtype=pose.dtype, device=pose.device).expand(*u.shape, 2)
    rows = scale * torch.cat([eye, -u.unsqueeze(-1)], dim=-1)
    right = scale * (u * pose[..., 2:] - pose[..., :2]).unsqueeze(-1)
    return rows.flatten(-3, -2), right.flatten(-3, -2)


def svd_root(keypoints: Tensor, pose: Tensor, intrinsics: Tensor) -> Tensor:
    """Least squares by the pseudo-inverse of the rows of all joints."""
    rows, right = _rows(keypoints, pose, intrinsics)
    u, s, v_transposed = torch.linalg.svd(rows, full_matrices=False)
    return (v_transposed.mT @ ((u.mT @ right) / s.unsqueeze(-1))).squeeze(-1)
