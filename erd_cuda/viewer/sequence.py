"""One clip of motion as the viewers need it: 2D input, every stage's pose, and the truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from erd_cuda.camera import Camera
from erd_cuda.ops import project

if TYPE_CHECKING:
    from torch import Tensor

    from erd_cuda.data.skeleton import Skeleton

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PoseSequence:
    """``T`` consecutive frames of one person seen by one camera.

    Attributes:
        title: what is seen, such as the name of the action.
        skeleton: names, parents and sides of the ``J`` joints.
        fps: frames per second, above 0.
        keypoints: (T, J, 2) 2D input in px; NaN where a joint was not seen.
        stages: (K + 1, T, J, 3) poses in mm relative to the root joint, camera frame; stage 0 is
            the lifter's pose, stage K the refined one.
        root: (T, 3) root joint in mm, camera frame.
        camera: the camera that took the 2D input, or its intrinsics (4,) in px.
        truth: (T, J, 3) true pose in mm relative to the root joint, or None where unknown.
        image_size: width and height of the image in px; twice the principal point if not given.
        up: (3,) direction away from the ground in the camera frame; ``(0, -1, 0)``, a level
            camera, if not given.

    Raises:
        ValueError: for a shape that does not fit the others, no frames, or an fps not above 0.
    """

    title: str
    skeleton: Skeleton
    fps: float
    keypoints: Tensor
    stages: Tensor
    root: Tensor
    camera: Camera | Tensor
    truth: Tensor | None = None
    image_size: tuple[int, int] | None = None
    up: Tensor | None = None

    def __post_init__(self) -> None:
        if self.keypoints.ndim != 3:
            raise ValueError(f"keypoints must be (T, J, 2), got {tuple(self.keypoints.shape)}")
        frames, joints = self.keypoints.shape[0], self.skeleton.num_joints
        expected: dict[str, tuple[Any, tuple[int, ...]]] = {
            "keypoints": (self.keypoints, (frames, joints, 2)),
            "root": (self.root, (frames, 3)),
            "stages": (self.stages, (max(2, self.stages.shape[0]), frames, joints, 3)),
        }
        if self.truth is not None:
            expected["truth"] = (self.truth, (frames, joints, 3))
        if self.up is not None:
            expected["up"] = (self.up, (3,))
        for name, (value, shape) in expected.items():
            if tuple(value.shape) != shape:
                raise ValueError(
                    f"{name} must be {shape} for {frames} frames of the {self.skeleton.name} "
                    f"skeleton, got {tuple(value.shape)}"
                )
        if frames == 0:
            raise ValueError("keypoints must hold at least one frame, got none")
        if not self.fps > 0:
            raise ValueError(f"fps must be above 0, got {self.fps}")

    @property
    def frames(self) -> int:
        """Number of frames T."""
        return int(self.keypoints.shape[0])

    @property
    def stage_names(self) -> list[str]:
        """The names of the stages: Lifter, Stage 1, ..., Stage K."""
        return ["Lifter", *(f"Stage {k}" for k in range(1, self.stages.shape[0]))]

    def intrinsics(self) -> Floats:
        """The camera's (4,) focal lengths and principal point in px."""
        camera = self.camera
        return as_array(camera.intrinsics if isinstance(camera, Camera) else camera).reshape(4)

    def image_extent(self) -> tuple[float, float]:
        """Width and height of the image in px."""
        if self.image_size is not None:
            return float(self.image_size[0]), float(self.image_size[1])
        _, _, cx, cy = self.intrinsics()
        return 2.0 * float(cx), 2.0 * float(cy)

    def errors(self) -> Floats | None:
        """MPJPE in mm of every stage and frame, (K + 1, T), or None without the truth.

        Root joints are aligned first: the stages may move the root joint a little as well.
        """
        if self.truth is None:
            return None
        difference = as_array(self.stages) - as_array(self.truth)
        if self.skeleton.root_joint is not None:
            difference = difference - difference[..., [self.skeleton.root_joint], :]
        return np.asarray(np.linalg.norm(difference, axis=-1).mean(axis=-1), dtype=np.float64)

    def projections(self) -> Floats:
        """Every stage's pose back in the image (Eq. 5 of the paper): (K + 1, T, J, 2) in px."""
        with torch.no_grad():
            return as_array(project(self.stages, self.root, self.camera))

    def world_axes(self) -> Floats:
        """Rotation (3, 3) from the camera frame to x right, y up, z towards the camera."""
        up = np.array([0.0, -1.0, 0.0]) if self.up is None else as_array(self.up)
        length = float(np.linalg.norm(up))
        # The camera's own viewing axis gives the heading, so `up` must not lie along it.
        if not length > 0 or abs(up[2]) > 0.999 * length:
            raise ValueError(
                f"up must be a direction away from the camera's viewing axis, got {up.tolist()}"
            )
        up = up / length
        backward = np.array([0.0, 0.0, -1.0])
        backward = backward - up * float(backward @ up)
        backward = backward / np.linalg.norm(backward)
        return np.stack([np.cross(up, backward), up, backward])

    def ground_height(self) -> float:
        """Height of the ground in mm above the camera's centre (negative: below the camera)."""
        pose = as_array(self.stages[-1] if self.truth is None else self.truth)
        heights = (pose + as_array(self.root)[:, None]) @ self.world_axes()[1]
        # Low percentile, not the minimum: one joint below the floor in one frame is a glitch.
        return float(np.nanpercentile(heights.min(axis=1), 5.0))


def as_array(values: Tensor) -> Floats:
    """A tensor as a float64 NumPy array."""
    return np.asarray(values.detach().to("cpu", torch.float64).numpy())
