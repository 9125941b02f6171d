"""The package's own pose file: a PoseDataset as one safetensors file.

safetensors and not Parquet: the content is a dozen dense tensors, which load by memory mapping with
nothing to parse or decode; the weights use the same format, so it costs no further dependency; and
it cannot hold code. The tensors are those of `PoseDataset.tensors`. The metadata key
``erd_cuda.poses`` holds a JSON object: ``version``, and all that `PoseDataset.metadata` gives. One
key, because safetensors writes several in no fixed order, and the same poses should give the same
bytes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from erd_cuda._files import check_directory, replacing
from erd_cuda.camera import Camera
from erd_cuda.data.dataset import LABELS, PoseDataset
from erd_cuda.data.skeleton import Skeleton

_KEY = "erd_cuda.poses"
VERSION = 1
SUFFIX = ".safetensors"


def write_poses(path: str | os.PathLike[str], dataset: PoseDataset) -> None:
    """Write ``dataset`` to ``path``, which holds the old content or the new one whole, never a
    part.

    Raises:
        ValueError: the name does not end in ``.safetensors``, by which `load_dataset` knows the
            file.
        FileNotFoundError: the folder does not exist.
    """
    target = check_name(path)
    header = json.dumps({"version": VERSION, **dataset.metadata()}, sort_keys=True)
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in dataset.tensors().items()
    }
    with replacing(target) as part:
        save_file(tensors, part, metadata={_KEY: header})


def check_name(path: str | os.PathLike[str]) -> Path:
    """Raise what `write_poses` would raise because of the name, for commands that work long first.

    Raises:
        ValueError, FileNotFoundError: as `write_poses`.
    """
    target = check_directory(path)
    if target.suffix != SUFFIX:
        raise ValueError(f"path: a pose file's name must end in {SUFFIX}, got {target.name!r}.")
    return target


def read_poses(path: str | os.PathLike[str]) -> PoseDataset:
    """Read a pose file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, no pose file, or of another version.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: there is no such file.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if _KEY not in metadata:
                raise ValueError(f"{path} is a safetensors file, but not a pose file of erd_cuda.")
            about = _parsed(metadata[_KEY])
            if about.get("version") != VERSION:
                raise ValueError(
                    f"{path} is a pose file of version {about.get('version')!r:.60}; "
                    f"this release of erd_cuda reads version {VERSION}."
                )
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated, or not a safetensors file ({error}).") from error
    try:
        return PoseDataset(
            camera=Camera(tensors["intrinsics"], tensors.get("distortion"), about["camera_model"]),
            confidence=tensors.get("confidence"),
            initial=tensors.get("initial"),
            skeleton=Skeleton.from_dict(about["skeleton"]),
            subjects=about["subjects"],
            actions=about["actions"],
            takes=about["takes"],
            name=about["name"],
            fps=about["fps"],
            keypoint_source=about["keypoint_source"],
            splits=about["splits"],
            **{name: tensors[name] for name in ("keypoints", "pose", "root", *LABELS)},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is a damaged pose file ({type(error).__name__}: {error})."
        ) from error


def is_pose_file(path: str | os.PathLike[str]) -> bool:
    """Whether a safetensors file says that it is a pose file, of whatever version."""
    try:
        with safe_open(path, framework="pt") as file:
            return _KEY in (file.metadata() or {})
    except SafetensorError:
        return False


def _parsed(header: str) -> dict[str, Any]:
    try:
        about = json.loads(header)
    except json.JSONDecodeError:
        return {}
    return about if isinstance(about, dict) else {}
