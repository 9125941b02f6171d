"""erd-cuda convert, through the dispatcher as a user calls it."""

from __future__ import annotations

from pathlib import Path

import data_helpers as files
import pytest

from erd_cuda.cli import main
from erd_cuda.data import load_dataset, read_poses


def test_converts_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files.mocap_folder(tmp_path)
    output = tmp_path / "poses.safetensors"
    assert main(["convert", str(tmp_path), "-o", str(output)]) == 0
    assert read_poses(output).content_hash() == load_dataset(tmp_path, "all").content_hash()
    printed = capsys.readouterr().out
    assert "72 samples of 17 joints (h36m17), 3 subjects, 4 takes, 2D pinhole" in printed


def test_options_reach_the_reader(tmp_path: Path) -> None:
    positions = files.h36m_folder(tmp_path)
    (tmp_path / "cameras_h36m.json").rename(tmp_path / "elsewhere.json")
    output = tmp_path / "poses.safetensors"
    options = "--split test --keypoints distorted --subjects S9 --actions SittingDown --joints 16"
    command = ["convert", str(tmp_path), "-o", str(output), *options.split(), "--stride", "2"]
    assert main([*command, "--cameras", str(tmp_path / "elsewhere.json")]) == 0
    data = read_poses(output)
    assert data.takes == ["S9/SittingDown 1"] and data.num_joints == 16
    assert data.keypoint_source == "distorted" and data.camera.model == "h36m"
    assert len(data) == 4 * len(positions["S9"]["SittingDown 1"][::2])


def test_converts_a_part_of_a_pose_file(tmp_path: Path) -> None:
    files.mocap_folder(tmp_path)
    whole, part = tmp_path / "whole.safetensors", tmp_path / "part.safetensors"
    assert main(["convert", str(tmp_path), "-o", str(whole)]) == 0
    assert main(["convert", str(whole), "-o", str(part), "--split", "test"]) == 0
    assert read_poses(part).content_hash() == load_dataset(tmp_path, "test").content_hash()


@pytest.mark.parametrize(
    ("source", "output", "message"),
    [
        (".", "poses.npz", "must end in .safetensors"),
        (".", "no/poses.safetensors", "there is no directory"),
        ("nowhere", "poses.safetensors", "nowhere does not exist"),
        ("meta_small.json", "poses.safetensors", "neither a data_3d_NAME.npz file nor a pose file"),
    ],
)
def test_one_sentence_for_a_mistake(
    source: str, output: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files.mocap_folder(tmp_path)
    assert main(["convert", str(tmp_path / source), "-o", str(tmp_path / output)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("erd-cuda: ") and message in error and error.count("\n") == 1
