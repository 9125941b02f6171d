"""Calibrated cameras of a capture: where they stand, what lens they have, and world to camera.

Axes: the world is right-handed with z up; a camera looks along its z axis with x to the right and y
down. All lengths are millimetres here, whatever the file used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def quaternion_to_matrix(quaternion: ArrayLike) -> Array:
    """Rotation matrices (..., 3, 3) of quaternions (..., 4) in the order w, x, y, z.

    Quaternions are normalised first; files round them.

    Raises:
        ValueError: the last dimension is not 4, or a quaternion is zero or not finite.
    """
    q = np.asarray(quaternion, dtype=np.float64)
    if q.ndim == 0 or q.shape[-1] != 4:
        raise ValueError(f"quaternion: expected shape (..., 4) as w, x, y, z, got {q.shape}.")
    norm = np.linalg.norm(q, axis=-1, keepdims=True)
    if not (np.isfinite(norm).all() and (norm > 1e-6).all()):
        raise ValueError("quaternion: a zero or non-finite quaternion is no rotation.")
    w, x, y, z = np.moveaxis(q / norm, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


@dataclass(frozen=True, eq=False)
class CameraRig:
    """The C calibrated cameras that see one sequence.

    Attributes:
        intrinsics: (C, 4) fx, fy, cx, cy in px.
        distortion: (C, 5) coefficients in the order of ``model``, or None.
        model: ``"pinhole"``, ``"opencv"`` or ``"h36m"``, as `erd_cuda.Camera`.
        rotation: (C, 3, 3) world to camera.
        centre: (C, 3) camera centres in the world, mm.
    """

    intrinsics: Array
    distortion: Array | None
    model: str
    rotation: Array
    centre: Array

    @property
    def count(self) -> int:
        """Number of cameras C."""
        return len(self.intrinsics)

    def world_to_camera(self, points: NDArray[Any]) -> Array:
        """Camera coordinates (C, ..., 3) of world points (..., 3), both in mm: R (X - centre)."""
        flat = np.asarray(points, dtype=np.float64).reshape(-1, 3)
        seen = (flat - self.centre[:, None]) @ self.rotation.transpose(0, 2, 1)
        return seen.reshape(self.count, *points.shape)


@dataclass(frozen=True, eq=False)
class CameraSet:
    """The cameras of a whole data set, by subject and, where cameras move between takes, by action.

    Attributes:
        source: what to call this in messages, usually the file's path.
        rigs: a rig by subject, or by (subject, action).
    """

    source: str
    rigs: Mapping[str | tuple[str, str], CameraRig]

    def rig(self, subject: str, action: str) -> CameraRig:
        """The cameras that saw one sequence.

        Subjects may carry a folder in front (``Train/S1`` in HumanEva); cameras are filed under the
        last part too.

        Raises:
            ValueError: there are none for this subject and action.
        """
        for name in (subject, subject.rsplit("/", 1)[-1]):
            for key in ((name, action), name):
                if key in self.rigs:
                    return self.rigs[key]
        raise ValueError(
            f"{self.source} has no cameras for subject {subject!r}, action {action!r}."
        )


def cameras_from_json(content: Any, source: str) -> CameraSet:
    """Cameras from the content of a camera JSON file, of which two layouts are in use.

    ``intrinsics`` is a list of cameras, the same for everybody, or such a list for each subject.
    ``extrinsics`` holds for each subject a list of cameras (Human3.6M's published table), or such a
    list for each action (mocap17).

    The unit of ``translation`` is decided by a rule, never by looking at the numbers: the key
    ``translation_unit`` (``"mm"`` or ``"m"``) where the file has it; else millimetres where cameras
    are filed by subject, and metres where they are filed by action. Camera centres outside 0.1 m to
    100 m from the origin are then refused. Distortion is Human3.6M's model unless the key
    ``distortion_model`` says ``"opencv"``.

    Args:
        content: the parsed JSON.
        source: the file's path, for messages.

    Raises:
        ValueError: the content is not of this form.
    """
    if not isinstance(content, Mapping) or not {"intrinsics", "extrinsics"} <= content.keys():
        raise ValueError(
            f"{source} is no camera file: it needs the keys 'intrinsics' and 'extrinsics'."
        )
    intrinsics, extrinsics = content["intrinsics"], content["extrinsics"]
    unit = content.get("translation_unit")
    model = content.get("distortion_model", "h36m")
    if unit not in (None, "mm", "m"):
        raise ValueError(f"{source}: translation_unit must be 'mm' or 'm', got {unit!r:.60}.")
    if model not in ("h36m", "opencv"):
        raise ValueError(
            f"{source}: distortion_model must be 'h36m' or 'opencv', got {model!r:.60}."
        )
    if not isinstance(intrinsics, (list, Mapping)) or not isinstance(extrinsics, Mapping):
        raise ValueError(
            f"{source}: extrinsics must be filed by subject, and intrinsics be a list or by "
            "subject."
        )
    rigs: dict[str | tuple[str, str], CameraRig] = {}
    for subject, placed in extrinsics.items():
        lenses = intrinsics if isinstance(intrinsics, list) else intrinsics.get(subject)
        if isinstance(placed, list):
            if not any(placed):
                continue  # the published table lists subjects without cameras as empty entries
            scale = 1000.0 if unit == "m" else 1.0
            rigs[subject] = _rig(lenses, placed, model, scale, f"{source}, subject {subject!r}")
        elif isinstance(placed, Mapping):
            scale = 1.0 if unit == "mm" else 1000.0
            for action, cameras in placed.items():
                where = f"{source}, subject {subject!r}, action {action!r}"
                rigs[subject, action] = _rig(lenses, cameras, model, scale, where)
        else:
            raise ValueError(
                f"{source}: the extrinsics of subject {subject!r} are neither a list nor filed by "
                "action."
            )
    return CameraSet(source, rigs)


def _rig(lenses: Any, placed: Any, model: str, scale: float, where: str) -> CameraRig:
    if not isinstance(lenses, list) or not isinstance(placed, list) or len(lenses) != len(placed):
        counts = [len(each) if isinstance(each, list) else 0 for each in (lenses, placed)]
        raise ValueError(f"{where}: {counts[0]} intrinsics do not fit {counts[1]} extrinsics.")
    try:
        focal = _table(lenses, "focal_length", 2)
        centre = _table(lenses, "center", 2)
        radial = _table(lenses, "radial_distortion", 3)
        tangential = _table(lenses, "tangential_distortion", 2)
        rotation = quaternion_to_matrix(_table(placed, "orientation", 4)).transpose(0, 2, 1)
        position = _table(placed, "translation", 3) * scale
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if not (focal > 0).all():
        raise ValueError(f"{where}: focal_length must be positive.")
    distance = np.linalg.norm(position, axis=-1)
    implausible = distance[(distance < 100.0) | (distance > 1e5)]
    if implausible.size:
        raise ValueError(
            f"{where}: a camera centre {implausible[0]:.6g} mm from the origin is implausible; "
            'say "translation_unit": "mm" or "m" in the file.'
        )
    if model == "opencv":
        distortion = np.concatenate([radial[:, :2], tangential, radial[:, 2:]], axis=1)
    else:
        distortion = np.concatenate([radial, tangential], axis=1)
    return CameraRig(np.concatenate([focal, centre], axis=1), distortion, model, rotation, position)


def _table(cameras: Sequence[Any], key: str, width: int) -> Array:
    """(C, width) numbers filed under ``key`` in each camera."""
    for index, camera in enumerate(cameras):
        if not isinstance(camera, Mapping) or key not in camera:
            raise ValueError(f"camera {index} has no {key!r}.")
    try:
        table = np.asarray([camera[key] for camera in cameras], dtype=np.float64)
    except (TypeError, ValueError):
        table = np.zeros(0)
    if table.shape != (len(cameras), width) or not np.isfinite(table).all():
        raise ValueError(f"{key!r} must be {width} finite numbers for each camera.")
    return table
