"""Skeletons: which joint of a pose is which, and what is its parent and its mirror image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Skeleton:
    """Names and topology of the joints of a pose (..., J, 2) or (..., J, 3).

    Attributes:
        name: short name of the layout, such as ``"h36m17"``.
        joints: the J joint names, in the order of the pose's joint axis.
        parents: index of each joint's parent; -1 for the one root joint.
        left: indices of the joints on the body's left side.
        right: indices of the joints on the right side, ``right[i]`` being the mirror image of
            ``left[i]``.
        origin: name of the body's point that poses are relative to where it is none of the joints
            (``"Hip"`` for h36m14); None where the tree's root joint is the origin.

    Raises:
        ValueError: the parents do not form one tree, a name occurs twice, left and right do not
            pair up, or the origin is one of the joints.
    """

    name: str
    joints: tuple[str, ...]
    parents: tuple[int, ...]
    left: tuple[int, ...]
    right: tuple[int, ...]
    origin: str | None = None

    def __post_init__(self) -> None:
        # Lists (from JSON, say) are taken too; tuples keep the object hashable and unchangeable.
        for field in ("joints", "parents", "left", "right"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        count = len(self.joints)
        where = f"Skeleton {self.name!r}"
        if count == 0:
            raise ValueError(f"{where}: joints is empty; a skeleton needs at least one joint.")
        if len(set(self.joints)) != count:
            twice = sorted({name for name in self.joints if self.joints.count(name) > 1})
            raise ValueError(
                f"{where}: joint names must be unique, but {', '.join(twice)} occurs more than "
                "once."
            )
        if len(self.parents) != count:
            raise ValueError(
                f"{where}: parents has {len(self.parents)} entries for {count} joints."
            )
        if self.parents.count(-1) != 1:
            raise ValueError(
                f"{where}: exactly one joint must have parent -1, but {self.parents.count(-1)} "
                "have."
            )
        for joint in range(count):
            ancestor, steps = joint, 0
            while ancestor != -1:
                if not 0 <= ancestor < count or steps > count:
                    raise ValueError(
                        f"{where}: following the parents of joint {joint} does not end at the root."
                    )
                ancestor, steps = self.parents[ancestor], steps + 1
        sides = self.left + self.right
        if len(self.left) != len(self.right) or len(set(sides)) != len(sides):
            raise ValueError(
                f"{where}: left and right must list equally many different joints, in mirrored "
                "order."
            )
        if any(not 0 <= joint < count for joint in sides):
            raise ValueError(
                f"{where}: left and right must hold joint indices from 0 to {count - 1}."
            )
        if self.origin in self.joints:
            raise ValueError(
                f"{where}: origin must name a point that is none of the joints, got "
                f"{self.origin!r}."
            )

    @property
    def num_joints(self) -> int:
        """Number of joints J."""
        return len(self.joints)

    @property
    def root(self) -> int:
        """Index of the joint at the top of the tree of bones."""
        return self.parents.index(-1)

    @property
    def root_joint(self) -> int | None:
        """Index of the joint that root-relative poses have at 0; None where `origin` is no joint.

        Such poses need no alignment at a joint before they are compared: both are relative to the
        same point of the body already.
        """
        return self.root if self.origin is None else None

    @property
    def bones(self) -> tuple[tuple[int, int], ...]:
        """The J - 1 (parent, child) index pairs, ordered by child."""
        return tuple((parent, joint) for joint, parent in enumerate(self.parents) if parent != -1)

    def index(self, joint: str) -> int:
        """Index of the joint called ``joint``."""
        try:
            return self.joints.index(joint)
        except ValueError:
            raise ValueError(
                f"joint: skeleton {self.name!r} has no joint {joint!r}; it has "
                f"{', '.join(self.joints)}."
            ) from None

    def without(self, joint: str, name: str) -> Skeleton:
        """The skeleton called ``name`` without one joint, whose children move to its parent."""
        gone = self.index(joint)
        if gone == self.root:
            raise ValueError(
                f"joint: the root {joint!r} of skeleton {self.name!r} cannot be left out."
            )
        if gone in self.left or gone in self.right:
            raise ValueError(
                f"joint: {joint!r} has a mirror image, so it cannot be left out alone."
            )
        kept = [old for old in range(self.num_joints) if old != gone]
        new = {old: position for position, old in enumerate(kept)} | {-1: -1}
        parents = [
            self.parents[gone] if self.parents[old] == gone else self.parents[old] for old in kept
        ]
        return Skeleton(
            name=name,
            joints=tuple(self.joints[old] for old in kept),
            parents=tuple(new[parent] for parent in parents),
            left=tuple(new[old] for old in self.left),
            right=tuple(new[old] for old in self.right),
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description; `from_dict` is the inverse."""
        return {
            "name": self.name,
            "joints": list(self.joints),
            "parents": list(self.parents),
            "left": list(self.left),
            "right": list(self.right),
            # Only where there is one: files and digests of all other skeletons stay what they were.
            **({} if self.origin is None else {"origin": self.origin}),
        }

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> Skeleton:
        """Skeleton from what `to_dict` returned.

        Raises:
            ValueError: an entry is missing or of the wrong kind.
        """
        try:
            return cls(
                name=str(description["name"]),
                joints=tuple(str(joint) for joint in description["joints"]),
                parents=_integers(description["parents"]),
                left=_integers(description["left"]),
                right=_integers(description["right"]),
                origin=None if description.get("origin") is None else str(description["origin"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(
                "description: a skeleton needs name, joints, parents, left and right, and got "
                f"{description!r:.200}."
            ) from error


def _integers(values: Iterable[Any]) -> tuple[int, ...]:
    numbers = tuple(values)
    if any(isinstance(number, bool) or not isinstance(number, int) for number in numbers):
        raise TypeError("joint indices must be integers")
    return numbers


# Human3.6M's 32 joints reduced to the 17 that move, as VideoPose3D and most lifters use them.
h36m17 = Skeleton(
    name="h36m17",
    joints=(
        *(
            "Hip",
            "RHip",
            "RKnee",
            "RFoot",
            "LHip",
            "LKnee",
            "LFoot",
            "Spine",
            "Thorax",
            "Neck/Nose",
            "Head",
        ),
        *("LShoulder", "LElbow", "LWrist", "RShoulder", "RElbow", "RWrist"),
    ),
    parents=(-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15),
    left=(4, 5, 6, 11, 12, 13),
    right=(1, 2, 3, 14, 15, 16),
)

# SemGCN's reduction of the same data: one joint fewer in the head.
h36m16 = h36m17.without("Neck/Nose", name="h36m16")

# The limbs, thorax and head alone. Poses stay relative to the Hip, which is not among the joints;
# without it both legs hang on the thorax.
h36m14 = Skeleton(
    name="h36m14",
    joints=(
        *("RHip", "RKnee", "RFoot", "LHip", "LKnee", "LFoot", "Thorax", "Head"),
        *("LShoulder", "LElbow", "LWrist", "RShoulder", "RElbow", "RWrist"),
    ),
    parents=(6, 0, 1, 6, 3, 4, -1, 6, 6, 8, 9, 6, 11, 12),
    left=(3, 4, 5, 8, 9, 10),
    right=(0, 1, 2, 11, 12, 13),
    origin="Hip",
)

humaneva15 = Skeleton(
    name="humaneva15",
    joints=(
        *("Pelvis", "Thorax", "LShoulder", "LElbow", "LWrist", "RShoulder", "RElbow", "RWrist"),
        *("LHip", "LKnee", "LAnkle", "RHip", "RKnee", "RAnkle", "Head"),
    ),
    parents=(-1, 0, 1, 2, 3, 1, 5, 6, 0, 8, 9, 0, 11, 12, 1),
    left=(2, 3, 4, 8, 9, 10),
    right=(5, 6, 7, 11, 12, 13),
)

# COCO has no pelvis; the nose is the root of the drawing tree.
coco17 = Skeleton(
    name="coco17",
    joints=(
        *(
            "Nose",
            "LEye",
            "REye",
            "LEar",
            "REar",
            "LShoulder",
            "RShoulder",
            "LElbow",
            "RElbow",
            "LWrist",
            "RWrist",
        ),
        *("LHip", "RHip", "LKnee", "RKnee", "LAnkle", "RAnkle"),
    ),
    parents=(-1, 0, 0, 1, 2, 0, 0, 5, 6, 7, 8, 5, 6, 11, 12, 13, 14),
    left=(1, 3, 5, 7, 9, 11, 13, 15),
    right=(2, 4, 6, 8, 10, 12, 14, 16),
)

SKELETONS: dict[str, Skeleton] = {
    each.name: each for each in (h36m17, h36m16, h36m14, humaneva15, coco17)
}

# COCO's layout also has 17 joints; a bare 17 means Human3.6M's, the one that has 3D data.
_BY_COUNT = {17: h36m17, 16: h36m16, 15: humaneva15, 14: h36m14}


def get_skeleton(layout: str | int | Skeleton) -> Skeleton:
    """The built-in skeleton called ``layout``, or the one with ``layout`` joints (17 is h36m17).

    A `Skeleton` is returned as it is, so that callers can take either.

    Raises:
        ValueError: there is no such skeleton.
        TypeError: ``layout`` is neither a name, a number of joints nor a skeleton.
    """
    if isinstance(layout, Skeleton):
        return layout
    if isinstance(layout, str):
        if layout in SKELETONS:
            return SKELETONS[layout]
        raise ValueError(
            f"layout: no skeleton is called {layout!r}; known are {', '.join(SKELETONS)}."
        )
    if isinstance(layout, int) and not isinstance(layout, bool):
        if layout in _BY_COUNT:
            return _BY_COUNT[layout]
        counts = ", ".join(f"{count} ({each.name})" for count, each in _BY_COUNT.items())
        raise ValueError(f"layout: no skeleton has {layout} joints; known are {counts}.")
    raise TypeError(
        f"layout: expected a skeleton's name or number of joints, got {type(layout).__name__}."
    )
