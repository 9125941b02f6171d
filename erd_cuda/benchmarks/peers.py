"""Torch without extensions, written for speed: what a careful user has without the ops."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from erd_cuda import PackedRegressors
from erd_cuda._definitions import MIN_DEPTH
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


class ArrayLayers:
    """The loop as expressions of NumPy's arrays, or of CuPy's where the tensors are on a GPU.

    Args:
        weights: two layers a stage where they have no hidden ones, else four.
        arrays: the module numpy or cupy.
        activation: a ReLU in the hidden layers.
    """

    def __init__(self, weights: PackedRegressors, arrays: Any, activation: bool = False) -> None:
        self.arrays, self.activation = arrays, activation
        given = (weights.w_in, weights.b_in, weights.w_out, weights.b_out)
        self.stages = list(zip(*(map(arrays.asarray, values) for values in given), strict=True))
        self.hidden: list[list[tuple[Any, Any]]] = [[] for _ in self.stages]
        if weights.w_hidden is not None and weights.b_hidden is not None:
            pairs = zip(weights.w_hidden, weights.b_hidden, strict=True)
            self.hidden = [list(zip(*map(arrays.asarray, pair), strict=True)) for pair in pairs]

    def __call__(self, *inputs: Tensor) -> Tensor:
        # Views of the tensors' memory, and of the result's.
        keypoints, pose, root, camera = map(self.arrays.asarray, inputs)
        rectify = self.arrays.maximum
        for (w_in, b_in, w_out, b_out), layers in zip(self.stages, self.hidden, strict=True):
            point = pose + root[:, None]
            projection = point[..., :2] / rectify(point[..., 2:], MIN_DEPTH) * camera[:2]
            features = (keypoints - projection - camera[2:]).reshape(len(pose), -1)
            hidden = rectify(features @ w_in.T + b_in, 0)
            for weight, bias in layers:
                inner = hidden @ weight.T + bias
                hidden = hidden + (rectify(inner, 0) if self.activation else inner)
            pose = pose + (hidden @ w_out.T + b_out).reshape(pose.shape)
        return torch.as_tensor(pose, device=inputs[1].device)


def solve_root(keypoints: Tensor, pose: Tensor, intrinsics: Tensor) -> Tensor:
    """The centred closed form, coordinate by coordinate: a compiler makes one loop of it."""
    fx, fy, cx, cy = intrinsics.unsqueeze(-2).unbind(-1)
    x, y, z = pose.unbind(-1)
    u, v = keypoints.unbind(-1)
    u, v = (u - cx) / fx, (v - cy) / fy
    a, b = u * z - x, v * z - y
    mean_u, mean_v, mean_a, mean_b = (t.mean(-1, keepdim=True) for t in (u, v, a, b))
    du, dv = u - mean_u, v - mean_v
    fx2, fy2 = fx * fx, fy * fy
    slope = (fx2 * du * (a - mean_a) + fy2 * dv * (b - mean_b)).sum(-1, keepdim=True)
    depth = -slope / (fx2 * du * du + fy2 * dv * dv).sum(-1, keepdim=True)
    return torch.cat([mean_a + mean_u * depth, mean_b + mean_v * depth, depth], dim=-1)


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
