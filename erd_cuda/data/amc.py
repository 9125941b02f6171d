"""Acclaim motion files (.amc), and where the bones of a skeleton end in every frame of one.

A motion file lists, frame by frame, the root's place and turn and each bone's rotations about its
own axes. With C from a bone's own axes to the world in the base pose and R its rotation in a frame,
the bone and all that hangs on it turn by C R C^-1 (after what their ancestors do).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from erd_cuda.data.asf import AcclaimSkeleton, Line, compose, fail, numbered_lines
from erd_cuda.data.kinematics import Array


@dataclass(frozen=True, eq=False)
class AcclaimMotion:
    """One recorded motion of F frames.

    Attributes:
        source: the file's path, for messages.
        channels: by bone (and ``"root"``), (F, number of channels): the root's in the skeleton's
            ``root_order``, a bone's in the order of its freedoms. Angles in degrees, lengths in
            the skeleton's unit. What was not finite in the file is NaN.
    """

    source: str
    channels: dict[str, Array]

    @property
    def frames(self) -> int:
        """Number of frames F."""
        return len(self.channels["root"])


def read_amc(path: str | os.PathLike[str], skeleton: AcclaimSkeleton) -> AcclaimMotion:
    """Read a motion of the given skeleton.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not of this form, or of another skeleton; the message names file and line.
    """
    lines = numbered_lines(path)
    body = [line for line in lines if not line[1][0].startswith(":")]
    header = {words[0].upper() for _, words in lines if words[0].startswith(":")}
    if not body:
        raise ValueError(f"{path} is no Acclaim motion: it has no frames.")
    layout = _layout(path, body, skeleton)
    size = len(layout)
    values: dict[str, Array] = {}
    bad: list[tuple[int, str]] = []
    for position, (name, count) in enumerate(layout):
        column = _column(body[position::size], name, count)
        if isinstance(column, tuple):
            bad.append(column)
        else:
            values[name] = column
    if bad:
        # One line too few puts all later ones out of place: the first of them is where it is.
        fail(path, *min(bad))
    if len(body) % size:
        fail(path, body[-1][0], f"the file ends within frame {len(values[''])}")
    counter = values.pop("")[:, 0]
    wrong = np.flatnonzero(np.diff(counter) != 1)
    if len(wrong):
        number = body[(int(wrong[0]) + 1) * size][0]
        fail(
            path,
            number,
            f"frame {counter[wrong[0]]:.0f} is followed by {counter[wrong[0] + 1]:.0f}",
        )
    if ":RADIANS" in header or (":DEGREES" not in header and not skeleton.degrees):
        _to_degrees(values, skeleton)
    return AcclaimMotion(str(path), values)


def bone_ends(skeleton: AcclaimSkeleton, motion: AcclaimMotion) -> dict[str, Array]:
    """Where every bone ends in every frame, by forward kinematics.

    Returns:
        By bone, (F, 3) in millimetres in the file's axes (y up in the CMU database); ``"root"`` is
        where the root is. NaN where the motion is.
    """
    order, channels = skeleton.root_order, motion.channels["root"]
    turns = [column for column, name in enumerate(order) if name.startswith("r")]
    ends = {"root": channels[:, [order.index(name) for name in ("tx", "ty", "tz")]]}
    turned = {"root": compose([order[column] for column in turns], channels[:, turns])}
    for bone in skeleton.bones.values():
        own = turned[bone.parent]
        if bone.freedoms:
            local = compose(bone.freedoms, motion.channels[bone.name])
            own = own @ (bone.axes @ local @ bone.axes.T)
        turned[bone.name] = own
        ends[bone.name] = ends[bone.parent] + own @ bone.offset
    return {name: end * skeleton.unit for name, end in ends.items()}


def _layout(
    path: str | os.PathLike[str], body: Sequence[Line], skeleton: AcclaimSkeleton
) -> list[tuple[str, int]]:
    """Name and number of channels of each line of a frame, from the first frame; the frame's own
    number is called "".
    """
    expected = {bone.name: len(bone.freedoms) for bone in skeleton.bones.values() if bone.freedoms}
    expected["root"] = 6
    layout = [("", 1)]
    if not _is_counter(body[0][1]):
        fail(path, body[0][0], f"expected the number of the first frame, got {body[0][1][0]!r:.40}")
    for number, words in body[1:]:
        if _is_counter(words):
            break
        name, count = words[0], len(words) - 1
        if name not in expected:
            fail(path, number, f"{name!r:.40} is no bone that {skeleton.source} lets move")
        if any(name == other for other, _ in layout):
            fail(path, number, f"the first frame has a second line for {name!r}")
        if count != expected[name]:
            fail(
                path, number, f"{name!r} has {count} numbers, but {expected[name]} in the skeleton"
            )
        layout.append((name, count))
    missing = sorted(set(expected) - {name for name, _ in layout})
    if missing:
        fail(path, body[0][0], f"the first frame has no line for {missing[0]!r}")
    return layout


def _is_counter(words: list[str]) -> bool:
    return len(words) == 1 and words[0].isdecimal()


def _column(lines: Sequence[Line], name: str, count: int) -> Array | tuple[int, str]:
    """One line of every frame as numbers (F, count), what is not finite as NaN; or, where a line is
    another, the first of those and what is wrong with it.
    """
    for number, words in lines:
        if name and (words[0] != name or len(words) != count + 1):
            got = " ".join(words)
            return number, f"expected {name!r} and as many numbers as before, got {got!r:.60}"
        if not name and not _is_counter(words):
            return number, f"expected the number of a frame, got {' '.join(words)!r:.60}"
    first = 1 if name else 0
    try:
        values = np.array([words[first:] for _, words in lines], dtype=np.float64)
    except ValueError:
        number, word = next(
            (number, word)
            for number, words in lines
            for word in words[first:]
            if not _is_number(word)
        )
        return number, f"{word!r:.40} is no number"
    return np.where(np.isfinite(values), values, np.nan)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _to_degrees(values: dict[str, Array], skeleton: AcclaimSkeleton) -> None:
    """Turn the angles, which are radians, into degrees in place."""
    for name, numbers in values.items():
        if name == "root":
            turns = [column for column, each in enumerate(skeleton.root_order) if each[0] == "r"]
            numbers[:, turns] = np.degrees(numbers[:, turns])
        else:
            numbers[:] = np.degrees(numbers)
