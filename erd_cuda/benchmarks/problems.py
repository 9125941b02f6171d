"""Random but plausible inputs: people metres from a camera, networks that move them a little."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from erd_cuda import Camera
from erd_cuda.benchmarks import oracle
from erd_cuda.modules.packed import PackedRegressors

Array = NDArray[np.float64]

CAMERA_MODELS = ("pinhole", "opencv", "h36m")
JOINT_COUNTS = (1, 2, 17, 32, 128)
FEATURES = ("residual", "concat", "init2d", "proj2d", "residual+pose")
ROOT_MODES = ("given", "solve", "solve_each_stage")

# Around the values published for Human3.6M's four cameras, each in its own model's order.
_LENS = {
    "opencv": (-0.20, 0.24, -0.0010, -0.0020, -0.003),
    "h36m": (-0.20, 0.24, -0.003, -0.0010, -0.0020),
}


@dataclass(frozen=True)
class Problem:
    """Inputs of every geometry op for one batch, float64."""

    keypoints: Array  # (..., J, 2) px, 5 px of noise around the projection
    pose: Array  # (..., J, 3) mm, first joint at the origin
    root: Array  # (..., 3) mm
    intrinsics: Array  # (..., 4) px
    distortion: Array | None  # (..., 5)
    model: str
    std: Array  # (J, 2) px
    confidence: Array  # (..., J), about a fifth of the joints missing

    def rounded(self, dtype: torch.dtype) -> Problem:
        """The same problem with values that `dtype` can hold: both sides then start from equal
        numbers.
        """
        name = {torch.float32: np.float32, torch.float64: np.float64}[dtype]
        arrays: dict[str, Any] = {
            field.name: value.astype(name).astype(np.float64)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), np.ndarray)
        }
        return replace(self, **arrays)

    def tensor(self, name: str, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor:
        return torch.from_numpy(getattr(self, name)).to(device=device, dtype=dtype)

    def camera(self, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor | Camera:
        return make_camera(
            self.tensor("intrinsics", dtype, device),
            None if self.distortion is None else self.tensor("distortion", dtype, device),
            self.model,
        )

    @property
    def lens(self) -> tuple[Array, Array | None, str]:
        """The camera as the oracle takes it."""
        return self.intrinsics, self.distortion, self.model


def make_camera(intrinsics: Tensor, distortion: Tensor | None, model: str) -> Tensor | Camera:
    """A plain tensor for a pinhole (the common call), a Camera for one with a lens."""
    if distortion is None:
        return intrinsics
    return Camera(intrinsics, distortion, model)


def make_problem(
    batch: tuple[int, ...] = (4,),
    joints: int = 17,
    model: str = "pinhole",
    seed: int = 0,
    camera_batch: tuple[int, ...] | None = None,
) -> Problem:
    rng = np.random.default_rng(seed)
    camera_batch = batch if camera_batch is None else camera_batch
    pose = rng.normal(scale=(250.0, 350.0, 200.0), size=(*batch, joints, 3))
    pose[..., 0, :] = 0.0
    root = rng.uniform((-800, -600, 2500), (800, 600, 6000), size=(*batch, 3))
    intrinsics = rng.uniform(
        (1100, 1120, 490, 490), (1160, 1180, 530, 530), size=(*camera_batch, 4)
    )
    distortion = None
    if model != "pinhole":
        spread = rng.uniform(0.7, 1.3, size=(*camera_batch, 5))
        distortion = np.array(_LENS[model]) * spread
    # A detector sees the true pose, which is not the pose that is to be refined.
    truth = pose + rng.normal(scale=40.0, size=pose.shape)
    keypoints = oracle.project(truth, root, intrinsics, distortion, model)
    keypoints = keypoints + rng.normal(scale=5.0, size=keypoints.shape)
    confidence = rng.uniform(0.2, 1.0, size=(*batch, joints))
    confidence[rng.random(confidence.shape) < 0.2] = 0.0
    confidence[..., :2] = 0.9  # two joints always stay, so that the root has a solution
    return Problem(
        keypoints=keypoints,
        pose=pose,
        root=root,
        intrinsics=intrinsics,
        distortion=distortion,
        model=model,
        std=rng.uniform(50.0, 150.0, size=(joints, 2)),
        confidence=confidence,
    )


def make_network(
    joints: int = 17,
    stages: int = 4,
    width: int = 256,
    block: str = "linear",
    features: str = "residual",
    components: int | None = None,
    seed: int = 0,
) -> oracle.Network:
    """Weights of the size training leaves: each stage moves a joint by some tens of millimetres."""
    rng = np.random.default_rng(seed)
    pca = None
    if components is not None:
        basis = np.linalg.qr(rng.normal(size=(2 * joints, 2 * joints)))[0][:components]
        pca = oracle.Principal(basis, rng.normal(scale=0.05, size=2 * joints))
    inputs = (components or 2 * joints) * (2 if features == "concat" else 1)
    sees_pose = features == "residual+pose"
    # A residual is some pixels over a spread of a hundred; the other features are of order one.
    gain = np.full(inputs, 8.0 if features.startswith("residual") else 1.0)
    if sees_pose:
        gain = np.append(gain, np.ones(3 * joints))
        inputs += 3 * joints

    def stage() -> oracle.Stage:
        return oracle.Stage(
            w_in=gain * rng.normal(scale=inputs**-0.5, size=(width, inputs)),
            b_in=rng.normal(scale=0.2, size=width),
            gamma=rng.uniform(0.5, 1.5, size=width),
            beta=rng.normal(scale=0.2, size=width),
            running_mean=rng.normal(scale=0.2, size=width),
            running_var=rng.uniform(0.5, 1.5, size=width),
            w_hidden=(
                rng.normal(scale=0.5 * width**-0.5, size=(width, width)),
                rng.normal(scale=0.5 * width**-0.5, size=(width, width)),
            ),
            b_hidden=(rng.normal(scale=0.1, size=width), rng.normal(scale=0.1, size=width)),
            w_out=20.0 * rng.normal(scale=width**-0.5, size=(3 * joints, width)),
            b_out=rng.normal(scale=1.0, size=3 * joints),
        )

    return oracle.Network(
        stages=tuple(stage() for _ in range(stages)),
        block=block,
        features=features,
        mean2d=rng.uniform(450.0, 550.0, size=(joints, 2)),
        std2d=rng.uniform(60.0, 140.0, size=(joints, 2)),
        pca=pca,
        mean3d=rng.uniform(-600.0, 600.0, size=(joints, 3)) if sees_pose else None,
        std3d=rng.uniform(80.0, 350.0, size=(joints, 3)) if sees_pose else None,
    )


def pack(
    network: oracle.Network, dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> PackedRegressors:
    """The network as refine takes it, folded by the oracle and not by the library."""
    folded = oracle.fold(network)

    def tensor(values: Array | None) -> Any:
        return None if values is None else torch.from_numpy(values).to(device=device, dtype=dtype)

    return PackedRegressors(
        block=network.block,
        features=network.features,
        mean2d=tensor(network.mean2d),
        residual_limit=float(network.residual_limit),
        **{field.name: tensor(getattr(folded, field.name)) for field in fields(folded)},
    )
