"""The CMU motion capture database (mocap.cs.cmu.edu) from its own files, as h36m17 with cameras.

What the 17 joints are, in the database's bones (each bone is named here for the joint at its end):

- Hip is the point halfway between the two hip joints, as in Human3.6M; the database's root lies
  some 10 cm above it.
- RHip, RKnee, RFoot are the ends of ``rhipjoint``, ``rfemur`` and ``rtibia``: hip, knee and ankle.
- Spine, Thorax, Neck/Nose and Head are the ends of ``lowerback``, ``thorax``, ``upperneck`` and
  ``head``.
- RShoulder, RElbow, RWrist are the ends of ``rclavicle``, ``rhumerus`` and ``rradius``. The
  database splits the forearm, and the bones ``rradius`` and ``rwrist`` together are a little longer
  than one. The end of ``rradius`` is what mocap17 and the models trained on it take for the wrist;
  it lies some centimetres short of it.

The files say neither how fast they were recorded nor what they show: 120 Hz is the database's rate,
and the actions can be named in a metadata file.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from erd_cuda.data.amc import bone_ends, read_amc
from erd_cuda.data.asf import AcclaimSkeleton, read_asf
from erd_cuda.data.calibration import read_json
from erd_cuda.data.capture import Capture
from erd_cuda.data.dataset import name_list
from erd_cuda.data.extrinsics import Array, CameraRig, CameraSet
from erd_cuda.data.skeleton import h36m17
from erd_cuda.data.studio import into_box, random_lenses, random_rig

RATE = 120.0  # Hz, at which nearly all of the database was recorded

# The bones of the trunk; those of the limbs have an r or l before these names.
_TRUNK = {"Spine": "lowerback", "Thorax": "thorax", "Neck/Nose": "upperneck", "Head": "head"}
_LIMBS = {
    "Hip": "hipjoint",
    "Knee": "femur",
    "Foot": "tibia",
    "Shoulder": "clavicle",
    "Elbow": "humerus",
    "Wrist": "radius",
}
_BONES = _TRUNK | {
    side + joint: side.lower() + bone for side in "RL" for joint, bone in _LIMBS.items()
}


def cmu_capture(
    folder: str | os.PathLike[str],
    *,
    fps: float = 30.0,
    seed: int = 0,
    meta: str | os.PathLike[str] | None = None,
    subjects: Iterable[str] | None = None,
) -> Capture:
    """Motions of the CMU database, reduced to 17 joints, and cameras like Human3.6M's.

    Wherever below ``folder`` a skeleton ``35.asf`` lies, the motions ``35_*.amc`` beside it are
    taken, as subject ``35``. People who walk further than 3.2 m are kept within that, see
    `erd_cuda.data.studio.into_box`. Four cameras stand around each take; a subject's lenses and a
    take's places follow from ``seed`` and the names alone, whatever else is in the folder.

    Args:
        folder: the database, or a part of it.
        fps: frames per second to reduce to; the frame nearest in time is taken, exact for the
            divisors of 120 and within 1/240 s for others, such as 50.
        seed: seed of the cameras.
        meta: JSON file with ``subjects_train`` and ``subjects_test``, lists of subjects (others are
            left out), and, if wanted, ``actions``: what each motion shows, such as
            ``{"35_01": "Walk"}`` (others are left out). Without it the last fifth of the subjects,
            and at least one of several, is for testing, and every motion is a ``Motion``. The
            database has some people under several numbers, which only such a file can put on one
            side.
        subjects: read only these.

    Returns:
        Positions in metres, z up, with takes called ``Walk 01`` after action and number.

    Raises:
        FileNotFoundError: there is no such folder, no skeleton in it, or no metadata file.
        ValueError: a file is damaged, of another form or lacks a bone; a name does not exist.
    """
    if not 0.0 < fps <= RATE:
        raise ValueError(f"fps: expected more than 0 and at most {RATE:g}, got {fps}.")
    if seed < 0:
        raise ValueError(f"seed: expected 0 or more, got {seed}.")
    motions = _find(Path(folder))
    splits, labels = _plan(motions, folder, meta)
    chosen = [name for names in splits.values() for name in names]
    if subjects is not None:
        chosen = name_list("subjects", subjects)
        for name in chosen:
            if name not in motions:
                raise ValueError(f"subjects: {folder} has no subject {name!r}.")
    positions: dict[str, dict[str, np.ndarray]] = {}
    rigs: dict[str | tuple[str, str], CameraRig] = {}
    for subject in sorted(chosen, key=_by_number):
        skeleton_file, motion_files = motions[subject]
        skeleton = read_asf(skeleton_file)
        _check_bones(skeleton)
        who = zlib.crc32(subject.encode())
        lenses = random_lenses(np.random.default_rng([seed, who]))
        for file in motion_files:
            label = "Motion" if labels is None else labels.get(file.stem)
            if label is None:
                continue
            number = file.stem.removeprefix(f"{subject}_")
            key = f"{label} {number}"
            world = _world(skeleton, file)
            rng = np.random.default_rng([seed, who, zlib.crc32(number.encode())])
            # The cameras look at the middle of the box, so that nobody comes too near to one.
            standing = world[:, h36m17.root] * [0.0, 0.0, 1.0]
            standing = standing[np.isfinite(standing).all(axis=1)]
            rigs[subject, key] = random_rig(rng, *lenses, standing)
            positions.setdefault(subject, {})[key] = _thinned(world, fps).astype(np.float32)
    return Capture(
        name="cmu",
        source=str(folder),
        skeleton=h36m17,
        fps=fps,
        positions=positions,
        splits=splits,
        cameras=CameraSet(str(folder), rigs),
    )


def h36m17_positions(skeleton: AcclaimSkeleton, ends: Mapping[str, Array]) -> Array:
    """The 17 joints (F, 17, 3) of the ends (F, 3) of a CMU skeleton's bones, same unit and axes.

    Raises:
        ValueError: the skeleton lacks a bone.
    """
    _check_bones(skeleton)
    joints = {joint: ends[bone] for joint, bone in _BONES.items()}
    joints["Hip"] = (joints["RHip"] + joints["LHip"]) / 2.0
    return np.stack([joints[joint] for joint in h36m17.joints], axis=1)


def _find(folder: Path) -> dict[str, tuple[Path, list[Path]]]:
    """Skeleton and motions of every subject below a folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder with the CMU database's files.")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".asf", ".amc"))
    found: dict[str, tuple[Path, list[Path]]] = {}
    for file in (file for file in files if file.suffix.lower() == ".asf"):
        if file.stem in found:
            raise ValueError(
                f"{folder} has two skeletons of subject {file.stem}: {found[file.stem][0]} and "
                f"{file}."
            )
        found[file.stem] = (file, [])
    if not found:
        raise FileNotFoundError(
            f"{folder} has no skeletons: expected the CMU database's files, such as "
            "subjects/35/35.asf and subjects/35/35_01.amc."
        )
    for file in (file for file in files if file.suffix.lower() == ".amc"):
        subject = file.stem.rpartition("_")[0]
        if subject not in found or found[subject][0].parent != file.parent:
            raise ValueError(f"{file} has no skeleton {subject or file.stem}.asf beside it.")
        found[subject][1].append(file)
    for skeleton, motions in found.values():
        if not motions:
            raise ValueError(f"{skeleton} has no motions {skeleton.stem}_*.amc beside it.")
    return found


