"""What the ops must compute, in float64 NumPy, written from the equations and from nothing else.

Slow on purpose where that keeps it obvious: one sample after another through NumPy's SVD least
squares, an undistortion by Newton's method with a complex-step derivative, the paper's regressor
layer by layer. Shapes, units and names are those of the public ops (millimetres, pixels, K
stages).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MIN_DEPTH = 1.0  # mm; a nearer joint is projected as if it were this far away
BATCH_NORM_EPS = 1e-5

OK, TOO_FEW_JOINTS, ONE_IMAGE_POINT, BEHIND_CAMERA, NOT_FINITE = range(5)


def distort(point: NDArray[Any], distortion: Array, model: str) -> NDArray[Any]:
    """Normalised image points (..., 2) through the lens; analytic, so complex points work too."""
    x, y = point[..., 0], point[..., 1]
    r2 = x * x + y * y
    if model == "opencv":
        k1, k2, p1, p2, k3 = np.moveaxis(distortion, -1, 0)
        radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
        return np.stack(
            [
                x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
                y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
            ],
            axis=-1,
        )
    if model == "h36m":
        k1, k2, k3, p1, p2 = np.moveaxis(distortion, -1, 0)
        factor = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3 + p1 * x + p2 * y
        return np.stack([x * factor + p1 * r2, y * factor + p2 * r2], axis=-1)
    raise ValueError(f"the oracle knows no camera model {model!r}")


def undistort(point: Array, distortion: Array, model: str) -> Array:
    """The inverse of distort near the optical axis, by Newton's method."""
    step = 1e-30
    guess = point.copy()
    for _ in range(12):
        error = distort(guess, distortion, model) - point
        # Complex-step differentiation: exact to rounding, and no formula of its own to get wrong.
        along_x = distort(guess + 1j * step * np.array([1.0, 0.0]), distortion, model).imag / step
        along_y = distort(guess + 1j * step * np.array([0.0, 1.0]), distortion, model).imag / step
        jacobian = np.stack([along_x, along_y], axis=-1)
        guess = guess - np.linalg.solve(jacobian, error[..., None])[..., 0]
    return guess


def _per_joint(coefficients: Array) -> Array:
    """(..., C) one a sample -> (..., 1, C), to broadcast against (..., J, C)."""
    return coefficients[..., None, :]


def project(
    pose: Array,
    root: Array,
    intrinsics: Array,
    distortion: Array | None = None,
    model: str = "pinhole",
) -> Array:
    """Eq. 5 (..., J, 2) px, through the lens where the camera has one."""
    point = pose + root[..., None, :]
    depth = np.maximum(point[..., 2:], MIN_DEPTH)
    image = point[..., :2] / depth
    if model != "pinhole":
        assert distortion is not None
        image = distort(image, _per_joint(distortion), model)
    camera = _per_joint(intrinsics)
    return image * camera[..., :2] + camera[..., 2:]


def residual(
    keypoints: Array,
    pose: Array,
    root: Array,
    intrinsics: Array,
    distortion: Array | None = None,
    model: str = "pinhole",
    std: Array | None = None,
    confidence: Array | None = None,
) -> Array:
    """confidence (keypoints - projection) / std; exactly zero where the joint is missing."""
    difference = keypoints - project(pose, root, intrinsics, distortion, model)
    if std is not None:
        difference = difference / std
    if confidence is None:
        return difference
    return np.where((confidence > 0)[..., None], confidence[..., None] * difference, 0.0)


def solve_root(
    keypoints: Array,
    pose: Array,
    intrinsics: Array,
    distortion: Array | None = None,
    model: str = "pinhole",
    confidence: Array | None = None,
) -> tuple[Array, NDArray[np.int32]]:
    """Root (..., 3) and status (...): least squares over the pixel rows, a sample at a time."""
    batch = np.broadcast_shapes(
        keypoints.shape[:-2],
        pose.shape[:-2],
        intrinsics.shape[:-1],
        () if distortion is None else distortion.shape[:-1],
        () if confidence is None else confidence.shape[:-1],
    )
    joints = pose.shape[-2]
    keypoints = np.broadcast_to(keypoints, (*batch, joints, 2))
    pose = np.broadcast_to(pose, (*batch, joints, 3))
    intrinsics = np.broadcast_to(intrinsics, (*batch, 4))
    if distortion is not None:
        distortion = np.broadcast_to(distortion, (*batch, 5))
    weight = np.ones((*batch, joints))
    if confidence is not None:
        weight = np.broadcast_to(confidence, (*batch, joints))

    root = np.zeros((*batch, 3))
    status = np.zeros(batch, dtype=np.int32)
    for index in np.ndindex(*batch):
        lens = None if distortion is None else distortion[index]
        root[index], status[index] = _solve_one_root(
            keypoints[index], pose[index], intrinsics[index], lens, model, weight[index]
        )
    return root, status


