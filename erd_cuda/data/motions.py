"""What procedural people do: a dozen actions as joint angles over time.

Each action is a function (rng, style, t) -> Motion. Angles are degrees, named as in
`kinematics.LIMITS`; the ground contact, which also moves the body forward, is worked out afterwards
from where the feet are.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from erd_cuda.data.kinematics import SIDES, Array
from erd_cuda.data.motion import TURN, Motion, Style, ease, hump, standing, track, wander


def walking(rng: np.random.Generator, style: Style, t: Array) -> Motion:
    """Walking along a circle or a figure of eight."""
    motion = standing(rng, style, t)
    phase = rng.uniform() + 0.95 * style.tempo * t
    for offset, side in zip((0.0, 0.5), SIDES, strict=True):
        step = phase + offset  # 0 at heel strike
        motion.add(side, "hip_bend", style.stride * (6.0 + 22.0 * np.cos(TURN * step)))
        motion.add(side, "hip_out", -4.0)
        motion.add(side, "knee_bend", 12.0 * hump(step, 0.14, 0.06) + 54.0 * hump(step, 0.72, 0.09))
        motion.add(side, "shoulder_bend", -style.arm_swing * 20.0 * np.cos(TURN * (step - 0.03)))
        motion.add(side, "elbow_bend", style.arm_swing * 8.0 * (1.0 - np.cos(TURN * step)))
    _sway(motion, phase, pelvis=5.0 * style.stride, thorax=11.0)
    # Hip excursion and cadence give the speed, speed and radius the rate of turning.
    speed = 4.0 * 0.85 * np.sin(np.radians(22.0 * style.stride)) * 0.95 * style.tempo
    circle = rng.uniform() < 0.5
    radius = rng.uniform(0.9, 1.3) if circle else rng.uniform(0.6, 0.8)
    rate = np.degrees(speed / radius) * rng.choice([-1.0, 1.0])
    if circle:
        motion.heading += rate * t
    else:
        # The mean of cos(wide * sin) over a period is the Bessel function J0(wide), 0 at 2.405 rad:
        # with this swing of the heading the path closes to an eight.
        wide = np.degrees(2.405)
        motion.heading += wide * np.sin(rate / wide * t + rng.uniform(0.0, TURN))
    motion.roll -= 2.5 * np.tanh(np.gradient(motion.heading, t) / 60.0)
    return motion


def running(rng: np.random.Generator, style: Style, t: Array) -> Motion:
    """Running on the spot of a treadmill, with a flight phase in each step."""
    motion = standing(rng, style, t)
    phase = rng.uniform() + 1.38 * style.tempo**0.5 * t
    for offset, side in zip((0.0, 0.5), SIDES, strict=True):
        step = phase + offset
        motion.add(side, "hip_bend", style.stride * (16.0 + 34.0 * np.cos(TURN * step)))
        motion.add(side, "hip_out", -4.0)
        motion.add(
            side,
            "knee_bend",
            12.0 + 20.0 * hump(step, 0.13, 0.07) + 78.0 * hump(step, 0.68, 0.11),
        )
        motion.add(
            side,
            "shoulder_bend",
            -10.0 - style.arm_swing * 30.0 * np.cos(TURN * (step - 0.03)),
        )
        motion.add(side, "elbow_bend", 70.0 - style.arm_swing * 10.0 * np.cos(TURN * step))
        motion.add(side, "shoulder_out", 4.0)
    _sway(motion, phase, pelvis=7.0, thorax=20.0)
    motion.lean += 6.0
    motion.angles["neck_bend"] -= 8.0
    motion.lift += 0.05 * style.energy * hump(2.0 * phase, 0.86, 0.14)
    motion.treadmill = True
    return motion


def turning(rng: np.random.Generator, style: Style, t: Array) -> Motion:
    """Turning around on the spot with small steps."""
    motion = standing(rng, style, t)
    now = rng.uniform(0.1, 0.6)
    while now < t[-1]:
        angle = rng.uniform(70.0, 190.0) * rng.choice([-1.0, 1.0])
        lasting = abs(angle) / (95.0 * style.tempo)
        turn = ease((t - now) / lasting)
        busy = np.clip(
            16.0 * turn * (1.0 - turn), 0.0, 1.0
        )  # 1 in the middle of the turn, 0 before and after
        motion.heading += angle * turn
        motion.angles["neck_twist"] += 0.2 * angle * busy
        motion.angles["spine_twist"] += 0.08 * angle * busy
        for offset, side in zip((0.0, 0.5), SIDES, strict=True):
            step = hump(1.5 * style.tempo * (t - now) + offset, 0.3, 0.11) * busy
            motion.add(side, "hip_bend", 24.0 * step)
            motion.add(side, "knee_bend", 44.0 * step)
        now += lasting + rng.uniform(0.3, 1.0)
    return motion


def reaching(rng: np.random.Generator, style: Style, t: Array) -> Motion:
    """Reaching for things at all heights, now with one arm, now with the other."""
    motion = standing(rng, style, t)
    now = rng.uniform(0.0, 0.3)
    while now < t[-1]:
        side, toward = ("left", 1.0) if rng.uniform() < 0.5 else ("right", -1.0)
        go, stay = rng.uniform(0.5, 0.9) / style.tempo, rng.uniform(0.1, 0.5)
        out = track(t, [now, now + go, now + go + stay, now + 2 * go + stay], [0.0, 1.0, 1.0, 0.0])
        height = rng.uniform(25.0, 150.0)
        motion.add(side, "shoulder_bend", height * out)
        motion.add(side, "shoulder_out", rng.uniform(-15.0, 55.0) * out)
        # The elbow folds on the way and opens at the end.
        motion.add(side, "elbow_bend", 50.0 * 4.0 * out * (1.0 - out) - 15.0 * out)
        motion.angles["spine_twist"] -= toward * rng.uniform(5.0, 25.0) * out
        motion.angles["spine_side"] -= toward * rng.uniform(-12.0, 8.0) * out
        motion.angles["neck_twist"] += toward * rng.uniform(0.0, 25.0) * out
        motion.angles["neck_bend"] += (80.0 - height) * 0.3 * out
        if height < 70.0:
            motion.crouch(rng.uniform(0.1, 0.45) * out, lean=40.0)
        now += 2 * go + stay + rng.uniform(0.0, 0.5)
    return motion


def squatting(rng: np.random.Generator, style: Style, t: Array) -> Motion:
    """Knee bends, arms forward for balance."""
    motion = standing(rng, style, t)
    cycle = rng.uniform() + t * 0.38 * style.tempo
    depth = rng.uniform(0.7, 1.0) * (0.5 - 0.5 * np.cos(TURN * cycle)) ** 1.5
    motion.crouch(depth, lean=30.0)
    motion.both("hip_out", 12.0 * depth)
    motion.both("hip_turn", 10.0 * depth)
    motion.both("shoulder_bend", rng.uniform(50.0, 95.0) * depth)
    motion.angles["neck_bend"] -= 22.0 * depth
    return motion


def sitting(rng: np.random.Generator, style: Style, t: Array) -> Motion:
    """Sitting down on a chair that is not there, talking with the hands, getting up."""
    motion = standing(rng, style, t)
    down = rng.uniform(0.1, 0.2) * t[-1]
    up = t[-1] * rng.uniform(0.8, 0.95)
    going = min(1.3 / style.tempo, 0.3 * t[-1])
    keys = [down, down + going, up, up + going]
    seated = track(t, keys, [0.0, 1.0, 1.0, 0.0])
    moving = 4.0 * seated * (1.0 - seated)  # leaning forward is what keeps the balance on the way
    motion.lean += 32.0 * moving - 6.0 * seated
    motion.both("hip_bend", 80.0 * seated + 32.0 * moving)
    motion.both("knee_bend", 82.0 * seated + 6.0 * moving)
    motion.both("hip_out", rng.uniform(2.0, 14.0) * seated)
    for side in SIDES:
        talk = wander(rng, t, 1.0, fastest=1.4 * style.energy)
        motion.add(side, "shoulder_bend", seated * (28.0 + 9.0 * talk))
        motion.add(side, "elbow_bend", seated * (42.0 + 16.0 * wander(rng, t, 1.0, fastest=1.4)))
        motion.add(side, "shoulder_turn", seated * 8.0 * talk)
    motion.angles["spine_bend"] += seated * (8.0 + wander(rng, t, 4.0))
    return motion


def waving(rng: np.random.Generator, style: Style, t: Array) -> Motion:
    """Waving to somebody."""
    motion = standing(rng, style, t)
    side, toward = ("left", 1.0) if rng.uniform() < 0.5 else ("right", -1.0)
    begin, end, moving = rng.uniform(0.05, 0.15) * t[-1], 0.85 * t[-1], min(0.8, 0.5 * t[-1])
    raised = track(t, [begin, begin + moving, end, end + moving], [0.0, 1.0, 1.0, 0.0])
    beat = np.sin(TURN * (rng.uniform() + 1.5 * style.tempo * t))
    motion.add(side, "shoulder_out", raised * rng.uniform(55.0, 105.0))
    motion.add(side, "shoulder_bend", raised * rng.uniform(0.0, 25.0))
    motion.add(side, "shoulder_turn", raised * (90.0 + 12.0 * beat))
    motion.add(side, "elbow_bend", raised * (55.0 + 26.0 * style.energy * beat))
    motion.angles["spine_side"] -= toward * 5.0 * raised
    motion.roll -= toward * 1.5 * raised * beat
    return motion


def kicking(rng: np.random.Generator, style: Style, t: Array) -> Motion:
    """Kicks with either leg: back swing, kick, return."""
    motion = standing(rng, style, t)
    now = rng.uniform(0.1, 0.4)
    while now < t[-1]:
        side, toward = ("left", 1.0) if rng.uniform() < 0.5 else ("right", -1.0)
        other = SIDES[1 - SIDES.index(side)]
        high = rng.uniform(45.0, 85.0)
        keys = now + np.array([0.0, 0.5, 0.98, 1.7]) / style.tempo
        motion.add(side, "hip_bend", track(t, keys, [0.0, -22.0, high, 0.0]))
        motion.add(side, "knee_bend", track(t, keys, [0.0, 85.0, 5.0, 0.0]))
        busy = track(t, keys, [0.0, 1.0, 1.0, 0.0])
        # The standing leg comes under the body; the opposite arm swings along.
        motion.add(other, "hip_out", -7.0 * busy)
        motion.add(other, "knee_bend", 8.0 * busy)
        motion.lean += track(t, keys, [0.0, 8.0, -12.0, 0.0])
        motion.add(other, "hip_bend", track(t, keys, [0.0, 8.0, -10.0, 0.0]))
        motion.angles["spine_twist"] += toward * track(t, keys, [0.0, -14.0, 18.0, 0.0])
        motion.add(other, "shoulder_bend", track(t, keys, [0.0, -15.0, 55.0, 0.0]))
        motion.add(side, "shoulder_bend", track(t, keys, [0.0, 30.0, -25.0, 0.0]))
        motion.both("shoulder_out", 25.0 * busy)
        now = float(keys[-1]) + rng.uniform(0.1, 0.6)
    return motion


def jumping(rng: np.random.Generator, style: Style, t: Array) -> Motion:
    """Jumps on the spot: crouch, flight, landing."""
    motion = standing(rng, style, t)
    now = rng.uniform(0.0, 0.3)
    while now < t[-1]:
        height = rng.uniform(0.12, 0.30) * style.energy
        flight = float(np.sqrt(8.0 * height / 9.81))
        off, land = now + 0.75, now + 0.75 + flight
        keys = [now, now + 0.45, off, land - 0.02, land + 0.2, land + 0.75]
        motion.crouch(track(t, keys, [0.0, 0.55, 0.0, 0.04, 0.42, 0.0]), lean=34.0)
        motion.both("shoulder_bend", track(t, keys, [0.0, -38.0, 85.0, 45.0, 10.0, 0.0]))
        motion.angles["neck_bend"] -= track(t, keys, [0.0, 15.0, 0.0, 0.0, 12.0, 0.0])
        air = np.clip((t - off) / flight, 0.0, 1.0)
        motion.lift += 4.0 * height * air * (1.0 - air)
        now = land + 0.75 + rng.uniform(0.0, 0.4)
    return motion


def boxing(rng: np.random.Generator, style: Style, t: Array) -> Motion:
    """Guard up, punches from either arm."""
    motion = standing(rng, style, t)
    motion.crouch(0.12 + wander(rng, t, 0.02, fastest=1.5), lean=20.0)
    motion.both("shoulder_bend", 35.0)
    motion.both("shoulder_out", 8.0)
    motion.both("elbow_bend", 95.0)
    now = rng.uniform(0.0, 0.3)
    while now < t[-1]:
        side, toward = ("left", 1.0) if rng.uniform() < 0.5 else ("right", -1.0)
        lasting = rng.uniform(0.24, 0.34) / style.tempo
        punch = track(t, [now, now + lasting, now + 2.2 * lasting], [0.0, 1.0, 0.0])
        motion.add(side, "shoulder_bend", rng.uniform(35.0, 60.0) * punch)
        motion.add(side, "shoulder_out", -12.0 * punch)
        motion.add(side, "elbow_bend", -100.0 * punch)
        motion.angles["spine_twist"] -= toward * 26.0 * punch
        motion.heading -= toward * 12.0 * punch
        now += 2.2 * lasting + rng.uniform(0.0, 0.5)
    return motion


def picking_up(rng: np.random.Generator, style: Style, t: Array) -> Motion:
    """Bending down for something on the floor, lifting it, putting it back."""
    motion = standing(rng, style, t)
    now, crouching = rng.uniform(0.0, 0.4), rng.uniform(0.25, 0.9)
    while now < t[-1]:
        keys = now + np.array([0.0, 1.0, 1.3, 2.3]) / style.tempo
        down = track(t, keys, [0.0, 1.0, 1.0, 0.0])
        motion.crouch(crouching * down, lean=38.0)
        motion.lean += 30.0 * (1.0 - crouching) * down
        motion.both("hip_bend", 42.0 * (1.0 - crouching) * down)
        motion.angles["spine_bend"] += 38.0 * down
        motion.both("shoulder_bend", 62.0 * down)
        motion.both("shoulder_out", -8.0 * down)
        lifted = ease((t - keys[2]) / 0.9) - ease((t - keys[3]) / 0.8)
        motion.both("elbow_bend", rng.uniform(30.0, 85.0) * lifted)
        now = float(keys[3]) + rng.uniform(0.5, 1.2)
    return motion


def dancing(rng: np.random.Generator, style: Style, t: Array) -> Motion:
    """Steps from foot to foot on a beat, arms and trunk swinging along."""
    motion = standing(rng, style, t)
    beat = rng.uniform() + rng.uniform(0.75, 1.1) * style.tempo * t
    for offset, side in zip((0.0, 0.5), SIDES, strict=True):
        step = hump(beat + offset, 0.25, 0.12)
        motion.add(side, "hip_bend", style.energy * 34.0 * step)
        motion.add(side, "hip_out", 8.0 * step)
        motion.add(side, "knee_bend", 8.0 + style.energy * 58.0 * step)
        for name, middle, swing in (
            ("shoulder_bend", 45.0, 45.0),
            ("shoulder_out", 40.0, 30.0),
            ("shoulder_turn", 30.0, 30.0),
            ("elbow_bend", 50.0, 35.0),
        ):
            slow = np.sin(TURN * (0.5 * beat + rng.uniform()))
            quick = np.sin(TURN * (beat + rng.uniform()))
            motion.add(
                side,
                name,
                rng.uniform(0.6, 1.2) * (middle + swing * (0.65 * slow + 0.35 * quick)),
            )
    sway = np.sin(TURN * beat)
    motion.roll += 4.0 * sway
    motion.angles["spine_side"] += 9.0 * sway
    motion.angles["spine_twist"] += 16.0 * np.sin(TURN * (beat + rng.uniform()))
    motion.angles["neck_side"] += 7.0 * np.sin(TURN * (beat + rng.uniform()))
    motion.heading += wander(rng, t, 50.0, fastest=0.3)
    return motion


def _sway(motion: Motion, phase: Array, pelvis: float, thorax: float) -> None:
    """Pelvis and trunk in gait: the pelvis turns with the leg ahead, the shoulders against it."""
    ahead = np.cos(TURN * phase)  # 1 with the left leg in front
    motion.heading -= pelvis * ahead
    motion.angles["spine_twist"] += thorax * ahead
    motion.angles["neck_twist"] -= 0.5 * (thorax - pelvis) * ahead
    motion.roll += 2.5 * np.sin(TURN * phase)
    motion.angles["spine_side"] += 3.5 * np.sin(TURN * phase)


MOTIONS: dict[str, Callable[[np.random.Generator, Style, Array], Motion]] = {
    "Walking": walking,
    "Running": running,
    "Turning": turning,
    "Reaching": reaching,
    "Squatting": squatting,
    "Sitting": sitting,
    "Waving": waving,
    "Kicking": kicking,
    "Jumping": jumping,
    "Boxing": boxing,
    "PickingUp": picking_up,
    "Dancing": dancing,
}
