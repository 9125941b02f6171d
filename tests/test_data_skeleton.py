"""Skeletons: the four layouts, the checks, JSON."""

from __future__ import annotations

import json

import pytest

from erd_cuda.data import (
    SKELETONS,
    Skeleton,
    coco17,
    get_skeleton,
    h36m14,
    h36m16,
    h36m17,
    humaneva15,
)


def test_h36m17_is_the_published_layout() -> None:
    names = (
        "Hip RHip RKnee RFoot LHip LKnee LFoot Spine Thorax Neck/Nose Head "
        "LShoulder LElbow LWrist RShoulder RElbow RWrist"
    )
    assert h36m17.joints == tuple(names.split())
    assert h36m17.parents == (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15)
    assert (h36m17.left, h36m17.right) == ((4, 5, 6, 11, 12, 13), (1, 2, 3, 14, 15, 16))


def test_h36m16_is_h36m17_without_neck_nose() -> None:
    assert h36m16.joints == tuple(name for name in h36m17.joints if name != "Neck/Nose")
    assert h36m16.parents == (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 8, 10, 11, 8, 13, 14)
    assert (h36m16.left, h36m16.right) == ((4, 5, 6, 10, 11, 12), (1, 2, 3, 13, 14, 15))


def test_h36m14_has_no_joint_that_poses_are_relative_to() -> None:
    dropped = ("Hip", "Spine", "Neck/Nose")
    assert h36m14.joints == tuple(name for name in h36m17.joints if name not in dropped)
    assert h36m14.origin == "Hip" and h36m14.root_joint is None
    assert h36m14.joints[h36m14.root] == "Thorax"
    assert (h36m17.origin, h36m17.root_joint, coco17.root_joint) == (None, 0, 0)
    # Files and digests of skeletons with a root joint know nothing of origins.
    assert "origin" not in h36m17.to_dict() and h36m14.to_dict()["origin"] == "Hip"


def test_humaneva15_is_the_published_layout() -> None:
    assert humaneva15.parents == (-1, 0, 1, 2, 3, 1, 5, 6, 0, 8, 9, 0, 11, 12, 1)
    assert humaneva15.joints[13] == "RAnkle"


@pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=lambda each: each.name)
def test_sides_mirror_each_other(skeleton: Skeleton) -> None:
    mirror = dict(zip(skeleton.left, skeleton.right, strict=True))
    mirror |= {right: left for left, right in mirror.items()}
    for left, right in zip(skeleton.left, skeleton.right, strict=True):
        assert skeleton.joints[left][0] == "L" and skeleton.joints[right][0] == "R"
        assert skeleton.joints[left][1:] == skeleton.joints[right][1:]
        parent = skeleton.parents[left]
        assert mirror.get(parent, parent) == skeleton.parents[right]
    assert len(skeleton.bones) == skeleton.num_joints - 1


@pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=lambda each: each.name)
def test_survives_json(skeleton: Skeleton) -> None:
    assert Skeleton.from_dict(json.loads(json.dumps(skeleton.to_dict()))) == skeleton


def test_get_skeleton_by_name_count_and_itself() -> None:
    assert get_skeleton("coco17") is coco17
    assert [get_skeleton(count) for count in (17, 16, 15, 14)] == [
        *(h36m17, h36m16, humaneva15, h36m14)
    ]
    assert get_skeleton(h36m16) is h36m16


@pytest.mark.parametrize(
    ("layout", "kind", "message"),
    [
        ("h36m18", ValueError, "no skeleton is called 'h36m18'; known are h36m17, h36m16"),
        (21, ValueError, "no skeleton has 21 joints; known are 17"),
        (True, TypeError, "expected a skeleton's name or number of joints, got bool"),
        (1.5, TypeError, "got float"),
    ],
)
def test_get_skeleton_names_what_it_knows(layout: object, kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        get_skeleton(layout)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"joints": ("a", "b", "b")}, "joint names must be unique, but b occurs"),
        ({"joints": ()}, "joints is empty"),
        ({"parents": (-1, 0)}, "parents has 2 entries for 3 joints"),
        ({"parents": (-1, -1, 0)}, "exactly one joint must have parent -1, but 2 have"),
        ({"parents": (-1, 2, 1)}, "following the parents of joint 1 does not end at the root"),
        ({"parents": (-1, 0, 7)}, "following the parents of joint 2 does not end at the root"),
        ({"left": (1, 2)}, "equally many different joints"),
        ({"left": (2,)}, "equally many different joints"),
        ({"left": (3,)}, "joint indices from 0 to 2"),
        ({"origin": "b"}, "origin must name a point that is none of the joints, got 'b'"),
    ],
)
def test_a_wrong_skeleton_is_refused(change: dict[str, object], message: str) -> None:
    parts = {"joints": ("a", "b", "c"), "parents": (-1, 0, 0), "left": (1,), "right": (2,)}
    Skeleton("ok", **parts)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        Skeleton("bad", **(parts | change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "description",
    [{}, {"name": "x"}, h36m17.to_dict() | {"parents": "abc"}, h36m17.to_dict() | {"left": [1.5]}],
)
def test_a_wrong_description_is_refused(description: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="a skeleton needs name, joints, parents, left and right"):
        Skeleton.from_dict(description)


@pytest.mark.parametrize(
    ("joint", "message"),
    [("Tail", "has no joint 'Tail'"), ("Hip", "root"), ("LKnee", "mirror image")],
)
def test_without_refuses_joints_that_must_stay(joint: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        h36m17.without(joint, name="less")
