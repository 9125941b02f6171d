"""Small folders in the CMU motion capture database's form, written as its files are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# name, parent, direction (made unit length), length, axis in degrees, dof. Lengths, directions and
# axes are like those of an adult in the database, right as left mirrored.
_LEFT: list[tuple[str, str, tuple[float, float, float], float, tuple[float, float, float], str]] = [
    ("lhipjoint", "root", (0.64, -0.71, 0.30), 2.48, (0, 0, 0), ""),
    ("lfemur", "lhipjoint", (0.34, -0.94, 0.0), 7.5, (0, 0, 20), "rx ry rz"),
    ("ltibia", "lfemur", (0.34, -0.94, 0.0), 7.8, (0, 0, 20), "rx"),
    ("lfoot", "ltibia", (0.0, -0.26, 0.97), 2.2, (-90, 0, 20), "rx rz"),
    ("ltoes", "lfoot", (0.0, 0.0, 1.0), 1.1, (-90, 0, 20), "rx"),
    ("lclavicle", "thorax", (0.95, 0.28, -0.1), 3.5, (0, 0, 0), "ry rz"),
    ("lhumerus", "lclavicle", (1.0, 0.0, 0.0), 5.1, (180, 30, 90), "rx ry rz"),
    ("lradius", "lhumerus", (1.0, 0.0, 0.0), 3.6, (180, 30, 90), "rx"),
    ("lwrist", "lradius", (1.0, 0.0, 0.0), 1.8, (180, 60, 90), "ry"),
    ("lhand", "lwrist", (1.0, 0.0, 0.0), 0.7, (180, -90, 90), "rx rz"),
]
_MIDDLE: list[
    tuple[str, str, tuple[float, float, float], float, tuple[float, float, float], str]
] = [
    ("lowerback", "root", (0.02, 1.0, -0.06), 2.05, (0, 0, 0), "rx ry rz"),
    ("upperback", "lowerback", (0.0, 1.0, 0.0), 2.06, (0, 0, 0), "rx ry rz"),
    ("thorax", "upperback", (0.0, 1.0, 0.03), 2.07, (0, 0, 0), "rx ry rz"),
    ("lowerneck", "thorax", (0.0, 1.0, 0.1), 1.7, (0, 0, 0), "rx ry rz"),
    ("upperneck", "lowerneck", (0.0, 1.0, -0.1), 1.7, (0, 0, 0), "rx ry rz"),
    ("head", "upperneck", (0.0, 1.0, -0.05), 1.72, (0, 0, 0), "rx ry rz"),
]


def _mirrored(bone: Any) -> Any:
    name, parent, (x, y, z), length, (a, b, c), dof = bone
    other = {"l": "r"}
    flip = other.get(parent[0], parent[0]) if parent not in ("root", "thorax") else parent[0]
    return "r" + name[1:], flip + parent[1:], (-x, y, z), length, (a, -b, -c), dof


BONES = [*_LEFT, *map(_mirrored, _LEFT), *_MIDDLE]
UNIT = 25.4 / 0.45  # millimetres
# What the 17 joints' bones measure: those of each joint's end and its parent's.
LENGTHS = {bone[0]: bone[3] * UNIT for bone in BONES}


def asf_text(bones: Any = tuple(BONES)) -> str:
    """A skeleton as the database's files spell it."""
    lines = [
        "# AST/ASF file generated using VICON BodyLanguage",
        "# -----------------------------------------------",
        ":version 1.10",
        ":name VICON",
        ":units",
        "  mass 1.0",
        "  length 0.45",
        "  angle deg",
        ":documentation",
        "   .ast/.asf automatically generated from VICON data using",
        "   VICON BodyBuilder and BodyLanguage model FoxedUp or BRILLIANT.MOD",
        ":root",
        "   order TX TY TZ RX RY RZ",
        "   axis XYZ",
        "   position 0 0 0  ",
        "   orientation 0 0 0 ",
        ":bonedata",
    ]
    for number, (name, _, direction, length, axis, dof) in enumerate(bones, 1):
        unit = np.array(direction) / np.linalg.norm(direction)
        lines += ["  begin", f"     id {number} ", f"     name {name}"]
        lines += ["     direction {:.9f} {:.9f} {:.9f} ".format(*unit), f"     length {length} "]
        lines += ["     axis {} {} {}  XYZ".format(*axis)]
        if dof:
            lines += [f"    dof {dof}", "    limits (-160.0 20.0)"]
            lines += ["           (-70.0 70.0)"] * (len(dof.split()) - 1)
        lines += ["  end"]
    lines += [":hierarchy", "  begin"]
    for parent in dict.fromkeys(bone[1] for bone in bones):
        lines += ["    " + " ".join([parent, *(bone[0] for bone in bones if bone[1] == parent)])]
    return "\n".join([*lines, "  end"]) + "\n"


def amc_text(root: Array, angles: dict[str, Array], bones: Any = tuple(BONES)) -> str:
    """A motion: root (F, 6), and angles (F, 3) by bone, 0 for bones left out; only a bone's own
    dof are written.
    """
    lines = ["#!OML:ASF F:\\VICON\\USERDATA\\INSTALL\\x\\x.ASF", ":FULLY-SPECIFIED", ":DEGREES"]
    for frame in range(len(root)):
        lines += [str(frame + 1), "root " + " ".join(f"{value:.8g}" for value in root[frame])]
        for name, _, _, _, _, dof in bones:
            if dof:
                turns = angles.get(name, np.zeros((len(root), 3)))[frame]
                values = [turns["xyz".index(each[1])] for each in dof.split()]
                lines.append(" ".join([name, *(f"{value:.8g}" for value in values)]))
    return "\n".join(lines) + "\n"


def motion(seed: int, frames: int, walked: float = 20.0) -> str:
    """Somebody who walks ``walked`` units along z while all bones turn this way and that."""
    rng = np.random.default_rng(seed)
    time = np.linspace(0.0, 1.0, frames)[:, None]
    root = np.zeros((frames, 6))
    root[:, 1] = 17.0
    root[:, 2] = walked * time[:, 0]
    root[:, 3:] = 20.0 * np.sin(6.0 * time + rng.uniform(0, 6, 3))
    angles = {
        bone[0]: 30.0 * np.sin(6.0 * time + rng.uniform(0, 6, 3)) for bone in BONES if bone[5]
    }
    return amc_text(root, angles)


def cmu_folder(folder: Path, frames: int = 41, below: str = "subjects") -> Path:
    """Three subjects, one of them with two motions."""
    for subject, count in (("2", 1), ("10", 2), ("35", 1)):
        place = folder / below / subject
        place.mkdir(parents=True)
        (place / f"{subject}.asf").write_text(asf_text())
        for number in range(1, count + 1):
            text = motion(int(subject) + number, frames)
            (place / f"{subject}_{number:02}.amc").write_text(text)
    return folder
