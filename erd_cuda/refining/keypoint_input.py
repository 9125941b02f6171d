"""Read what ``erd-cuda refine`` is given, with one sentence for all that can go wrong with it."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from erd_cuda.camera import Camera
from erd_cuda.data import PoseDataset

if TYPE_CHECKING:
    from erd_cuda.modules import ERD

__all__ = [
    "OPTIONAL",
    "REQUIRED",
    "KeypointInput",
    "check_against_model",
    "check_finite",
    "from_arrays",
    "read_input",
]

REQUIRED, OPTIONAL = ("keypoints", "camera"), ("confidence", "root", "pose", "bone_length")


@dataclass(eq=False)
class KeypointInput:
    """N samples to refine, float32.

    Attributes:
        keypoints: ``(N, J, 2)`` px.
        camera: One for all, or a batch of N.
        confidence: ``(N, J)`` or None.
        root: ``(N, 3)`` mm or None.
        pose: Initial poses ``(N, J, 3)`` mm, or None for the lifter's.
        bone_length: ``(N,)`` mm, sizes of the persons, or None.
        joints: Names of the joints, if the file knows them.
    """

    keypoints: Tensor
    camera: Camera
    confidence: Tensor | None = None
    root: Tensor | None = None
    pose: Tensor | None = None
    bone_length: Tensor | None = None
    joints: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.keypoints)

    def rows(self, rows: slice, device: torch.device) -> KeypointInput:
        """Some of the samples, on a device."""

        def of(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[rows].to(device)

        camera = self.camera[rows] if self.camera.batch_shape else self.camera
        return replace(
            self,
            keypoints=self.keypoints[rows].to(device),
            camera=camera.to(device),
            confidence=of(self.confidence),
            root=of(self.root),
            pose=of(self.pose),
            bone_length=of(self.bone_length),
        )


def read_input(path: Path) -> KeypointInput:
    """Read a pose file or an .npz of plain arrays.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is of neither kind, is damaged, or an array is missing, has the wrong
            shape or holds NaN or infinity where a number is needed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix == ".safetensors":
        dataset = PoseDataset.load(path)
        data = KeypointInput(
            dataset.keypoints,
            dataset.camera,
            dataset.confidence,
            dataset.root,
            dataset.initial,
            joints=tuple(dataset.skeleton.joints),
        )
    elif path.suffix == ".npz":
        data = from_arrays(path, _read_npz(path))
    else:
        raise ValueError(
            f"{path} must be a pose file (.safetensors) or an .npz of arrays, going by its suffix"
        )
    check_finite(path, data)
    return data


def check_against_model(data: KeypointInput, erd: ERD, path: Path) -> None:
    """Raise a ValueError if the model cannot take the data."""
    joints = data.keypoints.shape[1]
    if joints != erd.num_joints:
        raise ValueError(f"{path} has {joints} joints but the model has {erd.num_joints}")
    if (
        data.joints is not None
        and erd.skeleton is not None
        and data.joints != tuple(erd.skeleton.joints)
    ):
        raise ValueError(
            f"{path} has the joints {', '.join(data.joints)} but the model was trained on "
            f"{', '.join(erd.skeleton.joints)}"
        )
    if data.pose is None and erd.lifter is None:
        raise ValueError(
            f"the model has no lifter, so {path} must hold initial poses (an array pose)"
        )
    if data.bone_length is not None and erd.skeleton is None:
        raise ValueError(
            f"{path} holds bone_length, but the model has no skeleton to measure it on"
        )


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in (*REQUIRED, *OPTIONAL) if name in file.files}
            found = ", ".join(file.files) or "nothing"
    # RuntimeError: it is encrypted or compressed in an unknown way.
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        # NumPy takes any other file for a pickle.
        if "allow_pickle" in str(error) and zipfile.is_zipfile(path):
            raise ValueError(
                f"{path} holds Python objects (a pickle), which are not read; save plain arrays"
            ) from error
        raise ValueError(f"{path} is not a readable .npz file") from error
    for name in REQUIRED:
        if name not in arrays:
            raise ValueError(f"{path} has no array {name}; it holds {found}")
    tensors = {}
    for name, array in arrays.items():
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{name} in {path} must hold real numbers, got dtype {array.dtype}")
        tensors[name] = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    return tensors


def from_arrays(path: Path, arrays: dict[str, Tensor]) -> KeypointInput:
    """Samples from float32 tensors by name, in the shapes that `read_input` takes.

    Raises:
        ValueError: a shape does not fit; the sentence names ``path``.
    """
    keypoints, confidence = arrays["keypoints"], arrays.get("confidence")
    if keypoints.ndim != 3 or keypoints.shape[-1] not in (2, 3):
        raise ValueError(
            f"keypoints in {path} must have the shape (N, J, 2) or (N, J, 3), "
            f"got {tuple(keypoints.shape)}"
        )
    if keypoints.shape[-1] == 3:
        if confidence is not None:
            raise ValueError(
                f"{path} has confidences twice: in the third channel of keypoints and in an array "
                "of their own"
            )
        keypoints, confidence = keypoints[..., :2].contiguous(), keypoints[..., 2].contiguous()
    count, joints = keypoints.shape[:2]
    camera = arrays["camera"]
    shapes = {
        "camera": (camera, ((4,), (count, 4))),
        "confidence": (confidence, ((count, joints),)),
        "root": (arrays.get("root"), ((count, 3),)),
        "pose": (arrays.get("pose"), ((count, joints, 3),)),
        "bone_length": (arrays.get("bone_length"), ((), (count,))),
    }
    for name, (value, allowed) in shapes.items():
        if value is not None and tuple(value.shape) not in allowed:
            raise ValueError(
                f"{name} in {path} must have the shape {' or '.join(map(str, allowed))}, "
                f"got {tuple(value.shape)}"
            )
    length = arrays.get("bone_length")
    return KeypointInput(
        keypoints,
        Camera.pinhole(camera),
        confidence,
        arrays.get("root"),
        arrays.get("pose"),
        None if length is None else length.expand(count),
    )


def check_finite(path: Path, data: KeypointInput, first: int = 0) -> None:
    """Raise a ValueError for NaN and infinity where a number is needed.

    ``first`` is the number of the first sample in the file.
    """
    bad = ~data.keypoints.isfinite().all(dim=-1)
    if data.confidence is not None:
        bad &= data.confidence > 0
    if bad.any():
        sample, joint = bad.nonzero()[0].tolist()
        raise ValueError(
            f"keypoints in {path} hold NaN or infinity at sample {first + sample}, joint {joint} "
            f"({int(bad.sum())} such joints in all); give missing joints the confidence 0"
        )
    for name, value in (
        ("camera", data.camera.intrinsics),
        ("root", data.root),
        ("pose", data.pose),
        ("bone_length", data.bone_length),
    ):
        if value is not None and not value.isfinite().all():
            raise ValueError(f"{name} in {path} holds NaN or infinity")