def _solve_one_root(
    keypoints: Array,
    pose: Array,
    intrinsics: Array,
    distortion: Array | None,
    model: str,
    weight: Array,
) -> tuple[Array, int]:
    usable = weight > 0
    keypoints, pose, weight = keypoints[usable], pose[usable], weight[usable]
    if len(weight) < 2:
        return np.zeros(3), TOO_FEW_JOINTS
    if not all(np.isfinite(values).all() for values in (keypoints, pose, weight, intrinsics)):
        return np.zeros(3), NOT_FINITE
    if (keypoints == keypoints[0]).all():
        return np.zeros(3), ONE_IMAGE_POINT

    focal, centre = intrinsics[:2], intrinsics[2:]
    image = (keypoints - centre) / focal
    if model != "pinhole":
        assert distortion is not None
        image = undistort(image, np.broadcast_to(distortion, (len(image), 5)), model)
    rows, right = [], []
    for joint in range(len(weight)):
        for axis in range(2):
            scale = np.sqrt(weight[joint]) * focal[axis]
            row = np.zeros(3)
            row[axis], row[2] = 1.0, -image[joint, axis]
            rows.append(scale * row)
            right.append(scale * (image[joint, axis] * pose[joint, 2] - pose[joint, axis]))
    root = np.linalg.lstsq(np.array(rows), np.array(right), rcond=None)[0]
    return root, (OK if root[2] > 0 else BEHIND_CAMERA)


@dataclass(frozen=True)
class Principal:
    """PCA of the z-scored 2D: (z - mean) @ components.T, components (C, 2J)."""

    components: Array
    mean: Array


@dataclass(frozen=True)
class Stage:
    """One regressor R_k as the paper trains it; weights (out, in) as in torch.nn.Linear."""

    w_in: Array
    b_in: Array
    gamma: Array
    beta: Array
    running_mean: Array
    running_var: Array
    w_hidden: tuple[Array, Array]
    b_hidden: tuple[Array, Array]
    w_out: Array
    b_out: Array

    def __call__(self, features: Array, block: str) -> Array:
        hidden = features @ self.w_in.T + self.b_in
        hidden = (hidden - self.running_mean) / np.sqrt(self.running_var + BATCH_NORM_EPS)
        hidden = np.maximum(hidden * self.gamma + self.beta, 0)
        for weight, bias in zip(self.w_hidden, self.b_hidden, strict=True):
            inner = hidden @ weight.T + bias
            hidden = hidden + (np.maximum(inner, 0) if block == "relu" else inner)
        return hidden @ self.w_out.T + self.b_out


@dataclass(frozen=True)
class Network:
    """The regressors of all stages with the statistics that scale their input."""

    stages: tuple[Stage, ...]
    block: str
    features: str
    mean2d: Array
    std2d: Array
    pca: Principal | None = None
    mean3d: Array | None = None  # (J, 3) mm, with "residual+pose"
    std3d: Array | None = None
    residual_limit: float = np.inf  # px

    def inputs(
        self, keypoints: Array, projection: Array, pose: Array, confidence: Array | None
    ) -> Array:
        """What R_k sees, z-scored (and rotated by the PCA): (..., F)."""
        missing = np.zeros((*keypoints.shape[:-1], 1), dtype=bool)
        weight = np.ones((*keypoints.shape[:-1], 1))
        if confidence is not None:
            missing = ~(confidence > 0)[..., None]
            weight = confidence[..., None]
        observed = np.where(missing, 0.0, (keypoints - self.mean2d) / self.std2d)
        predicted = (projection - self.mean2d) / self.std2d
        limited = np.clip(keypoints - projection, -self.residual_limit, self.residual_limit)
        difference = np.where(missing, 0.0, weight * limited / self.std2d)
        if self.features == "residual":
            return self._rotate(difference, centred=True)
        if self.features == "residual+pose":
            assert self.mean3d is not None and self.std3d is not None
            scored = (pose - self.mean3d) / self.std3d
            scored = scored.reshape(*pose.shape[:-2], -1)
            return np.concatenate([self._rotate(difference, centred=True), scored], axis=-1)
        if self.features == "init2d":
            return self._rotate(observed)
        if self.features == "proj2d":
            return self._rotate(predicted)
        return np.concatenate([self._rotate(observed), self._rotate(predicted)], axis=-1)

    def _rotate(self, values: Array, centred: bool = False) -> Array:
        flat = values.reshape(*values.shape[:-2], values.shape[-2] * values.shape[-1])
        if self.pca is None:
            return flat
        if not centred:  # a residual is a difference of two z-scored poses: the mean cancels
            flat = flat - self.pca.mean
        return flat @ self.pca.components.T


