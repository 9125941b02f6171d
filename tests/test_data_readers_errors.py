"""load_dataset on damaged and unfitting files and arguments: one sentence that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import data_helpers as files
import numpy as np
import pytest

from erd_cuda.data import load_dataset


def spoil(found: dict[str, dict[str, Any]], how: str) -> dict[str, Any]:
    """Damage 2D in a way a user might meet; returns arguments for write_keypoints."""
    if how == "shorter":
        found["S1"]["Walking"][2] = found["S1"]["Walking"][2][:-1]
    elif how == "no action":
        del found["S1"]["Walking 1"]
    elif how == "no subject":
        del found["S9"]
    elif how == "three cameras":
        found["S11"]["Walking"].pop()
    elif how == "other joints":
        found["S11"]["Walking"][0] = found["S11"]["Walking"][0][:, :16]
    elif how == "coco":
        return {"symmetry": files.COCO_SYMMETRY}
    elif how == "21 joints":
        return {"num_joints": 21}
    elif how == "joints as text":
        return {"num_joints": "many"}
    elif how == "symmetry as number":
        return {"symmetry": 3}
    elif how == "no list":
        found["S1"]["Walking"] = {"cam": 1}
    elif how == "integers":
        found["S1"]["Walking"][0] = found["S1"]["Walking"][0].astype(int)
    return {}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("shorter", r"subject 'S1', action 'Walking', camera 2: the 2D has 4 frames, fewer than"),
        ("no action", r"subject 'S1', action 'Walking 1' has no 2D, but the 3D has it"),
        ("no subject", r"subject 'S9', action 'Sitting' has no 2D, but the 3D has it"),
        ("three cameras", r"action 'Walking' has 2D of 3 cameras, but 4 cameras are calibrated"),
        ("other joints", r"camera 0: expected 2D of shape \(T, 17, 2 or 3\), got \(5, 16, 2\)"),
        ("coco", r"left and right joints that are not those of h36m17: its 2D is in another"),
        ("21 joints", r"has 2D of 21 joints, which does not fit the 17 joints of"),
        ("joints as text", r"num_joints\) is 'many', not a number"),
        ("symmetry as number", r"keypoints_symmetry must be two lists"),
        ("no list", r"action 'Walking' must be a list with an array \(T, J, 2\) for each camera"),
        ("integers", r"action 'Walking' must be a list with an array \(T, J, 2\) for each camera"),
    ],
)
def test_2d_that_does_not_fit_is_refused(how: str, message: str, tmp_path: Path) -> None:
    found = files.detected(files.h36m_folder(tmp_path), 17)
    arguments = spoil(found, how)
    files.write_keypoints(tmp_path / "data_2d_h36m_det.npz", found, **arguments)
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset(tmp_path, "all", keypoints="det")
    assert "data_2d_h36m_det.npz" in str(caught.value)


def remove(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def text(name: str, content: str) -> Any:
    return lambda folder: (folder / name).write_text(content)


def truncate(name: str) -> Any:
    def cut(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return cut


def edit(key: str, value: Any) -> Any:
    def change(folder: Path) -> None:
        meta = json.loads((folder / "meta_small.json").read_text())
        meta.pop(key) if value is None else meta.update({key: value})
        files.write_json(folder / "meta_small.json", meta)

    return change


def positions(value: Any) -> Any:
    return lambda folder: files.write_positions(folder / "data_3d_small.npz", value)


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (remove("data_3d_small.npz"), FileNotFoundError, "has no data_3d_NAME.npz file"),
        (remove("meta_small.json"), FileNotFoundError, "meta_small.json: there is no such file"),
        (remove("cameras_small.json"), FileNotFoundError, "cameras_small.json: there is no such"),
        (truncate("data_3d_small.npz"), ValueError, "data_3d_small.npz is truncated or damaged"),
        (truncate("meta_small.json"), ValueError, "meta_small.json is not a JSON file, or trunc"),
        (truncate("cameras_small.json"), ValueError, "cameras_small.json is not a JSON file, or"),
        (text("data_3d_small.npz", "a,b"), ValueError, "data_3d_small.npz is not an .npz file"),
        (text("meta_small.json", "[]"), ValueError, "expected an object with subjects_train"),
        (edit("fps", None), ValueError, "meta_small.json has no entry 'fps'"),
        (edit("fps", "fast"), ValueError, "meta_small.json: could not convert"),
        (edit("parents", [0] * 17), ValueError, "exactly one joint must have parent -1"),
        (edit("subjects_test", ["A"]), ValueError, "A is listed for training and for testing"),
        (edit("subjects_test", ["X"]), ValueError, "has no sequences for split 'test'"),
        (positions({}), ValueError, "positions_3d holds no sequences"),
        (positions({"A": 3}), ValueError, "must hold a dictionary by action for each subject"),
        (positions({"A": {3: np.zeros((1, 17, 3))}}), ValueError, "an action that is no text: 3"),
        (positions([1]), ValueError, "must be a dictionary by subject, got ndarray"),
        (positions({"A": {"w": np.zeros((4, 17, 2))}}), ValueError, r"\(T, J, 3\), got \(4, 17, 2"),
        (positions({"A": {"w": np.zeros((4, 17, 3), int)}}), ValueError, "must be floats"),
        (positions({"A": {"w": "x"}}), ValueError, r"shape \(T, J, 3\), got str"),
        (positions({"A": {"w": np.zeros((4, 9, 3))}}), ValueError, "positions of 9 joints, but"),
        (
            positions({"A": {"w": np.zeros((4, 17, 3)), "v": np.zeros((4, 9, 3))}}),
            ValueError,
            "subject 'A', action 'v' has 9 joints, other sequences have 17",
        ),
        (
            positions({"C": {"New 1": np.zeros((4, 17, 3))}}),
            ValueError,
            "has no cameras for subject 'C', action 'New 1'",
        ),
    ],
)
def test_damaged_folders(damage: Any, kind: type, message: str, tmp_path: Path) -> None:
    files.mocap_folder(tmp_path)
    damage(tmp_path)
    with pytest.raises(kind, match=message) as caught:
        load_dataset(tmp_path, "test")
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"split": "val"}, ValueError, "split: expected 'train', 'test' or 'all', got 'val'"),
        ({"stride": 0}, ValueError, "stride: expected a positive integer, got 0"),
        ({"stride": 1.5}, ValueError, "stride: expected a positive integer, got 1.5"),
        ({"subjects": ["C"]}, ValueError, "subjects: 'C' is not among the train subjects of .*: A"),
        ({"subjects": "A"}, TypeError, "subjects: expected a list of names, got the single string"),
        ({"actions": ["Swim"]}, ValueError, "actions: 'Swim' is not among the actions of .*: Walk"),
        (
            {"keypoints": "cpn"},
            FileNotFoundError,
            "data_2d_small_cpn.npz does not exist; there are",
        ),
        ({"joints": 15}, ValueError, "joints: .* has the joints of h36m17, which cannot give"),
        ({"joints": 18}, ValueError, "no skeleton has 18 joints"),
        ({"cameras": "nowhere.json"}, FileNotFoundError, "nowhere.json: there is no such file"),
    ],
)
def test_wrong_arguments(
    arguments: dict[str, Any], kind: type, message: str, tmp_path: Path
) -> None:
    files.mocap_folder(tmp_path)
    with pytest.raises(kind, match=message):
        load_dataset(tmp_path, **({"split": "train"} | arguments))


def test_wrong_paths(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        load_dataset(tmp_path / "nowhere", "train")
    (tmp_path / "x.csv").write_text("1")
    with pytest.raises(ValueError, match=r"x\.csv is neither a data_3d_NAME.npz file nor a pose"):
        load_dataset(tmp_path / "x.csv", "train")
    files.mocap_folder(tmp_path, "one")
    files.h36m_folder(tmp_path)
    with pytest.raises(ValueError, match=r"several data sets .*; pass the path of one of them"):
        load_dataset(tmp_path, "train")
    assert load_dataset(tmp_path / "data_3d_one.npz", "train").name == "one"


def test_h36m_without_cameras_or_of_other_joints(tmp_path: Path) -> None:
    files.h36m_folder(tmp_path)
    (tmp_path / "cameras_h36m.json").unlink()
    with pytest.raises(ValueError, match="comes without camera parameters"):
        load_dataset(tmp_path, "train")
    file = tmp_path / "data_3d_h36m.npz"
    files.write_positions(file, {"S1": {"Walking": files.cloud(0, 2, 20)}})
    with pytest.raises(ValueError, match="expected positions of 17 or 32 joints, got 20"):
        load_dataset(tmp_path, "train")


def humaneva(folder: Path) -> dict[str, dict[str, files.Array]]:
    files.write_calibrations(folder / "cameras")
    return files.humaneva_folder(folder)


def load_humaneva(folder: Path, **arguments: Any) -> Any:
    return load_dataset(folder, "all", cameras=folder / "cameras", **arguments)


def test_humaneva_of_other_joints_or_subjects(tmp_path: Path) -> None:
    positions = humaneva(tmp_path)
    file = tmp_path / "data_3d_humaneva15.npz"
    files.write_positions(file, {"Train/S1": {"Walking 1 chunk0": files.cloud(0, 2, 20)}})
    with pytest.raises(ValueError, match="expected positions of 15 joints, got 20"):
        load_humaneva(tmp_path)
    files.write_positions(file, positions | {"Train/S4": positions["Train/S1"]})
    with pytest.raises(ValueError, match="cameras has no cameras for subject 'Train/S4'"):
        load_humaneva(tmp_path)
    assert "Validate/S1" in load_humaneva(tmp_path, subjects=["Validate/S1"]).subjects


def test_humaneva_2d_that_is_short_or_missing(tmp_path: Path) -> None:
    positions = humaneva(tmp_path)
    found = {
        subject: {key: views[:3] for key, views in takes.items()}
        for subject, takes in files.detected(positions, 15).items()
    }
    path = tmp_path / "data_2d_humaneva15_det.npz"
    found["Train/S1"]["Jog 1 chunk2"][1] = found["Train/S1"]["Jog 1 chunk2"][1][:2]
    files.write_keypoints(path, found, 15, files.HUMANEVA_SYMMETRY)
    with pytest.raises(ValueError, match=r"'Jog 1 chunk2', camera 1: the 2D has 2 frames, fewer"):
        load_humaneva(tmp_path, keypoints="det")
    del found["Train/S1"]
    files.write_keypoints(path, found, 15, files.HUMANEVA_SYMMETRY)
    with pytest.raises(ValueError, match="subject 'Train/S1', action 'Walking 1 chunk0' has no 2D"):
        load_humaneva(tmp_path, keypoints="det")
    files.write_keypoints(path, found, 17, files.H36M_SYMMETRY)
    with pytest.raises(ValueError, match="2D of 17 joints, which does not fit the 15 joints of"):
        load_humaneva(tmp_path, keypoints="det")


def test_humaneva_frames_without_3d_are_left_out(tmp_path: Path) -> None:
    positions = humaneva(tmp_path)
    positions["Validate/S1"]["Walking 1 chunk0"][3, 7] = np.nan
    files.write_positions(tmp_path / "data_3d_humaneva15.npz", positions)
    with pytest.warns(UserWarning, match="left out 1 frames whose 3D is not finite"):
        data = load_humaneva(tmp_path, keypoints="distorted", undistort=True)
    assert data.sequence("Validate/S1/Walking 1 chunk0", 2).frame.tolist() == [0, 1, 2, 4]
    assert data.camera.is_pinhole and data.keypoints.isfinite().all()
