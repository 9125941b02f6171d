"""``erd-cuda reproduce``: what it prints, what it leaves behind, and that nothing runs twice."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

import erd_cuda.reproduce.runner as runner_module
from erd_cuda.cli import main

QUICK = ["--data", "synthetic", "--quick", "--max-poses", "300", "--lifter-epochs", "1"]
# Table 1 needs no other models than figure 3, and what can be made is made.
FILES = {
    *("table1.md", "table1.csv"),
    *("figure2.png", "figure2.svg", "figure3.md", "figure3.csv", "figure3.png", "figure3.svg"),
    *("configuration.json", "report.html", "runs"),
}


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reproduction")
    assert main(["reproduce", "figure3", "figure2", *QUICK, "-o", str(out)]) == 0
    return out


def test_files(reproduced: Path) -> None:
    assert {path.name for path in reproduced.iterdir()} == FILES
    rows = list(csv.DictReader((reproduced / "figure3.csv").open(encoding="utf-8")))
    assert [(row["input"], row["root"]) for row in rows] == [
        (kind, root) for kind in ("GT2D", "DET2D") for root in ("given", "solved")
    ]
    assert all(float(row["stage 4"]) > 0 for row in rows)
    # Both roots start from one lifter, and detections make it worse.
    lifter = [float(row["lifter"]) for row in rows]
    assert lifter[0] == lifter[1] != lifter[2] == lifter[3]


def test_page_needs_no_other_file(reproduced: Path) -> None:
    page = (reproduced / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2
    assert "Figure 3" in page and "configuration" in page.lower()
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_configuration_says_what_was_done(reproduced: Path) -> None:
    facts = json.loads((reproduced / "configuration.json").read_text(encoding="utf-8"))
    assert facts["schedule"]["seeds"] == [0] and facts["schedule"]["most_poses"] == 300
    assert facts["data"]["main"] == {"path": "synthetic", "simulated_detector_px": 6.7}
    assert facts["versions"]["torch"] and facts["machine"]["threads"] >= 1


def test_a_second_call_only_prints(
    reproduced: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing should be trained")

    monkeypatch.setattr(runner_module, "train", refuse)
    assert main(["reproduce", "figure3", *QUICK, "-o", str(reproduced)]) == 0
    said = capsys.readouterr().out
    assert "### Figure 3" in said and "report.html" in said


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--data", "nowhere"], "path: nowhere does not exist"),
        (["--data", "synthetic", "--noise", "-1"], "mean_error: expected a positive number"),
        (["--data", "synthetic", "--detections", "cpn"], "keypoints: synthetic motion is"),
    ],
)
def test_wrong_input(
    options: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", "table1", *options, "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and sentence in said[0]
