"""Finding and reading camera files: JSON, and HumanEva-I's own calibration text files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from erd_cuda.data.extrinsics import CameraRig, CameraSet, cameras_from_json

# fc 2, cc 2, alpha 1, kc 5, R 9, T 3: one number a line.
_CAL_NUMBERS = 22
_HUMANEVA_CAMERAS = ("C1", "C2", "C3")  # the colour cameras, in the order of VideoPose3D's 2D


def read_json(path: str | os.PathLike[str]) -> object:
    """Parsed content of a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or truncated.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(f"{path}: there is no such file.") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file, or truncated ({error}).") from error


def read_cameras(path: str | os.PathLike[str]) -> CameraSet:
    """Cameras of a data set.

    Args:
        path: a camera JSON file (see `erd_cuda.data.extrinsics.cameras_from_json`), or HumanEva-I's
            own folder, in which ``S1/Calibration_Data/C1.cal`` and the like are looked up.

    Raises:
        FileNotFoundError: there is nothing of the kind.
        ValueError: a file is damaged or not of the expected form.
    """
    if os.path.isdir(path):
        return _read_humaneva(Path(path))
    return cameras_from_json(read_json(path), str(path))


def _read_humaneva(folder: Path) -> CameraSet:
    rigs: dict[str | tuple[str, str], CameraRig] = {}
    for calibration in sorted(folder.glob("S*/Calibration_Data")):
        files = [calibration / f"{name}.cal" for name in _HUMANEVA_CAMERAS]
        numbers = np.stack([_read_cal(file) for file in files])
        rotation = numbers[:, 10:19].reshape(-1, 3, 3)
        # The file has X_camera = R X_world + T, in mm.
        centre = -(rotation.transpose(0, 2, 1) @ numbers[:, 19:, None])[..., 0]
        rigs[calibration.parent.name] = CameraRig(
            intrinsics=numbers[:, :4],
            distortion=numbers[:, 5:10],
            model="opencv",
            rotation=rotation,
            centre=centre,
        )
    if not rigs:
        raise FileNotFoundError(
            f"{folder} has no camera calibrations: expected HumanEva-I's files, such as "
            "S1/Calibration_Data/C1.cal."
        )
    return CameraSet(str(folder), rigs)


def _read_cal(file: Path) -> np.ndarray:
    try:
        numbers = np.array([float(word) for word in file.read_text(encoding="ascii").split()])
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: there is no such file.") from None
    except ValueError as error:
        raise ValueError(
            f"{file} is no calibration file: expected one number a line ({error})."
        ) from error
    if len(numbers) != _CAL_NUMBERS:
        raise ValueError(
            f"{file} is no calibration file: expected {_CAL_NUMBERS} numbers, got {len(numbers)}."
        )
    if not (np.isfinite(numbers).all() and (numbers[:2] > 0.0).all()):
        raise ValueError(
            f"{file} is no calibration file: expected finite numbers and positive focal lengths."
        )
    if numbers[4] != 0.0:
        raise ValueError(
            f"{file}: the pixel skew alpha is {numbers[4]}; only cameras without skew are handled."
        )
    rotation = numbers[10:19].reshape(3, 3)
    if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) or np.linalg.det(rotation) < 0:
        raise ValueError(f"{file}: lines 11 to 19 are not a rotation matrix.")
    return numbers
