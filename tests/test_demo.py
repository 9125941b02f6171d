"""The demo: its table, its timing, the clips it picks, and the files it leaves."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch

import erd_cuda
from erd_cuda.benchmarks.problems import FEATURES
from erd_cuda.cli import main
from erd_cuda.data import PoseDataset, synthetic_motion
from erd_cuda.demo import (
    StageErrors,
    choose_clips,
    compare_speed,
    eager_stages,
    machine,
    measure_errors,
)
from erd_cuda.demo.speed import random_input
from erd_cuda.evaluation import evaluate
from erd_cuda.modules import ERD, MartinezLifter


@pytest.fixture(scope="module")
def motion() -> PoseDataset:
    return synthetic_motion(
        train_subjects=0,
        test_subjects=2,
        split="test",
        seconds=1.5,
        actions=["Walking", "Reaching"],
    )


def make_model(motion: PoseDataset, **options: object) -> ERD:
    """Untrained, but normalised to the data, with BatchNorm statistics that are not the default."""
    torch.manual_seed(5)
    lifter = MartinezLifter(width=32, blocks=1)
    lifter.fit_normalization(motion.keypoints, motion.pose)
    erd = ERD(lifter, width=32, stages=3, skeleton=motion.skeleton, **options)  # type: ignore[arg-type]
    erd.fit_normalization(motion.keypoints, motion.pose)
    erd.train()
    with torch.no_grad():
        root = motion.root if erd.root == "given" else None
        erd(motion.keypoints, motion.camera, root)
    return erd.eval()


@pytest.fixture(scope="module")
def model(motion: PoseDataset) -> ERD:
    return make_model(motion)


@pytest.fixture(scope="module")
def model_file(model: ERD, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    model.notes = {"acknowledgement": "Thanks to everybody who walked."}
    model.save(path)
    return path


def test_demo_prints_tables_and_writes_page_and_picture(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "new" / "folder"
    assert main(["demo", "-o", str(out), "--model", str(model_file), "--quick"]) == 0
    printed = capsys.readouterr().out
    data = erd_cuda.load_dataset("synthetic", "test")
    assert printed.startswith("small on synthetic, subjects it has not seen: Test1, Test2\n")
    for action in data.actions:
        numbers = re.search(rf"^{action} +\d+( +\d+\.\d){{4}} +[+-]\d+\.\d %$", printed, re.M)
        assert numbers, action
    assert re.search(r"^mean over actions +2,880( +\d+\.\d){4} ", printed, re.M)
    for batch in ("1", "200", "4,096"):
        assert re.search(
            rf"^ +{batch}( +[\d,]+){{2}} +\d+\.\dx +\d+\.\dx to \d+\.\dx ", printed, re.M
        )
    assert machine() in printed
    assert "This motion is procedural" in printed
    page, picture = out / "demo.html", out / "demo.png"
    assert f"page     {page}\n" in printed
    assert f"picture  {picture}\n" in printed
    assert sorted(out.iterdir()) == [page, picture]
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")
    text = page.read_text("utf-8")
    assert "Thanks to everybody who walked." in text
    shown = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert [clip["title"] for clip in shown["clips"]] == data.actions
    assert {clip["frames"] for clip in shown["clips"]} == {150}
    assert shown["clips"][0]["stageNames"] == ["Lifter", "Stage 1", "Stage 2", "Stage 3"]


def test_demo_without_matplotlib_still_writes_the_page(
    model_file: Path,
    motion: PoseDataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr("erd_cuda.cli.demo.BATCHES", (1,))
    data = tmp_path / "walk.safetensors"
    motion.save(data)
    arguments = ["--model", str(model_file), "--data", str(data), "--quick"]
    assert main(["demo", "-o", str(tmp_path), *arguments]) == 0
    printed = capsys.readouterr()
    assert "needs matplotlib; install it with: pip install 'erd-cuda[viewer]'" in printed.err
    assert (tmp_path / "demo.html").is_file()
    assert not (tmp_path / "demo.png").exists()


def test_demo_names_a_model_that_does_not_exist(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "-o", str(tmp_path / "out"), "--model", "nobody"]) == 2
    assert "no file 'nobody' and no bundled model of that name" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("root", ["given", "solve"])
def test_errors_are_those_of_an_evaluation(motion: PoseDataset, root: str) -> None:
    model = make_model(motion, root=root)
    table = evaluate(model, motion, roots=(root,))
    errors = measure_errors(model, motion)
    order = [table.actions.index(name) for name in errors.actions()]
    expected = table.values[root]["MPJPE"][order]
    torch.testing.assert_close(errors.means(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(errors.mean(), table.mean(root), rtol=1e-5, atol=0)


def test_another_number_of_joints_is_refused(motion: PoseDataset) -> None:
    other = ERD(MartinezLifter(num_joints=16, width=8, blocks=1), num_joints=16, width=8)
    with pytest.raises(ValueError, match=r"the model has 16 joints but the data set .* has 17"):
        measure_errors(other, motion)


def test_verdict_tells_where_refinement_does_not_help(motion: PoseDataset) -> None:
    walking = motion.action == motion.actions.index("Walking")
    good = torch.tensor([50.0, 40.0]).repeat(len(motion), 1)
    assert StageErrors(motion, good).verdict() == (
        "The last stage is better than the lifter for every action: 50.0 to 40.0 mm on average."
    )
    mixed = torch.where(walking[:, None], torch.tensor([50.0, 52.0]), good)
    assert StageErrors(motion, mixed).verdict() == (
        "The last stage is better than the lifter for 1 of 2 actions (50.0 to 46.0 mm on average); "
        "it is no better for Walking."
    )
    assert re.search(
        r"^Walking +360 +50\.0 +52\.0 +\+4\.0 %$", StageErrors(motion, mixed).table(), re.M
    )


def test_clips_are_median_takes_and_typical_frames(model: ERD, motion: PoseDataset) -> None:
    errors = measure_errors(model, motion)
    clips = choose_clips(model, motion, errors)
    assert [clip.sequence.title for clip in clips] == motion.actions
    for clip in clips:
        refined = clip.sequence.errors()
        assert refined is not None
        means = sorted(
            float(errors.per_pose[(motion.take == take) & (motion.view == view), -1].mean())
            for take, name in enumerate(motion.takes)
            if name.split("/")[1].startswith(clip.sequence.title)
            for view in range(4)
        )
        assert float(refined[-1].mean()) == pytest.approx(means[3], rel=1e-5)
        distance = abs(refined[[0, -1]] - refined[[0, -1]].mean(axis=1, keepdims=True)).sum(axis=0)
        assert distance[clip.frame] == distance.min()


def test_missing_joints_are_missing_in_the_clip(model: ERD, motion: PoseDataset) -> None:
    walk = motion.sequence(motion.takes[0])
    walk.confidence = torch.ones(len(walk), 17)
    walk.confidence[:, 13] = 0.0
    (clip,) = choose_clips(model, walk, measure_errors(model, walk))
    missing = torch.isnan(clip.sequence.keypoints).all(dim=-1)
    assert missing.sum(dim=0).tolist() == [45 * (joint == 13) for joint in range(17)]


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize(("pca", "limit"), [(None, None), (12, None), (None, 30.0)])
def test_eager_peer_computes_the_same(
    motion: PoseDataset, features: str, pca: int | None, limit: float | None
) -> None:
    model = make_model(motion, features=features, pca=pca, residual_limit=limit)
    keypoints, pose, root, intrinsics = random_input(model, motion, 50, seed=1)
    with torch.no_grad():
        eager = eager_stages(model, keypoints, pose, root, intrinsics)
        fused = model(keypoints, intrinsics, root, pose=pose)
        step = pose
        for k in range(model.stages):
            step = model.stage(k, keypoints, step, root, intrinsics)
    assert (eager - pose).abs().max() > 1.0
    torch.testing.assert_close(eager, fused, rtol=0, atol=2e-2)
    torch.testing.assert_close(eager, step, rtol=0, atol=2e-2)


def test_speed_is_measured(model: ERD, motion: PoseDataset) -> None:
    speed = compare_speed(model, motion, batch=16, rounds=3)
    assert (speed.batch, speed.rounds) == (16, 3)
    assert 0 < speed.lowest <= speed.ratio <= speed.highest
    assert min(speed.fused, speed.eager) > 16
    assert 0 < speed.difference < 2e-2
