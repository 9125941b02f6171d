"""What the procedural actions are made of: a person's style, joint angles over time, and curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from erd_cuda.data.kinematics import LIMITS, SIDES, Array

TURN = 2.0 * np.pi


@dataclass(frozen=True)
class Style:
    """How one person moves, factors around 1 unless noted."""

    tempo: float
    stride: float
    arm_swing: float
    energy: float
    elbow: float  # degrees of elbow bend at ease
    stance: float  # degrees by which each leg stands outward
    stoop: float  # degrees of forward bend at ease


def random_style(rng: np.random.Generator) -> Style:
    """A person's habits."""
    tempo, stride, arm_swing, energy = rng.uniform([0.85, 0.85, 0.5, 0.8], [1.15, 1.15, 1.4, 1.2])
    elbow, stance, stoop = rng.uniform([12.0, 0.0, -1.0], [32.0, 5.0, 9.0])
    return Style(tempo, stride, arm_swing, energy, elbow, stance, stoop)


@dataclass(eq=False)
class Motion:
    """Angles and whole-body motion over T frames.

    Attributes:
        angles: (T,) degrees by name, before limits are applied.
        heading: (T,) degrees to the left in which the pelvis faces.
        lean: (T,) degrees by which the pelvis tips forward.
        roll: (T,) degrees by which it tips to the right.
        lift: (T,) metres by which the lower foot is off the ground.
        treadmill: keep the body in place, the ground moving under it.
    """

    angles: dict[str, Array]
    heading: Array
    lean: Array
    roll: Array
    lift: Array
    treadmill: bool = False

    def add(self, side: str, name: str, values: Array | float) -> None:
        """Add to an angle of one side."""
        self.angles[f"{side}_{name}"] += values

    def both(self, name: str, values: Array | float) -> None:
        """Add to an angle on both sides."""
        for side in SIDES:
            self.add(side, name, values)

    def crouch(self, depth: Array, lean: float) -> None:
        """Bend the legs by a depth of 0 to 1, which is thighs level.

        The shanks tip forward, so that the body stays over the feet.
        """
        self.lean += lean * depth
        self.both("hip_bend", (86.0 + lean) * depth)
        self.both("knee_bend", 108.0 * depth)


def ease(u: Array) -> Array:
    """Minimum-jerk step from 0 at u <= 0 to 1 at u >= 1."""
    u = np.clip(u, 0.0, 1.0)
    return np.asarray(u**3 * (10.0 - 15.0 * u + 6.0 * u**2))


def track(t: Array, times: Sequence[float] | Array, values: Sequence[float]) -> Array:
    """Values at key times, joined by minimum-jerk steps."""
    result = np.full_like(t, values[0])
    for begin, end, old, new in zip(times[:-1], times[1:], values[:-1], values[1:], strict=True):
        result += (new - old) * ease((t - begin) / (end - begin))
    return result


def hump(phase: Array, centre: float, width: float) -> Array:
    """Smooth bump of height 1 and standard deviation ``width`` at phase = centre, of period 1."""
    return np.asarray(np.exp((np.cos(TURN * (phase - centre)) - 1.0) / (TURN * width) ** 2))


def wander(rng: np.random.Generator, t: Array, size: float, fastest: float = 0.5) -> Array:
    """Slow irregular sway of standard deviation ``size``, with frequencies up to ``fastest`` Hz."""
    frequency = rng.uniform(0.2, 1.0, 4)[:, None] * fastest
    start = rng.uniform(0.0, 1.0, 4)[:, None]
    return np.asarray(size * np.sqrt(0.5) * np.sin(TURN * (frequency * t + start)).sum(axis=0))


def standing(rng: np.random.Generator, style: Style, t: Array) -> Motion:
    """A person at ease, swaying a little: what every action starts from."""
    zero = np.zeros_like(t)
    motion = Motion(
        angles={name: wander(rng, t, 1.2) for name in LIMITS},
        heading=rng.uniform(0.0, 360.0) + wander(rng, t, 1.5),
        lean=wander(rng, t, 0.6),
        roll=wander(rng, t, 0.4),
        lift=zero,
    )
    motion.angles["spine_bend"] += style.stoop
    motion.angles["neck_bend"] += 6.0 + wander(rng, t, 4.0)
    motion.angles["neck_twist"] += wander(rng, t, 10.0)
    # The two feet stay side by side only if the legs do not sway apart.
    for name in ("hip_bend", "hip_out", "knee_bend"):
        motion.angles[f"right_{name}"] = motion.angles[f"left_{name}"].copy()
    motion.both("hip_bend", 4.0)
    motion.both("hip_out", style.stance)
    motion.both("knee_bend", 7.0)
    motion.both("shoulder_out", 9.0)
    motion.both("shoulder_turn", -15.0)
    motion.both("elbow_bend", style.elbow)
    return motion
