"""The same computation in plain torch: the peer in precision, gradients and speed.

`PaperLayers` are the paper's regressors as anyone would write them (Linear, BatchNorm1d, ReLU,
residual blocks, uncollapsed); the geometry is composed of torch's own differentiable operators.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from erd_cuda.benchmarks import oracle


def distort(point: Tensor, distortion: Tensor, model: str) -> Tensor:
    bent, _ = _distort(point, distortion, model)
    return bent


def _distort(point: Tensor, distortion: Tensor, model: str) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Where the lens puts a point, and the derivatives of that, row after row.

    Both models are (x, y) m + (p, q) r2 with m = 1 + radial + factor (p x + q y).
    """
    a, b, c, d, e = distortion.unbind(-1)
    (k1, k2, k3), (p, q), factor = {
        "opencv": ((a, b, e), (d, c), 2),
        "h36m": ((a, b, c), (d, e), 1),
    }[model]
    x, y = point.unbind(-1)
    r2 = x * x + y * y
    m = 1 + r2 * (k1 + r2 * (k2 + r2 * k3)) + factor * (p * x + q * y)
    slope = 2 * (k1 + r2 * (2 * k2 + 3 * k3 * r2))
    m_x, m_y = slope * x + factor * p, slope * y + factor * q
    rows = (
        m + x * m_x + 2 * p * x,
        x * m_y + 2 * p * y,
        y * m_x + 2 * q * x,
        m + y * m_y + 2 * q * y,
    )
    return torch.stack([x * m + p * r2, y * m + q * r2], dim=-1), rows


def undistort(point: Tensor, distortion: Tensor, model: str) -> Tensor:
    """Newton's method, unrolled: autograd through the last steps is the implicit function's
    derivative.
    """
    guess = point
    for _ in range(12):
        bent, (xx, xy, yx, yy) = _distort(guess, distortion, model)
        error_x, error_y = (bent - point).unbind(-1)
        determinant = xx * yy - xy * yx
        step_x = (yy * error_x - xy * error_y) / determinant
        step_y = (xx * error_y - yx * error_x) / determinant
        guess = guess - torch.stack([step_x, step_y], dim=-1)
    return guess


def project(
    pose: Tensor,
    root: Tensor,
    intrinsics: Tensor,
    distortion: Tensor | None = None,
    model: str = "pinhole",
) -> Tensor:
    point = pose + root.unsqueeze(-2)
    image = point[..., :2] / point[..., 2:].clamp(min=oracle.MIN_DEPTH)
    if distortion is not None:
        image = distort(image, distortion.unsqueeze(-2), model)
    camera = intrinsics.unsqueeze(-2)
    return image * camera[..., :2] + camera[..., 2:]


def residual(
    keypoints: Tensor,
    pose: Tensor,
    root: Tensor,
    intrinsics: Tensor,
    distortion: Tensor | None = None,
    model: str = "pinhole",
    std: Tensor | None = None,
    confidence: Tensor | None = None,
) -> Tensor:
    difference = keypoints - project(pose, root, intrinsics, distortion, model)
    if std is not None:
        difference = difference / std
    if confidence is not None:
        weight = confidence.unsqueeze(-1)
        difference = torch.where(weight > 0, weight * difference, 0)
    return difference


def solve_root(
    keypoints: Tensor,
    pose: Tensor,
    intrinsics: Tensor,
    distortion: Tensor | None = None,
    model: str = "pinhole",
    confidence: Tensor | None = None,
) -> Tensor:
    """Weighted least squares of well-posed problems through QR of the pixel rows."""
    joints = pose.shape[-2]
    camera = intrinsics.unsqueeze(-2)
    focal = camera[..., :2]
    image = (keypoints - camera[..., 2:]) / focal
    if distortion is not None:
        image = undistort(image, distortion.unsqueeze(-2), model)
    image, depth = torch.broadcast_tensors(image, pose[..., 2:])
    scale = focal.expand_as(image)
    if confidence is not None:
        scale = scale * confidence.sqrt().unsqueeze(-1)
    eye = torch.eye(2, dtype=pose.dtype).expand(*image.shape[:-2], joints, 2, 2)
    rows = torch.cat([eye, -image.unsqueeze(-1)], dim=-1) * scale.unsqueeze(-1)
    right = (image * depth - pose[..., :2]) * scale
    rows = rows.reshape(*rows.shape[:-3], 2 * joints, 3)
    right = right.reshape(*right.shape[:-2], 2 * joints, 1)
    q, r = torch.linalg.qr(rows)
    return torch.linalg.solve_triangular(r, q.transpose(-1, -2) @ right, upper=True).squeeze(-1)


