"""Acclaim skeleton files (.asf), as the CMU motion capture database has one for every subject.

The format is M. Schafer's Acclaim Skeleton File Definition 1.10 (1994). A skeleton is a tree of
bones. Each bone starts where its parent ends, and in the base pose it points from there along a
direction of the world. What a motion file turns is the bone's own axes, which its ``axis`` line
orients in the world.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import NoReturn

import numpy as np

from erd_cuda.data.kinematics import Array, rotation

# A file's ``length`` says how many of its units make an inch.
_MM_PER_INCH = 25.4
_ROTATIONS = ("rx", "ry", "rz")
_ROOT_ORDER = {"tx", "ty", "tz", *_ROTATIONS}

Line = tuple[int, list[str]]


@dataclass(frozen=True, eq=False)
class Bone:
    """One bone of an Acclaim skeleton.

    Attributes:
        name: its name.
        parent: name of the bone at whose end it starts; ``"root"`` for those that start there.
        offset: (3,) from its start to its end in the base pose, in the file's unit of length.
        axes: (3, 3) rotation from the bone's own axes to the world's in the base pose.
        freedoms: which rotations a motion file gives, in the order they are given and applied.
    """

    name: str
    parent: str
    offset: Array
    axes: Array
    freedoms: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class AcclaimSkeleton:
    """A subject's skeleton.

    Attributes:
        source: the file's path, for messages.
        bones: by name, parents before their children; the root is not among them.
        root_order: the six channels of the root, in the order they are given and applied.
        unit: millimetres in one unit of length.
        degrees: whether angles are degrees (else radians).
    """

    source: str
    bones: dict[str, Bone]
    root_order: tuple[str, ...]
    unit: float
    degrees: bool


def read_asf(path: str | os.PathLike[str]) -> AcclaimSkeleton:
    """Read a skeleton.

    Root offsets other than 0, and bones that a motion may move or stretch, occur in no file of the
    CMU database and are read differently by different programs, so they are refused.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not of this form; the message names file and line.
    """
    sections = _sections(path)
    for needed in ("units", "root", "bonedata", "hierarchy"):
        if needed not in sections:
            raise ValueError(f"{path} is no Acclaim skeleton: it has no section :{needed}.")
    unit, degrees = _units(path, sections["units"])
    root_order = _root(path, sections["root"])
    found: dict[str, tuple[Array, Array, tuple[str, ...]]] = {}
    for number, block in _blocks(path, sections["bonedata"]):
        name, offset, axes, freedoms = _bone(path, number, block, degrees)
        if name in found or name == "root":
            fail(path, number, f"there are two bones called {name!r}")
        found[name] = offset, axes, freedoms
    bones = {
        name: Bone(name, parent, *found[name])
        for name, parent in _tree(path, sections["hierarchy"], set(found)).items()
    }
    return AcclaimSkeleton(str(path), bones, root_order, unit, degrees)


def numbered_lines(path: str | os.PathLike[str]) -> list[Line]:
    """Number and words of every line that has any; a word that begins with ``#``, a comment.

    Raises:
        FileNotFoundError: there is no such file.
    """
    try:
        # Every byte is a letter in latin-1: what is no text fails as a word, with its line.
        text = Path(path).read_text(encoding="latin-1")
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(f"{path}: there is no such file.") from None
    # Inside a word it is none: -1.#IND is how Windows writes NaN.
    lines = (
        (n, list(takewhile(lambda word: not word.startswith("#"), line.split())))
        for n, line in enumerate(text.splitlines(), 1)
    )
    return [(number, words) for number, words in lines if words]


def fail(path: str | os.PathLike[str], number: int, what: str) -> NoReturn:
    """Raise a ValueError that names the file and the line."""
    raise ValueError(f"{path}, line {number}: {what}.")


def compose(order: Sequence[str], angles: Array) -> Array:
    """Rotations (T, 3, 3) about the fixed axes named by ``order`` (such as ``rx``), one after the
    other, by angles (T, len(order)) in degrees.
    """
    total = np.broadcast_to(np.eye(3), (len(angles), 3, 3))
    for column, name in enumerate(order):
        total = rotation("xyz".index(name[-1]), angles[:, column]) @ total
    return total


def _sections(path: str | os.PathLike[str]) -> dict[str, list[Line]]:
    """The lines of each section, its own line first where it has words beside the keyword."""
    sections: dict[str, list[Line]] = {}
    current: list[Line] = []
    for number, words in numbered_lines(path):
        if words[0].startswith(":"):
            keyword = words[0][1:].lower()
            if keyword in sections:
                fail(path, number, f"there are two sections :{keyword}")
            current = sections[keyword] = []
            words = words[1:]
        # Commas and parentheses (around limits) count as blanks.
        words = " ".join(words).translate(_BLANKS).split()
        if words:
            current.append((number, words))
    return sections


_BLANKS = str.maketrans(",()", "   ")


def _units(path: str | os.PathLike[str], lines: list[Line]) -> tuple[float, bool]:
    values = {words[0].lower(): (number, words) for number, words in lines}
    if "length" not in values or "angle" not in values:
        raise ValueError(f"{path}: the section :units must say length and angle.")
    number, words = values["length"]
    (length,) = _numbers(path, number, words, 1)
    if not length > 0:
        fail(path, number, f"length must be positive, got {words[1]}")
    number, words = values["angle"]
    if len(words) != 2 or words[1].lower() not in ("deg", "rad"):
        fail(path, number, f"angle must be deg or rad, got {' '.join(words[1:]) or 'nothing'}")
    return _MM_PER_INCH / length, words[1].lower() == "deg"


def _root(path: str | os.PathLike[str], lines: list[Line]) -> tuple[str, ...]:
    order: tuple[str, ...] = ()
    for number, words in lines:
        key = words[0].lower()
        if key == "order":
            order = tuple(word.lower() for word in words[1:])
            if len(order) != 6 or set(order) != _ROOT_ORDER:
                fail(path, number, "the root's order must name TX TY TZ RX RY RZ, each once")
        elif key in ("position", "orientation") and _numbers(path, number, words, 3).any():
            fail(path, number, f"the root's {key} is not 0, which programs read differently")
    if not order:
        raise ValueError(f"{path}: the section :root has no order.")
    return order


def _blocks(path: str | os.PathLike[str], lines: list[Line]) -> list[tuple[int, list[Line]]]:
    """The number of the ``begin`` line, and the lines up to its ``end``."""
    blocks: list[tuple[int, list[Line]]] = []
    is_open = False
    for number, words in lines:
        word = words[0].lower()
        if word in ("begin", "end"):
            if is_open is (word == "begin"):
                fail(path, number, f"'{word}' without the other before it")
            is_open = not is_open
            if is_open:
                blocks.append((number, []))
        elif not is_open:
            fail(path, number, f"expected 'begin', got {words[0]!r:.40}")
        else:
            blocks[-1][1].append((number, words))
    if is_open:
        fail(path, blocks[-1][0], "'begin' has no 'end'")
    return blocks


def _bone(
    path: str | os.PathLike[str], begin: int, lines: list[Line], degrees: bool
) -> tuple[str, Array, Array, tuple[str, ...]]:
    """Name, offset, axes and freedoms. Limits, masses and ids are not needed to move a skeleton."""
    values = {words[0].lower(): (number, words) for number, words in lines}
    for needed in ("name", "direction", "length", "axis"):
        if needed not in values:
            fail(path, begin, f"the bone that begins here has no {needed}")
    number, words = values["name"]
    name = " ".join(words[1:]) or fail(path, number, "a bone needs a name")
    direction = _numbers(path, *values["direction"], 3)
    norm = float(np.linalg.norm(direction))
    if not 0.99 < norm < 1.01:
        fail(
            path, values["direction"][0], f"the direction of {name!r} has length {norm:.3g}, not 1"
        )
    (length,) = _numbers(path, *values["length"], 1)
    number, words = values["axis"]
    order = words[4].lower() if len(words) == 5 else ""
    if sorted(order) != ["x", "y", "z"]:
        fail(path, number, f"the axis of {name!r} must be three angles and an order such as XYZ")
    angles = _numbers(path, number, words[:4], 3)
    if not degrees:
        angles = np.degrees(angles)
    axes = compose(order, angles[None, ["xyz".index(letter) for letter in order]])[0]
    number, words = values.get("dof", (begin, ["dof"]))
    freedoms = tuple(word.lower() for word in words[1:])
    for freedom in freedoms:
        if freedom not in _ROTATIONS or freedoms.count(freedom) > 1:
            fail(
                path,
                number,
                f"a bone's dof may be rx, ry and rz, each once; {name!r} has {freedom}",
            )
    if [name[-1] for name in freedoms] != [each for each in order if f"r{each}" in freedoms]:
        fail(
            path, number, f"the dof of {name!r} are in another order than its axis, {order.upper()}"
        )
    return name, direction * (length / norm), axes, freedoms


def _tree(path: str | os.PathLike[str], lines: list[Line], bones: set[str]) -> dict[str, str]:
    """The parent of every bone, parents before their children."""
    children: dict[str, list[str]] = {}
    parents: dict[str, str] = {}
    blocks = _blocks(path, lines)
    for number, words in (line for _, block in blocks for line in block):
        for name in words:
            if name not in bones and name != "root":
                fail(path, number, f"the hierarchy names {name!r}, which is no bone of the file")
        for child in words[1:]:
            if child in parents or child == "root":
                fail(path, number, f"{child!r} has two parents in the hierarchy")
            parents[child] = words[0]
            children.setdefault(words[0], []).append(child)
    ordered = ["root"]
    for name in ordered:  # grows while it is walked
        ordered += children.get(name, [])
    lost = sorted(bones - set(ordered))
    if lost:
        raise ValueError(f"{path}: the hierarchy does not lead from the root to {lost[0]!r}.")
    return {name: parents[name] for name in ordered[1:]}


def _numbers(path: str | os.PathLike[str], number: int, words: list[str], count: int) -> Array:
    """The finite numbers after a line's first word."""
    try:
        values = [float(word) for word in words[1:]]
    except ValueError:
        values = []
    if len(values) != count or not all(math.isfinite(value) for value in values):
        what = "a number" if count == 1 else f"{count} numbers"
        fail(path, number, f"{words[0]} must be {what}, got {' '.join(words[1:])!r:.60}")
    return np.array(values)
