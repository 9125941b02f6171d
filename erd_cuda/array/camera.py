"""Camera intrinsics and lens distortion in arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .._definitions import CAMERA_MODELS
from .memory import as_array


@dataclass(frozen=True, eq=False)
class Camera:
    """A camera, or a batch of cameras: `erd_cuda.Camera` with arrays in place of tensors.

    The camera frame has x to the right, y down and z forward.

    Attributes:
        intrinsics: (..., 4) focal lengths and principal point ``fx, fy, cx, cy`` in px.
        distortion: (..., 5) lens distortion, or None for a pinhole: ``k1, k2, p1, p2, k3`` for
            ``"opencv"``, ``k1, k2, k3, p1, p2`` for ``"h36m"``.
        model: ``"pinhole"``, ``"opencv"`` or ``"h36m"``.

    Raises:
        TypeError: intrinsics or distortion is not an array.
        ValueError: a last dimension is not 4 or 5, the model is unknown, or model and distortion
            do not go together.
    """

    intrinsics: Any
    distortion: Any = None
    model: str = "pinhole"

    def __post_init__(self) -> None:
        if self.model not in CAMERA_MODELS:
            raise ValueError(
                f"camera model is {self.model!r}, expected one of {', '.join(CAMERA_MODELS)}"
            )
        if (self.distortion is None) != (self.model == "pinhole"):
            state = "without" if self.distortion is None else "with"
            raise ValueError(
                f"camera model {self.model!r} came {state} distortion; 'pinhole' takes none, the "
                "others take a (..., 5) array"
            )
        intrinsics = _checked("camera intrinsics", self.intrinsics, 4, "fx, fy, cx, cy")
        object.__setattr__(self, "intrinsics", intrinsics)
        if self.distortion is not None:
            distortion = _checked("camera distortion", self.distortion, 5, "five coefficients")
            object.__setattr__(self, "distortion", distortion)

    @classmethod
    def pinhole(cls, intrinsics: Any) -> Camera:
        """A camera without lens distortion from (..., 4) intrinsics in px."""
        return cls(intrinsics)

    @property
    def is_pinhole(self) -> bool:
        """Whether no camera of the batch has lens distortion: model "pinhole"."""
        return self.distortion is None


def as_camera(camera: Any) -> Camera:
    """Takes a plain (..., 4) array of intrinsics for a pinhole camera."""
    return camera if isinstance(camera, Camera) else Camera(_plain(camera))


def _plain(camera: Any) -> Any:
    # erd_cuda.Camera is recognised by its fields: this package does not import torch.
    if hasattr(camera, "intrinsics"):
        raise TypeError(
            f"camera is a {type(camera).__module__}.{type(camera).__name__}, expected an "
            "erd_cuda.array.Camera or a (..., 4) array of fx, fy, cx, cy"
        )
    return _checked("camera", camera, 4, "fx, fy, cx, cy")


def _checked(name: str, value: Any, size: int, meaning: str) -> Any:
    array = as_array(name, value)
    if array.ndim < 1 or array.shape[-1] != size:
        raise ValueError(
            f"{name} has shape {tuple(array.shape)}, expected (..., {size}): {meaning}"
        )
    return array
