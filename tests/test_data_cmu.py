"""The CMU database's folders: 17 joints, frame rates, box, cameras, splits, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cmu_files as cmu
import numpy as np
import pytest
import torch

from erd_cuda.cli import main
from erd_cuda.data import assemble, cmu_capture, h36m17, load_dataset
from erd_cuda.data.studio import BOX


def bone_lengths(world: cmu.Array) -> dict[str, cmu.Array]:
    """Millimetres by child joint, (F,)."""
    return {
        h36m17.joints[joint]: 1000.0 * np.linalg.norm(world[:, joint] - world[:, parent], axis=1)
        for parent, joint in h36m17.bones
    }


@pytest.mark.parametrize("below", ["subjects", "", "all_asfamc/subjects"])
def test_subjects_are_found_wherever_they_lie(below: str, tmp_path: Path) -> None:
    capture = cmu_capture(cmu.cmu_folder(tmp_path, below=below))
    assert {name: list(takes) for name, takes in capture.positions.items()} == {
        "2": ["Motion 01"],
        "10": ["Motion 01", "Motion 02"],
        "35": ["Motion 01"],
    }
    assert capture.splits == {"train": ["2", "10"], "test": ["35"]}
    assert capture.fps == 30.0 and capture.skeleton == h36m17


def test_joints_are_those_of_the_bones(tmp_path: Path) -> None:
    world = cmu_capture(cmu.cmu_folder(tmp_path)).positions["35"]["Motion 01"].astype(float)
    lengths = bone_lengths(world)
    single = {
        **{"Knee": "femur", "Foot": "tibia"},
        **{"Shoulder": "clavicle", "Elbow": "humerus", "Wrist": "radius"},
    }
    for side in "LR":
        for joint, bone in single.items():
            expected = cmu.LENGTHS[side.lower() + bone]
            np.testing.assert_allclose(lengths[side + joint], expected, atol=0.01)
    np.testing.assert_allclose(lengths["Head"], cmu.LENGTHS["head"], atol=0.01)
    # Hip is halfway between the hip joints, which the database's root is not.
    names = {name: index for index, name in enumerate(h36m17.joints)}
    middle = (world[:, names["RHip"]] + world[:, names["LHip"]]) / 2
    np.testing.assert_allclose(world[:, names["Hip"]], middle, atol=1e-6)
    # Upright: z is up, and the left hip lies to the left of somebody who faces x.
    height = world[:, names["Head"], 2] - world[:, names["LFoot"], 2]
    assert (height > 0.7).all() and world[0, names["LHip"], 1] > world[0, names["RHip"], 1]


def test_frame_rates(tmp_path: Path) -> None:
    folder = cmu.cmu_folder(tmp_path, frames=41)
    every = cmu_capture(folder, fps=120).positions["2"]["Motion 01"]
    assert len(every) == 41
    for fps, step in ((60, 2), (30, 4), (24, 5)):
        assert np.array_equal(
            cmu_capture(folder, fps=fps).positions["2"]["Motion 01"], every[::step]
        )
    # 120 is no multiple of 50: the nearest frames of 0, 2.4, 4.8, 7.2, ...
    chosen = [0, 2, 5, 7, 10, 12, 14, 17, 19, 22, 24, 26, 29, 31, 34, 36, 38]
    assert np.array_equal(cmu_capture(folder, fps=50).positions["2"]["Motion 01"], every[chosen])


def test_who_walks_far_stays_within_the_box_and_keeps_the_pose(tmp_path: Path) -> None:
    folder = cmu.cmu_folder(tmp_path)
    file = folder / "subjects" / "2" / "2_01.amc"
    file.write_text(cmu.motion(3, 41, walked=40.0))
    near = cmu_capture(folder, fps=120).positions["2"]["Motion 01"]
    # 40 units are 2.26 m.
    assert np.ptp(near[:, 0, 0]) == pytest.approx(40 * cmu.UNIT / 1000, abs=0.15)
    file.write_text(cmu.motion(3, 41, walked=400.0))
    far = cmu_capture(folder, fps=120).positions["2"]["Motion 01"]
    assert np.ptp(far[:, 0, :2], axis=0).max() == pytest.approx(BOX, abs=1e-5)
    np.testing.assert_allclose(far - far[:, :1], near - near[:, :1], atol=1e-5)
    for world in (near, far):
        middle = (world[:, 0, :2].max(axis=0) + world[:, 0, :2].min(axis=0)) / 2
        np.testing.assert_allclose(middle, 0.0, atol=1e-6)
    np.testing.assert_array_equal(far[:, 0, 2], near[:, 0, 2])


def test_cameras_follow_from_seed_and_names_alone(tmp_path: Path) -> None:
    folder = cmu.cmu_folder(tmp_path)
    whole, again = cmu_capture(folder), cmu_capture(folder, subjects=["10"], fps=120)
    other = cmu_capture(folder, seed=1)
    assert whole.cameras is not None and again.cameras is not None and other.cameras is not None
    for key in ("Motion 01", "Motion 02"):
        one = whole.cameras.rig("10", key)
        for name in ("intrinsics", "distortion", "rotation", "centre"):
            assert np.array_equal(getattr(one, name), getattr(again.cameras.rig("10", key), name))
            assert not np.array_equal(
                getattr(one, name), getattr(other.cameras.rig("10", key), name)
            )
    first, second = (whole.cameras.rig("10", f"Motion 0{number}") for number in (1, 2))
    assert np.array_equal(first.intrinsics, second.intrinsics)
    assert not np.array_equal(first.centre, second.centre)


def test_everybody_is_seen_by_four_cameras(tmp_path: Path) -> None:
    capture = cmu_capture(cmu.cmu_folder(tmp_path))
    data = assemble(capture, capture.choose("all", None, None), "distorted")
    assert len(data) == 4 * 4 * 11 and data.camera.model == "h36m"
    depth = data.root[:, None, 2] + data.pose[..., 2]
    assert depth.min() > 1500.0 and depth.max() < 9500.0
    assert ((data.keypoints > -200) & (data.keypoints < 1200)).all()
    head, feet = data.keypoints[:, 10, 1], data.keypoints[:, [3, 6], 1].amax(dim=1)
    assert (head < feet).all()


def test_gaps_are_left_out_with_a_warning(tmp_path: Path) -> None:
    folder = cmu.cmu_folder(tmp_path)
    file = folder / "subjects" / "2" / "2_01.amc"
    blocks = file.read_text().split("\n9\n")
    file.write_text(blocks[0] + "\n9\n" + blocks[1].replace("root 0", "root nan", 1))
    capture = cmu_capture(folder, subjects=["2"])
    with pytest.warns(UserWarning, match="left out 1 frames whose 3D is not finite"):
        data = assemble(capture, capture.choose("all", None, None), "pinhole")
    assert data.sequence("2/Motion 01").frame.tolist() == [0, 1, *range(3, 11)]
    assert data.keypoints.isfinite().all()


def write_meta(folder: Path, **changes: Any) -> Path:
    content = {"subjects_train": ["10"], "subjects_test": ["2"]} | changes
    (folder / "meta.json").write_text(json.dumps(content))
    return folder / "meta.json"


def test_metadata_split_subjects_and_name_actions(tmp_path: Path) -> None:
    folder = cmu.cmu_folder(tmp_path)
    capture = cmu_capture(folder, meta=write_meta(folder))
    assert capture.splits == {"train": ["10"], "test": ["2"]} and "35" not in capture.positions
    labels = {"10_02": "Walk", "2_01": "Jump", "35_01": "Run"}
    capture = cmu_capture(folder, meta=write_meta(folder, actions=labels))
    takes = {name: list(keys) for name, keys in capture.positions.items()}
    assert takes == {"2": ["Jump 01"], "10": ["Walk 02"]}


def test_the_command_writes_a_pose_file_that_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = cmu.cmu_folder(tmp_path)
    output = tmp_path / "cmu.safetensors"
    options = ["--fps", "60", "--seed", "3", "--keypoints", "distorted", "--undistort"]
    assert main(["convert", "cmu", str(folder), "-o", str(output), *options]) == 0
    assert "336 samples of 17 joints (h36m17), 3 subjects, 4 takes" in capsys.readouterr().out
    train = load_dataset(output, "train")
    assert train.subjects == ["2", "10"] and train.fps == 60.0 and train.camera.is_pinhole
    assert load_dataset(output, "test").takes == ["35/Motion 01"]
    small = "--lifter-width 16 --lifter-blocks 1 --lifter-epochs 1 --stages 1 --width 16 --quiet"
    command = ["train", "--data", str(output), "-o", str(tmp_path / "run"), *small.split()]
    assert main(command) == 0
    assert main(["evaluate", str(tmp_path / "run/model.safetensors"), "--data", str(output)]) == 0
    # The same again gives the same bytes; one subject alone gives the same samples.
    again = tmp_path / "again.safetensors"
    assert main(["convert", "cmu", str(folder), "-o", str(again), *options]) == 0
    assert again.read_bytes() == output.read_bytes()
    alone = [*options, "--subjects", "35", "--stride", "2"]
    assert main(["convert", "cmu", str(folder), "-o", str(again), *alone]) == 0
    part = load_dataset(again, "all")
    test = load_dataset(output, "test")
    assert part.fps == 30.0 and torch.equal(part.keypoints, test.keypoints[test.frame % 2 == 0])


def remove(*names: str) -> Any:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def move(old: str, new: str) -> Any:
    return lambda folder: (folder / old).rename(folder / new)


def replace_text(name: str, old: str, new: str) -> Any:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("2/2.asf"), "2_01.amc has no skeleton 2.asf beside it"),
        (remove("2/2_01.amc"), "2.asf has no motions 2_*.amc beside it"),
        (remove("2/2.asf", "10/10.asf", "35/35.asf"), "has no skeletons: expected the CMU"),
        (move("2/2_01.amc", "35/2_01.amc"), "2_01.amc has no skeleton 2.asf beside it"),
        (move("2/2.asf", "2/10.asf"), "has two skeletons of subject 10: "),
        (replace_text("35/35.asf", "lradius", "larm"), "has no bone 'lradius', which LWrist needs"),
        (replace_text("35/35_01.amc", "lradius", "larm"), "35_01.amc, line 12: 'larm' is no bone"),
        (replace_text("35/35_01.amc", "\n9\n", "\n8\n"), "frame 8 is followed by 8"),
        (replace_text("35/35_01.amc", "root ", "root nan "), "'root' has 7 numbers, but 6 in the"),
        (replace_text("35/35_01.amc", "root 0 ", "root nan "), "35_01.amc has no frame without"),
    ],
)
def test_damaged_folders_leave_nothing_behind(
    damage: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = cmu.cmu_folder(tmp_path / "cmu") / "subjects"
    damage(folder)
    out = tmp_path / "out"
    out.mkdir()
    assert main(["convert", "cmu", str(folder), "-o", str(out / "poses.safetensors")]) == 2
    error = capsys.readouterr().err
    assert message in error and str(folder) in error and error.count("\n") == 1
    assert not list(out.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("cmu {0} --fps 240", "fps: expected more than 0 and at most 120, got 240"),
        ("cmu {0} --fps nan", "fps: expected more than 0 and at most 120, got nan"),
        ("cmu {0} --seed -1", "seed: expected 0 or more, got -1"),
        ("cmu {0} --subjects 99", "has no subject '99'"),
        ("cmu {0} --split test --subjects 2", "'2' is not among the test subjects"),
        ("cmu {0} --actions Walk", "'Walk' is not among the actions"),
        ("cmu {0} --keypoints cpn", "the CMU database has no images"),
        ("cmu {0} --drifted out", "only Human3.6M has drifted takes"),
        ("cmu {0} --cameras x.json", "cameras are placed around the CMU database's people"),
        ("cmu {0} --undistort", "belongs to pinhole cameras, which have no distortion"),
        ("cmu {0}/nowhere", "is no folder with the CMU database's files"),
        ("cmu {0}/nowhere -o poses.npz", "must end in .safetensors"),
        ("cmu {0} more", "expected one path, or 'cmu' and a folder"),
        ("{0} --fps 30", "--fps is only for 'convert cmu DIR'"),
        ("cmu {0} --meta {0}/none.json", "none.json: there is no such file"),
    ],
)
def test_wrong_options(
    options: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = cmu.cmu_folder(tmp_path, frames=3)
    words = options.format(folder).split()
    assert main(["convert", "-o", str(tmp_path / "poses.safetensors"), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "poses.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subjects_train": "10"}, "subjects_train must be a list of subjects' names"),
        ({"subjects_test": [2]}, "subjects_test must be a list of subjects' names"),
        ({"subjects_test": ["3"]}, "subjects_test has '3', which .* has not"),
        ({"subjects_test": ["2", "10"]}, "10 is listed for training and for testing"),
        ({"actions": ["Walk"]}, "actions must give one word for each motion"),
        ({"actions": {"2_01": "Walk fast"}}, "actions must give one word for each motion"),
        ({"actions": {"2_07": "Walk"}}, "actions has '2_07', which .* has not"),
    ],
)
def test_wrong_metadata(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = cmu.cmu_folder(tmp_path, frames=3)
    with pytest.raises(ValueError, match=message) as caught:
        cmu_capture(folder, meta=write_meta(folder, **changes))
    assert "meta.json" in str(caught.value)


def test_metadata_of_another_form(tmp_path: Path) -> None:
    folder = cmu.cmu_folder(tmp_path, frames=3)
    (folder / "meta.json").write_text("[]")
    with pytest.raises(ValueError, match=r"meta\.json: expected an object with subjects_train"):
        cmu_capture(folder, meta=folder / "meta.json")
