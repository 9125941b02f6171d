"""Procedural motion: is it a person? Judged from positions, not from the generator's angles."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from erd_cuda.data import (
    MOTIONS,
    Capture,
    h36m17,
    load_dataset,
    synthetic_capture,
    synthetic_motion,
)
from erd_cuda.data.kinematics import LIMITS, forward_kinematics, random_body, within_limits

FPS = 50.0


@pytest.fixture(scope="module")
def capture() -> Capture:
    return synthetic_capture(train_subjects=5, test_subjects=2, seconds=6.0, fps=FPS, seed=11)


def sequences(capture: Capture) -> list[tuple[str, str, np.ndarray]]:
    return [
        (subject, action.split(" ")[0], positions.astype(np.float64))
        for subject, takes in capture.positions.items()
        for action, positions in takes.items()
    ]


def joint(positions: np.ndarray, name: str) -> np.ndarray:
    return positions[:, h36m17.index(name)]


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def angle(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(np.clip((unit(one) * unit(other)).sum(axis=-1), -1, 1)))


def test_bones_are_rigid_adult_and_symmetric(capture: Capture) -> None:
    by_subject = {}
    for subject, _, x in sequences(capture):
        lengths = np.stack([np.linalg.norm(x[:, j] - x[:, p], axis=-1) for p, j in h36m17.bones], 1)
        by_subject.setdefault(subject, []).append(lengths)
    typical = []
    for lengths in by_subject.values():
        every = np.concatenate(lengths)
        assert np.ptp(every, axis=0).max() < 1e-5  # metres; float32 positions
        mean = dict(zip(h36m17.joints[1:], every.mean(axis=0), strict=True))
        for left, right in zip(h36m17.left, h36m17.right, strict=True):
            assert mean[h36m17.joints[left]] == pytest.approx(mean[h36m17.joints[right]], abs=1e-5)
        assert 0.33 < mean["LKnee"] < 0.53 and 0.33 < mean["LFoot"] < 0.53
        assert 0.22 < mean["LElbow"] < 0.36 and 0.19 < mean["LWrist"] < 0.31
        assert 0.40 < mean["Spine"] + mean["Thorax"] < 0.60
        typical.append(every.mean(axis=0))
    spread = np.std(typical, axis=0) / np.mean(typical, axis=0)
    assert (spread > 0.01).all(), "people should differ"


def test_knees_and_elbows_bend_one_way_within_limits(capture: Capture) -> None:
    deepest = 0.0
    for subject, action, x in sequences(capture):
        across = joint(x, "LHip") - joint(x, "RHip")
        for side in "LR":
            thigh = joint(x, f"{side}Knee") - joint(x, f"{side}Hip")
            shank = joint(x, f"{side}Foot") - joint(x, f"{side}Knee")
            bend = angle(thigh, shank)
            # The knee's axis points to the body's left: the shank turns backward about it.
            backward = (np.cross(thigh, shank) * unit(across)).sum(axis=-1)
            assert (backward[bend > 3.0] > 0).all(), (subject, action)
            assert bend.max() <= 140.0, (subject, action)
            deepest = max(deepest, float(bend.max()))
            upper = joint(x, f"{side}Elbow") - joint(x, f"{side}Shoulder")
            lower = joint(x, f"{side}Wrist") - joint(x, f"{side}Elbow")
            assert angle(upper, lower).max() <= 142.0, (subject, action)
    assert deepest > 90.0, "somebody should squat or kick"


def test_trunk_head_and_shoulders_stay_anatomical(capture: Capture) -> None:
    for subject, action, x in sequences(capture):
        low = joint(x, "Spine") - joint(x, "Hip")
        high = joint(x, "Thorax") - joint(x, "Spine")
        neck = joint(x, "Neck/Nose") - joint(x, "Thorax")
        assert angle(low, high).max() < 50.0, (subject, action)
        assert angle(high, neck).max() < 60.0, (subject, action)
        hips = joint(x, "LHip") - joint(x, "RHip")
        shoulders = joint(x, "LShoulder") - joint(x, "RShoulder")
        assert angle(hips, shoulders).max() < 70.0, (subject, action)
        head = joint(x, "Head")[:, 2]
        assert head.min() > 0.3, (subject, action)


def test_speeds_are_human_and_motion_is_smooth(capture: Capture) -> None:
    fastest = {}
    for _, action, x in sequences(capture):
        speed = np.linalg.norm(np.diff(x, axis=0), axis=-1) * FPS
        fastest[action] = max(fastest.get(action, 0.0), float(speed.max()))
        acceleration = np.linalg.norm(np.diff(x, 2, axis=0), axis=-1) * FPS**2
        assert acceleration.max() < 400.0, action  # a jump of 1 cm in one frame would be 25 more
    assert max(fastest.values()) < 12.0
    assert fastest["Running"] > 4.0 and fastest["Kicking"] > 4.0
    assert min(fastest.values()) > 0.3, "somebody stands still"


def test_feet_are_on_the_ground_and_do_not_slide(capture: Capture) -> None:
    for subject, action, x in sequences(capture):
        assert x[..., 2].min() > 0.03, (subject, action)
        feet = np.stack([joint(x, "LFoot"), joint(x, "RFoot")], axis=1)
        lowest = feet[..., 2].min(axis=1)
        if action not in ("Jumping", "Running"):
            assert lowest.max() < 0.13, (subject, action)
        if action in ("Running", "Walking"):
            continue
        # The foot that carries the weight, away from the hand-over between the feet.
        speed = np.linalg.norm(np.diff(feet[..., :2], axis=0), axis=-1) * FPS
        lower = feet[1:, :, 2].argmin(axis=1)
        clear = np.abs(feet[1:, 0, 2] - feet[1:, 1, 2]) > 0.06
        standing = speed[np.arange(len(speed)), lower][clear]
        if len(standing):
            assert np.median(standing) < 0.35, (subject, action)
    flights = [
        np.stack([joint(x, "LFoot"), joint(x, "RFoot")])[..., 2].min(axis=0)
        for _, action, x in sequences(capture)
        if action == "Jumping"
    ]
    assert min(each.max() for each in flights) > 0.15


def test_walking_moves_forward_with_alternating_legs(capture: Capture) -> None:
    for subject, action, x in sequences(capture):
        if action != "Walking":
            continue
        across = joint(x, "LHip") - joint(x, "RHip")
        forward = unit(np.cross(across, [0.0, 0.0, 1.0]))
        velocity = np.gradient(joint(x, "Hip"), 1 / FPS, axis=0)
        assert 0.5 < (velocity * forward).sum(axis=-1).mean() < 1.9, subject
        legs, arms = (
            ((joint(x, f"L{name}") - joint(x, f"R{name}")) * forward).sum(axis=-1)
            for name in ("Foot", "Wrist")
        )
        assert np.corrcoef(legs, arms)[0, 1] < -0.5, "arms swing against the legs"
        strides = int((np.diff(np.sign(legs)) > 0).sum())
        assert 4 <= strides <= 8, "strides in 6 s"
        assert np.ptp(joint(x, "Hip")[:, :2], axis=0).max() <= 3.2 + 1e-5


def test_cameras_stand_as_in_mocap17(capture: Capture) -> None:
    assert capture.cameras is not None
    for subject, takes in capture.positions.items():
        lenses = set()
        for action, x in takes.items():
            rig = capture.cameras.rig(subject, action)
            lenses.add(rig.intrinsics.tobytes())
            assert ((rig.centre[:, 2] > 1190) & (rig.centre[:, 2] < 1910)).all()
            ground = (x[:, 0] * 1000.0).mean(axis=0)[:2]
            offset = rig.centre[:, :2] - ground
            distance = np.linalg.norm(offset, axis=1)
            assert ((distance > 3990) & (distance < 6010)).all()
            azimuth = np.degrees(np.arctan2(offset[:, 1], offset[:, 0]))
            steps = (np.roll(azimuth, -1) - azimuth) % 360
            assert steps.sum() == pytest.approx(360.0) and (np.abs(steps - 90) <= 40).all()
            identity = rig.rotation @ rig.rotation.transpose(0, 2, 1)
            np.testing.assert_allclose(identity, np.tile(np.eye(3), (4, 1, 1)), atol=1e-12)
            assert np.linalg.det(rig.rotation) == pytest.approx(np.ones(4))
        assert len(lenses) == 1, "the four cameras of a person keep their lenses"


def test_2d_is_in_the_images_and_the_person_upright() -> None:
    data = synthetic_motion(train_subjects=3, test_subjects=1, seconds=4.0, seed=3)
    assert (data.pose[..., 2] + data.root[:, None, 2]).min() > 1500.0
    inside = ((data.keypoints > 0) & (data.keypoints < 1000)).all(dim=-1).float().mean()
    assert inside > 0.99
    feet = data.keypoints[:, [3, 6], 1].amax(dim=1)
    head = data.keypoints[:, 10, 1]
    assert (feet > head).float().mean() > 0.99
    assert (feet - head).median() > 150.0


def test_train_and_test_are_other_people() -> None:
    data = synthetic_motion(train_subjects=2, test_subjects=2, seconds=1.0, actions=["Waving"])
    assert data.splits == {"train": ["Train1", "Train2"], "test": ["Test1", "Test2"]}
    lengths = [
        (data.pose[row, 2] - data.pose[row, 1]).norm().item()
        for row in (int((data.subject == subject).nonzero()[0]) for subject in range(4))
    ]
    assert len({round(length, 2) for length in lengths}) == 4


def test_seeds_and_independence() -> None:
    arguments = {"seconds": 1.0, "actions": ["Dancing", "Sitting"]}
    one = synthetic_motion(train_subjects=2, test_subjects=1, seed=5, **arguments)
    again = synthetic_motion(train_subjects=2, test_subjects=1, seed=5, **arguments)
    other = synthetic_motion(train_subjects=2, test_subjects=1, seed=6, **arguments)
    assert one.content_hash() == again.content_hash() != other.content_hash()
    # More people or fewer actions leave what remains as it was.
    more = synthetic_motion(train_subjects=3, test_subjects=1, seed=5, **arguments)
    part = more.select(takes=["Train2/Sitting 1"])
    expected = one.select(takes=["Train2/Sitting 1"])
    assert torch.equal(part.keypoints, expected.keypoints)
    fewer = synthetic_motion(
        train_subjects=2, test_subjects=0, seed=5, seconds=1.0, actions=["Sitting"]
    )
    assert torch.equal(fewer.select(subjects=["Train2"]).pose, expected.pose)


def test_the_same_in_another_process() -> None:
    code = (
        "from erd_cuda.data import synthetic_motion as s;"
        "print(s(train_subjects=1, test_subjects=0, seconds=0.5).content_hash())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = synthetic_motion(train_subjects=1, test_subjects=0, seconds=0.5).content_hash()
    assert found.stdout.strip() == here


@pytest.mark.parametrize("action", MOTIONS)
@pytest.mark.parametrize(("seconds", "fps"), [(0.2, 10.0), (0.5, 120.0), (20.0, 5.0)])
def test_any_length_and_rate(action: str, seconds: float, fps: float) -> None:
    capture = synthetic_capture(
        train_subjects=1, test_subjects=0, seconds=seconds, fps=fps, actions=[action]
    )
    positions = capture.positions["Train1"][f"{action} 1"]
    assert positions.shape == (round(seconds * fps), 17, 3)
    assert np.isfinite(positions).all()


def test_thousands_of_poses_per_second() -> None:
    synthetic_motion(train_subjects=1, test_subjects=0, seconds=0.5)
    start = time.process_time()  # other processes stretch the clock's time, not this
    data = synthetic_motion(train_subjects=2, test_subjects=0, seconds=10.0)
    rate = len(data) / 4 / (time.process_time() - start)
    assert rate > 2000, f"{rate:.0f} poses/s"


def test_load_dataset_knows_it() -> None:
    data = load_dataset("synthetic:7", "test", actions=["Walking"], stride=3, keypoints="distorted")
    assert data.subjects == ["Test1", "Test2"] and data.actions == ["Walking"]
    assert data.camera.model == "h36m" and data.fps == 10.0
    pinhole = load_dataset("synthetic:7", "test", actions=["Walking"], stride=3)
    assert torch.equal(pinhole.pose, data.pose)
    gap = (pinhole.keypoints - data.keypoints).norm(dim=-1)
    assert 0.2 < gap.mean() < 5.0
    plain, zero = (load_dataset(path, "test", stride=6) for path in ("synthetic", "synthetic:0"))
    assert plain.content_hash() == zero.content_hash()
    walk = plain.select(actions=["Walking"])
    assert not torch.equal(walk.pose, pinhole.pose[pinhole.frame % 6 == 0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_subjects": 0, "test_subjects": 0}, "expected at least one, got 0, 0"),
        ({"train_subjects": -1}, "expected at least one, got -1, 2"),
        ({"takes": 0}, "takes: expected at least 1, got 0"),
        ({"seconds": 0.01}, "a take needs at least 2 frames, got 0.01 s at 30.0 fps"),
        ({"fps": 0.0}, "a take needs at least 2 frames"),
        ({"actions": ["Flying"]}, "'Flying' is not among the synthetic actions: Walking, Running"),
        ({"keypoints": "gt"}, "synthetic motion is 'pinhole' or 'distorted', got 'gt'"),
        ({"split": "val"}, "has no split 'val'; it has all, train, test"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        synthetic_motion(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        ("synthetic:x", {}, "expected 'synthetic' or 'synthetic:SEED'"),
        (
            "synthetic",
            {"keypoints": "gt"},
            "synthetic motion is 'pinhole' or 'distorted', got 'gt'",
        ),
        ("synthetic", {"cameras": "x"}, "synthetic motion brings its own cameras"),
    ],
)
def test_wrong_load_arguments(path: str, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_dataset(path, "train", **arguments)  # type: ignore[arg-type]


def test_limits_are_kept_and_eased_into() -> None:
    values = np.linspace(-400.0, 400.0, 4001)
    for name, (low, high) in LIMITS.items():
        eased = within_limits({name: values})[name]
        assert low <= eased.min() and eased.max() <= high
        inside = (values > low + 6.0) & (values < high - 6.0)
        np.testing.assert_array_equal(eased[inside], values[inside])
        slope = np.diff(eased) / np.diff(values)
        assert slope.min() >= -1e-9 and np.abs(np.diff(slope)).max() < 0.1


def test_forward_kinematics_of_known_postures() -> None:
    body = random_body(np.random.default_rng(0))
    rest = {name: np.zeros(1) for name in LIMITS}
    upright = np.eye(3)[None]

    def posture(**angles: float) -> dict[str, np.ndarray]:
        changed = rest | {name: np.full(1, degrees) for name, degrees in angles.items()}
        positions = forward_kinematics(body, changed, upright)[0]
        return dict(zip(h36m17.joints, positions, strict=True))

    still = posture()
    assert still["LFoot"][2] < still["LKnee"][2] < still["LHip"][2] < still["Thorax"][2]
    assert still["LHip"][1] > 0 > still["RHip"][1], "y is to the left"
    kneeling = posture(left_knee_bend=90.0)
    assert kneeling["LFoot"][0] < -0.3 and np.allclose(kneeling["RFoot"], still["RFoot"])
    raised = posture(right_shoulder_bend=90.0, right_elbow_bend=90.0)
    assert raised["RElbow"][0] > 0.2 and raised["RWrist"][2] > raised["RElbow"][2] + 0.15
    apart = posture(left_shoulder_out=90.0, right_shoulder_out=90.0)
    assert apart["LElbow"][1] > still["LShoulder"][1] + 0.2
    assert apart["RElbow"][1] == pytest.approx(-apart["LElbow"][1])
    bowed = posture(spine_bend=60.0)
    assert bowed["Head"][0] > 0.3 and bowed["Head"][2] < still["Head"][2]
    leaning = posture(spine_side=30.0, spine_twist=40.0)
    assert leaning["Thorax"][1] > 0.05, "to the left"
    assert leaning["LShoulder"][0] < leaning["RShoulder"][0], "left shoulder back"
