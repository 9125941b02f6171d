"""From samples to a page: figures, targets, what got slower. All of it on made-up measurements."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from benchmark_results import MACHINE, entries, measured

from erd_cuda.benchmarks import compare, machine, report, results, targets
from erd_cuda.benchmarks import measure as measure_module
from erd_cuda.cli import bench, main


@pytest.fixture
def merged() -> dict[str, Any]:
    found = results.merge(measured())
    return found | {"targets": targets.check(found)}


def row_of(found: dict[str, Any], **wanted: object) -> dict[str, Any]:
    (row,) = results.find(found, **wanted)
    return row


# ---- figures -------------------------------------------------------------------------------------


def test_turns_become_one_row(merged: dict[str, Any]) -> None:
    row = row_of(merged, suite="refine", contender="erd_cuda", batch=4096)
    assert row["us"] == pytest.approx(4096, rel=0.02)
    assert row["samples"] == 12
    assert row["turns_us"] == pytest.approx([4096, 4096, 4096, 8192])
    assert row["us_low"] < row["us"] < row["us_high"]
    assert row["poses_per_s"] == pytest.approx(1e6, rel=0.02)


def test_a_run_of_several_calls_counts_as_such(merged: dict[str, Any]) -> None:
    assert row_of(merged, suite="training step")["us"] == pytest.approx(1000, rel=0.02)


def test_drift_does_not_touch_ratios(merged: dict[str, Any]) -> None:
    """The machine's slow turn slows both: each turn's ratio is the same."""
    row = row_of(merged, suite="refine", contender="erd_cuda", batch=1)
    ratios = {found["contender"]: found for found in row["ratios"]}
    assert ratios.keys() == {"ONNX Runtime", "torch eager"}
    for name, expected in (("ONNX Runtime", 3.0), ("torch eager", 2.0)):
        for part in ("ratio", "low", "high"):
            assert ratios[name][part] == pytest.approx(expected)


def test_fractions_are_of_the_measured_ceilings(merged: dict[str, Any]) -> None:
    # 1e11 operations a second at the peak, 5e10 in the refiner; half as many in the slow turn.
    row = row_of(merged, suite="refine", contender="erd_cuda", batch=1)
    for part in ("", "_low", "_high"):
        assert row[f"of_fma{part}"] == pytest.approx(0.5)
    assert "of_copy" not in row


def test_a_fraction_is_of_the_ceiling_in_the_same_turns() -> None:
    """Not of the one that had minutes of its own."""
    data = measured()
    project: dict[str, Any] = {"suite": "project", "batch": 9}
    data["benchmarks"] += entries([[1e-3], [4e-3]], contender="erd_cuda", moved=1e7, **project)
    assert "of_copy" not in row_of(results.merge(data), suite="project", contender="erd_cuda")
    data["benchmarks"] += entries([[1e-3], [2e-3]], contender="copy", moved=2e7, **project)
    row = row_of(results.merge(data), suite="project", contender="erd_cuda")
    # 0.5 in the first turn, 0.25 in the second.
    assert [row[f"of_copy{part}"] for part in ("", "_low", "_high")] == pytest.approx(
        [0.375, 0.3125, 0.4375]
    )


def test_a_ceiling_is_no_peer(merged: dict[str, Any]) -> None:
    (row,) = results.find(merged, suite="refine", contender="multiply-adds", batch=1)
    assert "poses_per_s" not in row and "of_fma" not in row


def test_who_is_missing_is_named(merged: dict[str, Any]) -> None:
    (row,) = [row for row in merged["rows"] if "us" not in row]
    assert row["contender"] == "OpenVINO" and "No module" in row["missing"]


def test_results_are_read_back(merged: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(results.rounded(merged)))
    again = results.read(path)
    assert again["rows"][3]["us"] == pytest.approx(merged["rows"][3]["us"], rel=1e-5)
    for text in ("{}", "[1]", "no"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"a\.json holds no results: expected a file of erd-c"):
            results.read(path)


# ---- targets -------------------------------------------------------------------------------------


def test_the_best_peer_counts(merged: dict[str, Any]) -> None:
    (figure,) = [f for f in merged["targets"] if "batch 4,096, best peer with" in f["text"]]
    assert figure["against"] == "torch eager"
    assert figure["value"] == pytest.approx(2.0)
    assert targets.cells(figure)[-1] == "met"


def test_what_is_too_slow_is_said(merged: dict[str, Any]) -> None:
    (figure,) = [f for f in merged["targets"] if "batch 1, best peer with" in f["text"]]
    assert figure["least"] == 5.0
    assert targets.cells(figure)[-1] == "NOT MET"
    assert "NOT MET" in targets.table(merged["targets"])


def test_peers_without_the_collapse_are_no_measure_of_those_with_it() -> None:
    data = measured()
    for entry in data["benchmarks"]:
        if entry["extra_info"]["contender"] == "torch eager":
            entry["extra_info"]["collapsed"] = False
    (figure,) = [
        f for f in targets.check(results.merge(data)) if "batch 4,096, best peer with" in f["text"]
    ]
    assert figure["against"] == "ONNX Runtime"


def test_bf16_is_held_against_our_own_fp32() -> None:
    data = measured()
    fast = copy.deepcopy(data["benchmarks"])
    for entry in fast:
        entry["extra_info"]["precision"] = "bf16"
        entry["stats"]["data"] = [s / 2 for s in entry["stats"]["data"]]
    data["benchmarks"] += [e for e in fast if e["extra_info"]["contender"] == "erd_cuda"]
    found = targets.check(results.merge(data))
    (figure,) = [f for f in found if f["text"].startswith("refine bf16, collapsed, batch 4,096")]
    assert figure["value"] == pytest.approx(2.0)
    (figure,) = [f for f in found if "batch 4,096, best peer with" in f["text"]]
    assert figure["value"] == pytest.approx(2.0)


def test_bf16_that_the_processor_does_not_have_is_not_measured() -> None:
    data = measured()
    missing = {"suite": "refine", "contender": "erd_cuda", "batch": 4096, "precision": "bf16"}
    missing |= {"block": "linear", "collapsed": True, "flop": 1.0, "bytes": 1.0}
    data["erd_cuda"]["not_timed"].append(missing | {"missing": "no bf16 instructions"})
    found = targets.check(results.merge(data))
    (figure,) = [f for f in found if f["text"].startswith("refine bf16, collapsed, batch 4,096")]
    assert "value" not in figure
    assert "not measured: no bf16 instructions" in targets.cells(figure)


def test_no_target_is_met_that_was_not_measured(merged: dict[str, Any]) -> None:
    (figure,) = [f for f in merged["targets"] if "lstsq" in f["text"]]
    assert "value" not in figure and "not measured" in targets.cells(figure)
    assert targets.check(results.merge(measured()) | {"device": "cuda"}) == []


# ---- the page ------------------------------------------------------------------------------------


def test_the_page_needs_no_other_file(merged: dict[str, Any]) -> None:
    pytest.importorskip("matplotlib")
    page = report.write_report(merged)
    assert "own targets" in page and "promise" not in page
    for text in ("A processor", "avx2", "abc123", "2026-11-23", "torch 2.13.0", "GFLOP/s"):
        assert text in page
    assert "20.0 (20.0 to 20.0) GB/s" in page and "3.00x" in page
    assert "50.0% (50.0 to 50.0)" in page and "refine linear, batch 4,096" in page
    assert "No module named &#x27;openvino&#x27;" in page
    assert page.count("<svg") == 1  # the refiner's: it alone has several batches
    assert "the paper's 4,000" in page and "times as many" in page
    assert page.count('<tr class="ours">') == 3  # two batches, and a training step
    assert not re.search(r'(src|href)="(?!#|data:)', page)
    assert "gpu" not in page.lower().replace("on a gpu", "")


def test_times_keep_one_unit() -> None:
    assert report.duration(843.21, 762.0, 1140.4) == "843 us (762 to 1,140)"
    assert report.duration(1.5e6, 999.0, 2e6) == "1.5 s (0.000999 to 2)"


def test_no_workplace_in_the_page(merged: dict[str, Any]) -> None:
    pytest.importorskip("matplotlib")
    assert report.write_report(merged) == report.write_report(merged)
    assert str(Path.home()) not in report.write_report(merged)


# ---- what got slower -----------------------------------------------------------------------------


def steady(scale: float, noise: float = 0.0) -> dict[str, Any]:
    """Without the slow turn; in every turn samples are off by the noise, up and down."""
    data = measured(scale)
    data["benchmarks"] = [e for e in data["benchmarks"] if e["extra_info"]["turn"] < 3]
    for entry in data["benchmarks"]:
        middle = entry["stats"]["data"][len(entry["stats"]["data"]) // 2]
        entry["stats"]["data"] = [(1 - noise) * middle, middle, (1 + noise) * middle]
    return results.merge(data)


@pytest.mark.parametrize(
    ("scale", "slower", "faster"),
    [(1.0, False, False), (1.02, False, False), (1.2, True, False), (0.8, False, True)],
)
def test_what_changed_by_more_than_the_noise(scale: float, slower: bool, faster: bool) -> None:
    found = compare.changes(steady(1.0), steady(scale))
    assert len(found) == 4  # our refiner twice, our training step, one of our calls
    refiner = [each for each in found if each["name"].startswith("refine")]
    assert len(refiner) == 2
    assert all((each["slower"], each["faster"]) == (slower, faster) for each in refiner)
    assert not any(each["slower"] for each in found if each not in refiner)
    assert ("SLOWER" in compare.table(found)) == slower


def test_a_noisy_run_accuses_nobody() -> None:
    assert any(each["slower"] for each in compare.changes(steady(1.0), steady(1.04)))
    assert not any(each["slower"] for each in compare.changes(steady(1.0), steady(1.04, 0.3)))


def test_other_machines_are_not_compared() -> None:
    old = results.merge(measured())
    compare.check_comparable(old, MACHINE, "cpu")
    with pytest.raises(ValueError, match="the earlier run had threads 2, this one has 1"):
        compare.check_comparable(old, MACHINE | {"threads": 1}, "cpu")
    with pytest.raises(ValueError, match="the earlier run was on cpu, this one on cuda"):
        compare.check_comparable(old, MACHINE, "cuda")


def test_committed_results_can_be_compared_with() -> None:
    files = sorted((Path(__file__).parent.parent / "benchmarks" / "results").glob("*/bench.json"))
    assert files
    for path in files:
        old = results.read(path)
        compare.check_comparable(old, old["machine"], old["device"])
        assert compare.changes(old, old)


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The command with a measurement that takes no time; the folder it writes to."""
    pytest.importorskip("matplotlib")

    def measure(plan: str, device: str, threads: int | None) -> dict[str, Any]:
        found = steady(1.0)
        return found | {"targets": targets.check(found)}

    monkeypatch.setattr(measure_module, "measure", measure)
    monkeypatch.setattr(measure_module, "check_installed", lambda: None)
    monkeypatch.setattr(machine, "machine_facts", lambda device: MACHINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_command_writes_a_page_and_compares(
    pretended: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--quick", "--device", "cpu", "--json", "now.json"]) == 0
    assert (pretended / "erd-bench.html").is_file()
    said = capsys.readouterr().out
    assert "NOT MET" in said and "not measured: OpenVINO: No module named 'openvino'" in said
    again = ["bench", "--device", "cpu", "-o", "b.html", "--compare", "now.json"]
    assert main(again) == 0
    said = capsys.readouterr().out
    assert "0 of 4 figures got slower" in said and "is older than" not in said
    fast = steady(0.5)
    for row in fast["rows"]:
        row.pop("of_fma_low", None)
    (pretended / "fast.json").write_text(json.dumps(fast))
    assert main([*again[:-1], "fast.json"]) == 1
    said = capsys.readouterr().out
    assert "2 of 4 figures got slower by more than the noise" in said
    assert "fast.json is older than fractions of the ceilings by turns" in said


def test_wrong_results_end_with_status_1(
    pretended: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = measured()
    data["erd_cuda"]["not_timed"][0] = data["erd_cuda"]["not_timed"][0] | {"failed": "error 0.1"}
    del data["erd_cuda"]["not_timed"][0]["missing"]
    monkeypatch.setattr(measure_module, "measure", lambda *_: results.merge(data) | {"targets": []})
    assert main(["bench", "--device", "cpu"]) == 1
    assert "FAILED refine, batch 1, OpenVINO: error 0.1" in capsys.readouterr().out
    assert "FAILED: error 0.1" in (pretended / "erd-bench.html").read_text()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["-o", "nowhere/a.html"], "cannot write nowhere/a.html: there is no directory nowhere"),
        (["--json", "nowhere/a.json"], "cannot write nowhere/a.json: there is no directory"),
        (["--compare", "gone.json"], "gone.json: No such file or directory"),
    ],
)
def test_mistakes_are_found_before_anything_is_measured(
    options: list[str], sentence: str, pretended: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--device", "cpu", *options]) == 2
    assert sentence in capsys.readouterr().err
    assert list(pretended.iterdir()) == []


def test_a_gpu_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(measure_module, "check_installed", lambda: None)
    assert main(["bench", "--device", "cuda"]) == 2
    assert "--device is cuda, but torch finds no GPU" in capsys.readouterr().err
    assert bench.choose_device("auto") == "cpu"


def test_what_is_not_installed_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = measure_module.importlib.util.find_spec
    monkeypatch.setattr(
        measure_module.importlib.util,
        "find_spec",
        lambda name: None if name == "pytest_benchmark" else known(name),
    )
    assert main(["bench"]) == 2
    assert capsys.readouterr().err == (
        "erd-cuda: benchmarks need pytest-benchmark; install with: pip install 'erd-cuda[bench]'\n"
    )