def _plan(
    motions: Mapping[str, Any], folder: object, meta: str | os.PathLike[str] | None
) -> tuple[dict[str, list[str]], dict[str, str] | None]:
    """Subjects of each split, and the actions of motions where they are named."""
    if meta is None:
        names = sorted(motions, key=_by_number)
        first = len(names) - max(len(names) // 5, min(len(names) - 1, 1))
        return {"train": names[:first], "test": names[first:]}, None
    content = read_json(meta)
    if not isinstance(content, Mapping):
        raise ValueError(f"{meta}: expected an object with subjects_train and subjects_test.")
    splits: dict[str, list[str]] = {}
    for split in ("train", "test"):
        listed = content.get(f"subjects_{split}")
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            raise ValueError(f"{meta}: subjects_{split} must be a list of subjects' names.")
        for name in listed:
            if name not in motions:
                raise ValueError(f"{meta}: subjects_{split} has {name!r}, which {folder} has not.")
        splits[split] = list(dict.fromkeys(listed))
    both = sorted(set(splits["train"]) & set(splits["test"]))
    if both:
        raise ValueError(f"{meta}: {', '.join(both)} is listed for training and for testing.")
    labels = content.get("actions")
    if labels is None:
        return splits, None
    if not isinstance(labels, dict) or not all(
        isinstance(label, str) and re.fullmatch(r"\S+", label) for label in labels.values()
    ):
        raise ValueError(f"{meta}: actions must give one word for each motion.")
    known = {file.stem for _, files in motions.values() for file in files}
    unknown = sorted(set(labels) - known)
    if unknown:
        raise ValueError(f"{meta}: actions has {unknown[0]!r}, which {folder} has not.")
    return splits, labels


def _by_number(name: str) -> tuple[int, str]:
    """Sorts 2 before 10, and names that are no numbers last."""
    return (int(name), name) if name.isdecimal() else (1 << 62, name)


def _check_bones(skeleton: AcclaimSkeleton) -> None:
    for joint, bone in _BONES.items():
        if bone not in skeleton.bones:
            raise ValueError(f"{skeleton.source} has no bone {bone!r}, which {joint} needs.")


def _world(skeleton: AcclaimSkeleton, file: Path) -> Array:
    """World coordinates (F, 17, 3) of a motion in metres, z up, the hip's path within the box."""
    ends = bone_ends(skeleton, read_amc(file, skeleton))
    # From y up and z ahead to z up and x ahead.
    world = h36m17_positions(skeleton, ends)[..., [2, 0, 1]] / 1000.0
    whole = np.isfinite(world).all(axis=(1, 2))
    if not whole.any():
        raise ValueError(f"{file} has no frame without gaps.")
    path = world[whole, h36m17.root, :2]
    world[whole, :, :2] += (into_box(path) - path)[:, None]
    return world


def _thinned(world: Array, fps: float) -> Array:
    """The frames nearest to the times of a lower rate, the first at the first frame."""
    count = int((len(world) - 1) * fps / RATE + 1e-9) + 1
    return world[np.rint(np.arange(count) * (RATE / fps)).astype(int)]
