"""A body that moves: bone lengths of adults, joint angles with limits, forward kinematics over
h36m17.

Body axes at rest: x forward, y to the left, z up. A standing body with all angles at 0 has its arms
hanging and its legs straight. Bones are rigid, so any angles give the body's own bone lengths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from erd_cuda.data.skeleton import h36m17

Array = NDArray[np.float64]

# Range of each angle in degrees, somewhat inside what healthy adults reach actively (textbook
# goniometry values). Positive: bending forward, to the left for the trunk's side bend and twist,
# away from the body, turning outward.
TRUNK_LIMITS = {
    "spine_bend": (-20.0, 65.0),
    "spine_side": (-30.0, 30.0),
    "spine_twist": (-40.0, 40.0),
    "neck_bend": (-40.0, 45.0),
    "neck_side": (-35.0, 35.0),
    "neck_twist": (-65.0, 65.0),
}
LIMB_LIMITS = {
    "hip_bend": (-25.0, 118.0),
    "hip_out": (-20.0, 42.0),
    "hip_turn": (-30.0, 40.0),
    "knee_bend": (0.0, 140.0),
    "shoulder_bend": (-45.0, 165.0),
    "shoulder_out": (-15.0, 140.0),
    "shoulder_turn": (-65.0, 90.0),
    "elbow_bend": (2.0, 142.0),
}
SIDES = ("left", "right")
LIMITS = TRUNK_LIMITS | {
    f"{side}_{name}": limit for side in SIDES for name, limit in LIMB_LIMITS.items()
}

# Segment lengths as fractions of stature. Arms and legs follow the tables of Drillis and Contini in
# common use in biomechanics. The trunk's joints lie where optical motion capture puts them: hip
# joint centres 18 cm apart, shoulder joints 39 cm, Neck/Nose at the base of the skull. Data sets
# differ here (Human3.6M's hips are 26 cm apart), and a network is right only for its own joints.
# Offsets are from the parent joint in body axes at rest; limbs are given for the left side.
_OFFSETS = {
    "Spine": (0.0, 0.0, 0.129),
    "Thorax": (0.0, 0.0, 0.137),
    "Neck/Nose": (0.025, 0.0, 0.108),
    "Head": (0.002, 0.0, 0.058),
    "Hip": (0.0, 0.052, -0.001),
    "Knee": (0.0, 0.0, -0.240),
    "Foot": (0.0, 0.0, -0.257),
    "Shoulder": (0.0, 0.113, -0.006),
    "Elbow": (0.0, 0.0, -0.168),
    "Wrist": (0.0, 0.0, -0.146),
}
_ANKLE_HEIGHT = 0.045  # fraction of stature, ankle joint above the ground


@dataclass(frozen=True, eq=False)
class Body:
    """Rest-pose offsets of one person.

    Attributes:
        offsets: (17, 3) from each joint's parent, metres, body axes.
        ankle_height: height of the ankle above the ground with the foot flat, metres.
    """

    offsets: Array
    ankle_height: float

    @property
    def bone_lengths(self) -> Array:
        """(16,) bone lengths in metres, in the order of the skeleton's bones."""
        return np.asarray(np.linalg.norm(self.offsets[1:], axis=-1))


def random_body(rng: np.random.Generator) -> Body:
    """An adult of 1.50 m to 1.95 m, segments 3 % around the usual proportions, left as right."""
    stature = float(np.clip(rng.normal(1.71, 0.09), 1.50, 1.95))
    scales = {
        name: stature * (1.0 + 0.03 * float(np.clip(rng.normal(), -2.0, 2.0))) for name in _OFFSETS
    }
    offsets = np.zeros((h36m17.num_joints, 3))
    for joint, name in enumerate(h36m17.joints):
        if joint == h36m17.root:
            continue
        segment = name[1:] if joint in h36m17.left + h36m17.right else name
        offsets[joint] = np.asarray(_OFFSETS[segment]) * scales[segment]
        if joint in h36m17.right:
            offsets[joint, 1] *= -1.0
    return Body(offsets, _ANKLE_HEIGHT * stature)


def within_limits(angles: Mapping[str, Array], margin: float = 6.0) -> dict[str, Array]:
    """Angles in degrees eased into `LIMITS`.

    They are unchanged up to ``margin`` from a limit, and beyond approach it smoothly.
    """
    eased = {}
    for name, values in angles.items():
        low, high = LIMITS[name]
        over = np.maximum(values - (high - margin), 0.0)
        under = np.maximum(low + margin - values, 0.0)
        # tanh has slope 1 at 0, so the angle's speed stays continuous.
        beyond = margin * np.tanh(over / margin) - margin * np.tanh(under / margin)
        eased[name] = np.clip(values, low + margin, high - margin) + beyond
    return eased


def rotation(axis: int, degrees: Array) -> Array:
    """Rotation matrices (T, 3, 3) about body axis 0, 1 or 2 by angles (T,)."""
    angle = np.radians(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.zeros((len(angle), 3, 3))
    one, two = (axis + 1) % 3, (axis + 2) % 3
    matrix[:, axis, axis] = 1.0
    matrix[:, one, one] = matrix[:, two, two] = cos
    matrix[:, one, two] = -sin
    matrix[:, two, one] = sin
    return matrix


def forward_kinematics(body: Body, angles: Mapping[str, Array], pelvis: Array) -> Array:
    """Joint positions (T, 17, 3) in metres relative to the hip.

    Args:
        body: whose bones.
        angles: (T,) degrees for every name in `LIMITS`.
        pelvis: (T, 3, 3) rotation from body axes to the world.
    """
    # Half of a trunk angle acts at each of its two joints.
    half = {name: angles[name] / 2.0 for name in TRUNK_LIMITS}
    spine_step = (
        rotation(2, half["spine_twist"])
        @ rotation(0, -half["spine_side"])
        @ rotation(1, half["spine_bend"])
    )
    neck_step = (
        rotation(2, half["neck_twist"])
        @ rotation(0, -half["neck_side"])
        @ rotation(1, half["neck_bend"])
    )
    lower_spine = pelvis @ spine_step
    thorax = lower_spine @ spine_step
    neck = thorax @ neck_step
    # The rotation that carries each joint's offset from its parent.
    carried = {"Spine": lower_spine, "Thorax": thorax, "Neck/Nose": neck, "Head": neck @ neck_step}
    for side, letter in zip(SIDES, "LR", strict=True):
        thigh = pelvis @ _swing(angles, side, "hip")
        upper_arm = thorax @ _swing(angles, side, "shoulder")
        carried |= {
            letter + "Hip": pelvis,
            letter + "Knee": thigh,
            letter + "Foot": thigh @ rotation(1, angles[f"{side}_knee_bend"]),
            letter + "Shoulder": thorax,
            letter + "Elbow": upper_arm,
            letter + "Wrist": upper_arm @ rotation(1, -angles[f"{side}_elbow_bend"]),
        }
    joints = np.zeros((len(pelvis), h36m17.num_joints, 3))
    for parent, joint in h36m17.bones:  # parents come before their children
        joints[:, joint] = joints[:, parent] + carried[h36m17.joints[joint]] @ body.offsets[joint]
    return joints


def _swing(angles: Mapping[str, Array], side: str, joint: str) -> Array:
    """Rotation of a hip or shoulder: turn about the limb's axis, bend forward, lift outward."""
    outward = 1.0 if side == "left" else -1.0
    out = rotation(0, outward * angles[f"{side}_{joint}_out"])
    bend = rotation(1, -angles[f"{side}_{joint}_bend"])
    return out @ bend @ rotation(2, outward * angles[f"{side}_{joint}_turn"])
