"""Camera files: both JSON layouts, units, distortion orders, HumanEva's text files, quaternions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import data_helpers as files
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erd_cuda.data import cameras_from_json, quaternion_to_matrix, read_cameras


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4))
def test_quaternions_are_rotations(values: list[float]) -> None:
    q = np.array(values)
    if np.linalg.norm(q) < 1e-3:
        return
    matrix = quaternion_to_matrix(q)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(matrix) == pytest.approx(1.0)
    # The same rotation by quaternion products, q (0, v) q*.
    w, vector = q[0] / np.linalg.norm(q), q[1:] / np.linalg.norm(q)
    point = np.array([0.3, -0.7, 0.2])
    turned = point + 2 * np.cross(vector, np.cross(vector, point) + w * point)
    np.testing.assert_allclose(matrix @ point, turned, atol=1e-12)


@pytest.mark.parametrize(
    ("value", "message"),
    [([0, 0, 0, 0], "zero or non-finite"), ([1, 2, 3], "shape"), ([np.nan, 0, 0, 1], "non-finite")],
)
def test_no_quaternion(value: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quaternion_to_matrix(value)


@pytest.mark.parametrize("layout", ["by subject", "by action"])
def test_both_layouts_give_the_same_cameras(layout: str) -> None:
    content = (
        files.by_subject_cameras(["S1"])
        if layout == "by subject"
        else files.by_action_cameras({"S1": ["Walking 1"]})
    )
    rig = cameras_from_json(content, "cams.json").rig("S1", "Walking 1")
    points = files.cloud(0, 6, 17)
    seen = rig.world_to_camera(points * 1000.0)
    assert seen.shape == (4, 6, 17, 3) and rig.model == "h36m"
    for view in range(4):
        np.testing.assert_allclose(seen[view], files.seen_by(view, points), atol=1e-3)
        one = files.intrinsics(view)
        assert rig.intrinsics[view].tolist() == one["focal_length"] + one["center"]
        assert rig.distortion is not None
        expected = one["radial_distortion"] + one["tangential_distortion"]
        assert rig.distortion[view].tolist() == expected
    assert (seen[..., 2] > 2000).all()
    # y points down: of two joints above each other the upper one has the smaller y.
    high, low = rig.world_to_camera(np.array([[0, 0, 1800.0], [0, 0, 0.0]])).transpose(1, 0, 2)
    assert (high[:, 1] < low[:, 1]).all()


def test_translation_unit_overrides_the_rule() -> None:
    metres = files.by_subject_cameras(["S1"])
    for place in metres["extrinsics"]["S1"]:
        place["translation"] = [value / 1000.0 for value in place["translation"]]
    rig = cameras_from_json(metres | {"translation_unit": "m"}, "x").rig("S1", "any")
    np.testing.assert_allclose(rig.centre[0], files.looking_at_centre(0)[1] * 1000.0)
    with pytest.raises(ValueError, match=r"mm from the origin is implausible; say .translation_un"):
        cameras_from_json(metres, "x")
    millimetres = files.by_action_cameras({"S1": ["a"]})
    for place in millimetres["extrinsics"]["S1"]["a"]:
        place["translation"] = [value * 1000.0 for value in place["translation"]]
    rig = cameras_from_json(millimetres | {"translation_unit": "mm"}, "x").rig("S1", "a")
    np.testing.assert_allclose(rig.centre[0], files.looking_at_centre(0)[1] * 1000.0)
    with pytest.raises(ValueError, match="implausible"):
        cameras_from_json(millimetres, "x")


def test_opencv_order() -> None:
    content = files.by_subject_cameras(["S1"]) | {"distortion_model": "opencv"}
    rig = cameras_from_json(content, "x").rig("S1", "a")
    one = files.intrinsics(2)
    k1, k2, k3 = one["radial_distortion"]
    assert rig.model == "opencv" and rig.distortion is not None
    assert rig.distortion[2].tolist() == [k1, k2, *one["tangential_distortion"], k3]


def test_subjects_without_cameras() -> None:
    cameras = cameras_from_json(files.by_subject_cameras(["S1"]), "cams.json")
    assert cameras.rig("Train/S1", "x") is cameras.rig("S1", "y")
    for subject in ("S2", "S9"):  # S2 is listed with empty entries
        with pytest.raises(ValueError, match=f"cams.json has no cameras for subject '{subject}'"):
            cameras.rig(subject, "Walking")


def spoiled(place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    content: Any = files.by_subject_cameras(["S1"])
    node = content
    for key in place[:-1]:
        node = node[key]
    if value is None:
        del node[place[-1]]
    else:
        node[place[-1]] = value
    return dict(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "needs the keys 'intrinsics' and 'extrinsics'"),
        ({"intrinsics": []}, "needs the keys 'intrinsics' and 'extrinsics'"),
        (spoiled(("extrinsics",), []), "extrinsics must be filed by subject"),
        (spoiled(("extrinsics", "S1"), 3), "neither a list nor filed by action"),
        (spoiled(("intrinsics", 1, "center"), None), "subject 'S1': camera 1 has no 'center'"),
        (spoiled(("intrinsics", 1, "center"), [1]), "'center' must be 2 finite numbers"),
        (spoiled(("intrinsics", 1, "center"), ["a", "b"]), "'center' must be 2 finite numbers"),
        (spoiled(("intrinsics", 1, "center"), [1, float("nan")]), "'center' must be 2 finite"),
        (spoiled(("intrinsics", 0, "focal_length"), [-1, 1]), "focal_length must be positive"),
        (spoiled(("intrinsics", 3), None), "3 intrinsics do not fit 4 extrinsics"),
        (spoiled(("extrinsics", "S1", 0, "orientation"), [0, 0, 0, 0]), "zero or non-finite"),
        (spoiled(("extrinsics", "S1", 0), {}), "camera 0 has no 'orientation'"),
        (spoiled(("translation_unit",), "cm"), "translation_unit must be 'mm' or 'm', got 'cm'"),
        (spoiled(("distortion_model",), "fisheye"), "distortion_model must be 'h36m' or 'opencv'"),
    ],
)
def test_wrong_camera_files(content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        cameras_from_json(content, "cams.json")
    assert str(caught.value).startswith("cams.json")


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda lines: lines[:-1], ValueError, "expected 22 numbers, got 21"),
        (lambda lines: ["focal", *lines[1:]], ValueError, "expected one number a line"),
        (lambda lines: [*lines[:4], "0.5", *lines[5:]], ValueError, "skew alpha is 0.5"),
        (lambda lines: [*lines[:10], "3", *lines[11:]], ValueError, "are not a rotation matrix"),
        (lambda lines: ["nan", *lines[1:]], ValueError, "expected finite numbers and positive"),
        (lambda lines: ["-640", *lines[1:]], ValueError, "expected finite numbers and positive"),
        (lambda lines: [*lines[:-1], "inf"], ValueError, "expected finite numbers and positive"),
    ],
)
def test_wrong_calibration_texts(change: Any, kind: type, message: str, tmp_path: Path) -> None:
    files.write_calibrations(tmp_path)
    file = tmp_path / "S1" / "Calibration_Data" / "C2.cal"
    file.write_text("\n".join(change(file.read_text().splitlines())))
    with pytest.raises(kind, match=message) as caught:
        read_cameras(tmp_path)
    assert str(file) in str(caught.value)


def test_missing_calibrations(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no camera calibrations"):
        read_cameras(tmp_path)
    files.write_calibrations(tmp_path)
    (tmp_path / "S1" / "Calibration_Data" / "C3.cal").unlink()
    with pytest.raises(FileNotFoundError, match=r"C3\.cal: there is no such file"):
        read_cameras(tmp_path)