class Block(nn.Module):
    def __init__(self, width: int, relu: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.activation = nn.ReLU() if relu else nn.Identity()
        self.dropout = nn.Dropout(0.25)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.dropout(self.activation(self.linear(hidden)))


class PaperLayers(nn.Module):
    """All stages' regressors and the loop around them, in eval mode with an oracle network's
    weights.
    """

    mean2d: Tensor
    std2d: Tensor
    mean3d: Tensor | None
    std3d: Tensor | None
    components: Tensor | None
    component_mean: Tensor

    def __init__(self, network: oracle.Network, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.features = network.features
        self.regressors = nn.ModuleList()
        for stage in network.stages:
            width, num_features = stage.w_in.shape
            self.regressors.append(
                nn.Sequential(
                    nn.Linear(num_features, width),
                    nn.BatchNorm1d(width),
                    nn.ReLU(),
                    nn.Dropout(0.25),
                    Block(width, network.block == "relu"),
                    Block(width, network.block == "relu"),
                    nn.Linear(width, stage.w_out.shape[0]),
                ).double()
            )
            self.regressors[-1].load_state_dict(
                {
                    "0.weight": torch.from_numpy(stage.w_in),
                    "0.bias": torch.from_numpy(stage.b_in),
                    "1.weight": torch.from_numpy(stage.gamma),
                    "1.bias": torch.from_numpy(stage.beta),
                    "1.running_mean": torch.from_numpy(stage.running_mean),
                    "1.running_var": torch.from_numpy(stage.running_var),
                    "1.num_batches_tracked": torch.tensor(1),
                    "4.linear.weight": torch.from_numpy(stage.w_hidden[0]),
                    "4.linear.bias": torch.from_numpy(stage.b_hidden[0]),
                    "5.linear.weight": torch.from_numpy(stage.w_hidden[1]),
                    "5.linear.bias": torch.from_numpy(stage.b_hidden[1]),
                    "6.weight": torch.from_numpy(stage.w_out),
                    "6.bias": torch.from_numpy(stage.b_out),
                }
            )
        pca = network.pca
        self.register_buffer("mean2d", torch.from_numpy(network.mean2d))
        self.register_buffer("std2d", torch.from_numpy(network.std2d))
        for name, values in (("mean3d", network.mean3d), ("std3d", network.std3d)):
            self.register_buffer(name, None if values is None else torch.from_numpy(values))
        self.register_buffer(
            "components", None if pca is None else torch.from_numpy(pca.components)
        )
        self.register_buffer(
            "component_mean", torch.from_numpy(pca.mean if pca else network.mean2d)
        )
        self.to(dtype).eval().requires_grad_(False)

    def _rotate(self, values: Tensor, centred: bool = False) -> Tensor:
        flat = values.flatten(-2)
        if self.components is None:
            return flat
        return (flat if centred else flat - self.component_mean) @ self.components.T

    def _inputs(
        self, keypoints: Tensor, projection: Tensor, pose: Tensor, confidence: Tensor | None
    ) -> Tensor:
        observed = (keypoints - self.mean2d) / self.std2d
        difference = (keypoints - projection) / self.std2d
        if confidence is not None:
            weight = confidence.unsqueeze(-1)
            observed = torch.where(weight > 0, observed, 0)
            difference = torch.where(weight > 0, weight * difference, 0)
        if self.features == "residual":
            return self._rotate(difference, centred=True)
        if self.features == "residual+pose":
            assert self.mean3d is not None and self.std3d is not None
            scored = ((pose - self.mean3d) / self.std3d).flatten(-2)
            return torch.cat([self._rotate(difference, centred=True), scored], dim=-1)
        predicted = (projection - self.mean2d) / self.std2d
        return {
            "init2d": lambda: self._rotate(observed),
            "proj2d": lambda: self._rotate(predicted),
            "concat": lambda: torch.cat([self._rotate(observed), self._rotate(predicted)], dim=-1),
        }[self.features]()

    def forward(
        self,
        keypoints: Tensor,
        pose: Tensor,
        root: Tensor | str,
        intrinsics: Tensor,
        distortion: Tensor | None = None,
        model: str = "pinhole",
        confidence: Tensor | None = None,
    ) -> Tensor:
        """Batch (N, ...) in, the last pose (N, J, 3) out; every root must be solvable."""
        for k, regressor in enumerate(self.regressors):
            if isinstance(root, Tensor):
                where = root
            elif root == "solve_each_stage" or k == 0:
                where = solve_root(keypoints, pose, intrinsics, distortion, model, confidence)
            projection = project(pose, where, intrinsics, distortion, model)
            step = regressor(self._inputs(keypoints, projection, pose, confidence))
            pose = pose + step.unflatten(-1, pose.shape[-2:])
        return pose