def refine(
    keypoints: Array,
    pose: Array,
    root: Array | str,
    network: Network,
    intrinsics: Array,
    distortion: Array | None = None,
    model: str = "pinhole",
    confidence: Array | None = None,
) -> Array:
    """The loop of the method: every stage's pose, (K, ..., J, 3)."""
    joints = pose.shape[-2]
    batch = np.broadcast_shapes(
        keypoints.shape[:-2],
        pose.shape[:-2],
        intrinsics.shape[:-1],
        () if isinstance(root, str) else root.shape[:-1],
        () if distortion is None else distortion.shape[:-1],
        () if confidence is None else confidence.shape[:-1],
    )
    pose = np.broadcast_to(pose, (*batch, joints, 3))
    keypoints = np.broadcast_to(keypoints, (*batch, joints, 2))
    if confidence is not None:
        confidence = np.broadcast_to(confidence, (*batch, joints))

    solvable = np.ones(batch, dtype=bool)
    stages = []
    for k, regressor in enumerate(network.stages):
        if not isinstance(root, str):
            where = root
        elif root == "solve_each_stage" or k == 0:
            where, status = solve_root(keypoints, pose, intrinsics, distortion, model, confidence)
            solvable = status == OK
        projection = project(pose, where, intrinsics, distortion, model)
        features = network.inputs(keypoints, projection, pose, confidence)
        step = regressor(features, network.block).reshape(*batch, joints, 3)
        pose = np.where(solvable[..., None, None], pose + step, pose)
        stages.append(pose)
    return np.stack(stages)


@dataclass(frozen=True)
class Folded:
    """What inference needs of a Network, stacked over stages: the fields of PackedRegressors."""

    w_in: Array  # (K, H, F)
    b_in: Array  # (K, H)
    w_hidden: Array | None  # (K, 2, H, H)
    b_hidden: Array | None  # (K, 2, H)
    w_out: Array  # (K, 3J, H)
    b_out: Array  # (K, 3J)


def fold(network: Network) -> Folded:
    """BatchNorm, PCA and std2d into the first layer; the linear block into the last."""
    w_in, b_in, w_out, b_out = [], [], [], []
    parts = 2 if network.features == "concat" else 1
    for stage in network.stages:
        norm = stage.gamma / np.sqrt(stage.running_var + BATCH_NORM_EPS)
        weight = stage.w_in * norm[:, None]
        bias = (stage.b_in - stage.running_mean) * norm + stage.beta
        of_pose = np.zeros((len(weight), 0))
        if network.mean3d is not None and network.std3d is not None:
            weight, of_pose = np.split(weight, [weight.shape[1] - network.std3d.size], axis=1)
            of_pose = of_pose / network.std3d.reshape(-1)
            bias = bias - of_pose @ network.mean3d.reshape(-1)
        if network.pca is not None:
            pieces = np.split(weight, parts, axis=1)
            if network.features not in ("residual", "residual+pose"):
                for piece in pieces:
                    bias = bias - piece @ (network.pca.components @ network.pca.mean)
            weight = np.concatenate([piece @ network.pca.components for piece in pieces], axis=1)
        weight = weight / np.tile(network.std2d.reshape(-1), parts)
        w_in.append(np.concatenate([weight, of_pose], axis=1))
        b_in.append(bias)
        last, offset = stage.w_out, stage.b_out
        if network.block == "linear":
            # W (h + W_b h + b_b) = W (I + W_b) h + W b_b, from the last block to the first.
            for hidden, b in zip(stage.w_hidden[::-1], stage.b_hidden[::-1], strict=True):
                offset = offset + last @ b
                last = last + last @ hidden
        w_out.append(last)
        b_out.append(offset)
    hidden_weights = hidden_biases = None
    if network.block == "relu":
        hidden_weights = np.stack([np.stack(stage.w_hidden) for stage in network.stages])
        hidden_biases = np.stack([np.stack(stage.b_hidden) for stage in network.stages])
    return Folded(
        np.stack(w_in),
        np.stack(b_in),
        hidden_weights,
        hidden_biases,
        np.stack(w_out),
        np.stack(b_out),
    )
