"""``erd-cuda reproduce`` on the field's own files: what it reads, what stands beside ours."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from data_helpers import h36m_folder, humaneva_folder, mocap_folder, write_calibrations

from erd_cuda.cli import main
from erd_cuda.cli.reproduce import HUMANEVA_ACTIONS
from erd_cuda.data import DetectorNoise, load_dataset
from erd_cuda.reproduce import Source

TINY = ["--quick", "--lifter-epochs", "1", "--max-poses", "60"]


def rows_of(folder: Path, table: str) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / f"{table}.csv").open(encoding="utf-8")))


@pytest.fixture(scope="module")
def h36m(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Human3.6M in small, with the cameras in another place."""
    folder = tmp_path_factory.mktemp("h36m")
    h36m_folder(folder)
    (folder / "elsewhere").mkdir()
    (folder / "cameras_h36m.json").rename(folder / "elsewhere" / "cameras.json")
    return folder


def reproduce(what: str, data: Path, out: Path, *options: str) -> int:
    return main(["reproduce", what, "--data", str(data), "-o", str(out), *TINY, *options])


def test_human36m_has_the_papers_numbers_beside_it(h36m: Path, tmp_path: Path) -> None:
    cameras = ("--cameras", str(h36m / "elsewhere" / "cameras.json"))
    assert reproduce("table1", h36m, tmp_path, *cameras) == 0
    rows = rows_of(tmp_path, "table1")
    printed = [row for row in rows if row["method"] == "paper's ERD"]
    # The detector was simulated, so the paper's numbers for CPN's joints mean nothing beside it.
    assert [(row["input"], row["root"], float(row["mean"])) for row in printed] == [
        ("GT2D", "given", 33.9),
        ("GT2D", "solved", 35.8),
    ]
    # S9's SittingDown 1 has drifted: both test sets are reported.
    pairs = [
        (row, rest)
        for row in rows
        for rest in rows
        if rest["method"] == f"{row['method']}, without drifted takes"
        and (row["input"], row["root"]) == (rest["input"], rest["root"])
    ]
    assert len(pairs) == 8
    assert all(float(row["mean"]) != float(rest["mean"]) for row, rest in pairs)


def test_cameras_that_are_missing_name_the_option(
    h36m: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce("table1", h36m, tmp_path) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "cameras" in said[0]


def test_a_pose_file_leaves_out_table4_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mocap_folder(tmp_path)
    path = tmp_path / "poses.safetensors"
    load_dataset(tmp_path, "all").save(path)
    asked: list[Any] = []

    def stop(self: Any, jobs: Any) -> None:
        asked.extend(jobs)
        raise ValueError("enough.")

    monkeypatch.setattr("erd_cuda.reproduce.Runner.run", stop)
    assert reproduce("all", path, tmp_path / "out") == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said == [
        "erd-cuda: table4 is left out, it needs --humaneva DIR beside a pose file",
        "erd-cuda: enough.",
    ]
    assert asked and all(job.source == "main" for job in asked)
    assert reproduce("table4", path, tmp_path / "out") == 2
    assert "no world coordinates" in capsys.readouterr().err


def test_humaneva_from_its_own_folders(tmp_path: Path) -> None:
    for name in ("mocap", "poses", "original"):
        (tmp_path / name).mkdir()
    mocap_folder(tmp_path / "mocap")
    positions = humaneva_folder(tmp_path / "poses")
    write_calibrations(tmp_path / "original")
    assert all(key.split(" ")[0] in HUMANEVA_ACTIONS for keys in positions.values() for key in keys)
    options = (
        *("--humaneva", str(tmp_path / "poses" / "data_3d_humaneva15.npz")),
        *("--humaneva-cameras", str(tmp_path / "original")),
    )
    assert reproduce("table4", tmp_path / "mocap", tmp_path / "out", *options) == 0
    rows = rows_of(tmp_path / "out", "table4")
    assert [(row["action"], row["subject"]) for row in rows] == [("Walking", "S1")]
    assert float(rows[0]["paper: ERD"]) == 15.3


def test_only_the_papers_actions_are_kept(tmp_path: Path) -> None:
    source = Source("synthetic", actions=("Walking", "no such"))
    every = load_dataset("synthetic", "test", stride=1)
    assert source.load("test", "GT2D").actions == ["Walking"] != every.actions


def test_one_detector_for_two_sets() -> None:
    """It errs by the same share of a person's size, not by the same number of pixels."""
    main_source = Source("synthetic", noise=6.0)
    other = Source("synthetic:1", noise=6.0, same_detector=main_source)
    scale = main_source.detector_scale()
    exact = load_dataset("synthetic:1", "test")
    expected = DetectorNoise(6.0).apply(exact, scale=scale)
    assert torch.equal(other.load("test", "DET2D").keypoints, expected.keypoints)
    assert other.describe() == {"path": "synthetic:1", "simulated_detector_px_on_synthetic": 6.0}


def test_hashes_are_those_of_the_samples() -> None:
    source = Source("synthetic")
    for kind in ("GT2D", "DET2D, no confidences"):
        assert (
            source.content_hash("test", kind, 500) == source.load("test", kind, 500).content_hash()
        )
    data = source.load("test", "GT2D", 500)
    assert replace(data, pose=2 * data.pose).content_hash() != source.content_hash(
        "test", "GT2D", 500
    )


def test_a_page_keeps_what_earlier_calls_made(tmp_path: Path) -> None:
    mocap_folder(tmp_path)
    assert reproduce("pca", tmp_path, tmp_path / "out") == 0
    assert reproduce("figure3", tmp_path, tmp_path / "out") == 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert 'id="pca"' in page and 'id="figure3"' in page and 'id="table3"' not in page
    facts = json.loads((tmp_path / "out" / "configuration.json").read_text(encoding="utf-8"))
    titles = facts["training_seconds"]
    assert "main GT2D martinez pca 30 seed 0" in titles and len(titles) == 6


def test_no_room_for_30_components(tmp_path: Path) -> None:
    """14 joints have 28 coordinates: the rows are left out."""
    mocap_folder(tmp_path)
    fourteen = tmp_path / "fourteen.safetensors"
    load_dataset(tmp_path, "all", joints=14).save(fourteen)
    assert reproduce("pca", fourteen, tmp_path / "out") == 0
    assert [row["PCA"] for row in rows_of(tmp_path / "out", "pca")] == ["off", "off"]


def test_drawing_is_checked_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["reproduce", "figure3", "--data", "synthetic", "-o", str(tmp_path / "out")]) != 0
    assert "matplotlib" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_tables_need_nothing_to_draw_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though figure 3 could be made of the same models."""
    mocap_folder(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert reproduce("table1", tmp_path, tmp_path / "out") == 0
    assert (tmp_path / "out" / "figure3.csv").exists()
    assert not list((tmp_path / "out").glob("*.png"))
