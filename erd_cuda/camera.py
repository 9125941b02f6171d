"""Camera intrinsics and lens distortion, one camera per sample or one for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ._definitions import CAMERA_MODELS


@dataclass(frozen=True, eq=False)
class Camera:
    """A camera, or a batch of cameras, that maps points of its own frame to pixels.

    The camera frame has x to the right, y down and z forward.

    Attributes:
        intrinsics: (..., 4) focal lengths and principal point ``fx, fy, cx, cy`` in px.
        distortion: (..., 5) lens distortion, or None for a pinhole. Its meaning depends on the
            model:
            ``"opencv"``: ``k1, k2, p1, p2, k3`` of OpenCV's five-coefficient model.
            ``"h36m"``: ``k1, k2, k3, p1, p2`` of Human3.6M's own model, in VideoPose3D's order; its
            tangential terms lack OpenCV's factor 2.
        model: ``"pinhole"``, ``"opencv"`` or ``"h36m"``.

    Raises:
        TypeError: intrinsics or distortion is not a tensor.
        ValueError: a last dimension is not 4 or 5, the model is unknown, or model and distortion
            do not go together.
    """

    intrinsics: Tensor
    distortion: Tensor | None = None
    model: str = "pinhole"

    def __post_init__(self) -> None:
        if self.model not in CAMERA_MODELS:
            raise ValueError(
                f"camera model is {self.model!r}, expected one of {', '.join(CAMERA_MODELS)}"
            )
        _check_last_dim("camera intrinsics", self.intrinsics, 4, "fx, fy, cx, cy")
        if (self.distortion is None) != (self.model == "pinhole"):
            state = "without" if self.distortion is None else "with"
            raise ValueError(
                f"camera model {self.model!r} came {state} distortion; 'pinhole' takes none, the "
                "others take a (..., 5) tensor"
            )
        if self.distortion is not None:
            _check_last_dim("camera distortion", self.distortion, 5, "five coefficients")

    @classmethod
    def pinhole(cls, intrinsics: Tensor) -> Camera:
        """A camera without lens distortion from (..., 4) intrinsics in px."""
        return cls(intrinsics)

    @property
    def is_pinhole(self) -> bool:
        """Whether no camera of the batch has lens distortion: model "pinhole"."""
        return self.distortion is None

    @property
    def batch_shape(self) -> torch.Size:
        """Shape of the batch of cameras: the broadcast of both tensors' leading dimensions."""
        if self.distortion is None:
            return self.intrinsics.shape[:-1]
        return torch.broadcast_shapes(self.intrinsics.shape[:-1], self.distortion.shape[:-1])

    def to(self, *args: Any, **kwargs: Any) -> Camera:
        """Like :meth:`torch.Tensor.to`, for both tensors."""
        return self._map(lambda t: t.to(*args, **kwargs))

    def expand(self, batch_shape: torch.Size | tuple[int, ...]) -> Camera:
        """Repeats the camera over a batch shape, without a copy."""
        return self._map(lambda t: t.expand(*batch_shape, t.shape[-1]))

    def __getitem__(self, index: Any) -> Camera:
        """Selects cameras by an index into the batch dimensions."""
        if not self.batch_shape:
            raise IndexError("this camera has no batch dimension to index")
        return self.expand(self.batch_shape)._map(lambda t: t[index])

    def _map(self, function: Any) -> Camera:
        distortion = None if self.distortion is None else function(self.distortion)
        return Camera(function(self.intrinsics), distortion, self.model)


def _check_last_dim(name: str, value: Any, size: int, meaning: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} is a {type(value).__name__}, expected a tensor of shape (..., {size})"
        )
    if value.ndim < 1 or value.shape[-1] != size:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, expected (..., {size}): {meaning}"
        )


def as_camera(camera: Camera | Tensor) -> Camera:
    """Takes a plain (..., 4) tensor of intrinsics for a pinhole camera."""
    if isinstance(camera, Camera):
        return camera
    if not isinstance(camera, Tensor):
        raise TypeError(
            f"camera is a {type(camera).__name__}, expected a Camera or a (..., 4) tensor of "
            "fx, fy, cx, cy"
        )
    if camera.ndim < 1 or camera.shape[-1] != 4:
        raise ValueError(
            f"camera has shape {tuple(camera.shape)}, expected (..., 4): fx, fy, cx, cy"
        )
    return Camera(camera)


def _flatten(camera: Camera) -> tuple[list[Any], str]:
    return [camera.intrinsics, camera.distortion], camera.model


def _unflatten(leaves: Any, model: str) -> Camera:
    # torch's transforms rebuild cameras around placeholders that are no tensors: no checks here.
    camera = object.__new__(Camera)
    intrinsics, distortion = leaves
    object.__setattr__(camera, "intrinsics", intrinsics)
    object.__setattr__(camera, "distortion", distortion)
    object.__setattr__(camera, "model", model)
    return camera


def _flatten_with_keys(camera: Camera) -> tuple[list[Any], str]:
    leaves, model = _flatten(camera)
    keys = [pytree.GetAttrKey("intrinsics"), pytree.GetAttrKey("distortion")]
    return list(zip(keys, leaves, strict=True)), model


# A Camera may be an argument of functions given to torch.func, torch.compile and torch.export.
pytree.register_pytree_node(
    Camera,
    _flatten,
    _unflatten,
    serialized_type_name="erd_cuda.Camera",
    flatten_with_keys_fn=_flatten_with_keys,
)
