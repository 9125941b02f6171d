"""Jobs are trained once, found again, continued after an interruption, and never see test data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import erd_cuda.reproduce.jobs as jobs_module
import erd_cuda.reproduce.runner as runner_module
from erd_cuda.data import PoseDataset, load_dataset
from erd_cuda.reproduce import EXPERIMENTS, Bench, Job, Runner, Schedule, Source, Sources
from erd_cuda.reproduce.jobs import in_order
from erd_cuda.training import RECIPES, TrainConfig, TrainingInterrupted, train

SCHEDULE = Schedule(
    seeds=(0,), most_poses=300, stages=2, lifter_epochs=2, martinez_width=32, stage_epochs=1
)
JOB = Job("main", "GT2D")


class SmallSource(Source):
    """Synthetic motion, thinned out in the test split too."""

    def _load(self, split: str, kind: str) -> PoseDataset:
        data = load_dataset("synthetic", split, stride=50)
        if kind == "GT2D":
            return data
        noise = torch.Generator().manual_seed(len(split))
        return replace(
            data,
            keypoints=data.keypoints + 5 * torch.randn(data.keypoints.shape, generator=noise),
        )


@pytest.fixture(scope="module")
def sources() -> Sources:
    return Sources({"main": SmallSource("synthetic")})


def small_runner(folder: Path, sources: Sources, schedule: Schedule = SCHEDULE) -> Runner:
    return Runner(folder, sources, schedule, progress=False)


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("nothing should be trained")


# ---- jobs ----------------------------------------------------------------------------------------


def test_every_difference_has_a_folder_of_its_own() -> None:
    jobs = [
        JOB,
        *(
            replace(JOB, **change)
            for change in (
                {"source": "humaneva"},
                {"input": "DET2D"},
                {"lifter": "lcn"},
                {"features": "concat"},
                {"root": "solve"},
                {"block": "relu"},
                {"confidence_weights": True},
                {"residual_limit": 25.0},
                {"pca": 30},
                {"seed": 1},
            )
        ),
    ]
    keys = [job.key(SCHEDULE, "a", "b") for job in jobs]
    keys += [JOB.key(SCHEDULE, "c", "b"), JOB.key(SCHEDULE, "a", "c")]
    keys += [JOB.key(replace(SCHEDULE, stage_epochs=2), "a", "b")]
    assert len(set(keys)) == len(keys)
    assert JOB.key(SCHEDULE, "a", "b") == Job("main", "GT2D").key(SCHEDULE, "a", "b")


def test_a_setting_that_is_new_leaves_what_is_trained_valid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As long as it is at its default."""
    before = JOB.key(SCHEDULE, "a", "b")

    @dataclass(frozen=True)
    class LaterConfig(TrainConfig):
        novelty: float = 0.0

    monkeypatch.setattr(jobs_module, "TrainConfig", LaterConfig)
    monkeypatch.setattr(jobs_module, "_DEFAULTS", LaterConfig().to_dict())
    assert "novelty" in JOB.config(SCHEDULE).to_dict()
    assert JOB.key(SCHEDULE, "a", "b") == before


def test_inputs_that_differ_in_the_camera_only_share_a_lifter() -> None:
    assert replace(JOB, input="lens ignored", features="concat").base == replace(JOB, input="lens")
    bare = replace(JOB, input="DET2D, no confidences", confidence_weights=True)
    assert bare.base == replace(JOB, input="DET2D, no confidences")


def test_lifters_come_before_what_is_built_on_them() -> None:
    concat = replace(JOB, features="concat")
    assert in_order([concat, JOB, concat]) == [JOB, concat]
    assert replace(JOB, root="solve", pca=30, seed=2).base == replace(JOB, pca=30, seed=2)


# ---- running -------------------------------------------------------------------------------------


def test_what_is_done_is_not_done_again(
    tmp_path: Path, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = small_runner(tmp_path, sources)
    first.run([replace(JOB, features="concat")])
    monkeypatch.setattr(runner_module, "train", refuse)
    second = small_runner(tmp_path, sources)
    second.run([replace(JOB, features="concat"), JOB])
    for job in (JOB, replace(JOB, features="concat")):
        assert second[job].by_stage() == first[job].by_stage()
        assert second[job].actions == first[job].actions
        assert second.lifted_again(job) == first.lifted_again(job)
    with pytest.raises(AssertionError, match="nothing should be trained"):
        second.run([replace(JOB, seed=1)])


def test_stages_share_the_lifter(tmp_path: Path, sources: Sources) -> None:
    runner = small_runner(tmp_path, sources)
    concat = replace(JOB, features="concat")
    runner.run([concat])
    assert runner[concat].by_stage()[0] == runner[JOB].by_stage()[0]
    assert runner[concat].by_stage()[1] != runner[JOB].by_stage()[1]
    lifters = [runner.model(job).lifter.state_dict() for job in (JOB, concat)]
    for name, tensor in lifters[0].items():
        assert torch.equal(tensor, lifters[1][name])


def interrupting(after: int) -> Callable[..., Any]:
    """`train` with somebody who presses Ctrl-C after a number of epochs."""

    def interrupted(*arguments: Any, on_epoch: Callable[[Any], None], **options: Any) -> Any:
        seen = 0

        def count(record: Any) -> None:
            nonlocal seen
            on_epoch(record)
            seen += 1
            if seen == after:
                raise KeyboardInterrupt

        return train(*arguments, on_epoch=count, **options)

    return interrupted


@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupted_job_goes_on_to_the_same_result(
    after: int, tmp_path: Path, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = small_runner(tmp_path / "whole", sources)
    whole.run([JOB])
    with monkeypatch.context() as patch:
        patch.setattr(runner_module, "train", interrupting(after))
        with pytest.raises(TrainingInterrupted):
            small_runner(tmp_path / "parts", sources).run([JOB])
    parts = small_runner(tmp_path / "parts", sources)
    parts.run([JOB])
    assert parts[JOB].by_stage() == whole[JOB].by_stage()


def test_training_never_sees_test_data(tmp_path: Path, sources: Sources) -> None:
    """Other test poses change no bit of the model, and no test subject is trained on."""
    train_set, test_set = sources.train("main", "GT2D", SCHEDULE), sources.test("main", "GT2D")
    assert not set(train_set.subjects) & set(test_set.subjects)

    class OtherTest(SmallSource):
        def _load(self, split: str, kind: str) -> PoseDataset:
            data = super()._load(split, kind)
            return data if split == "train" else replace(data, pose=2 * data.pose)

    models, errors = [], []
    for name, source in (("a", SmallSource("synthetic")), ("b", OtherTest("synthetic"))):
        runner = small_runner(tmp_path / name, Sources({"main": source}))
        runner.run([JOB])
        models.append(runner.model(JOB).state_dict())
        errors.append(runner[JOB].by_stage()[-1])
    assert errors[0] != errors[1]
    for name, tensor in models[0].items():
        assert torch.equal(tensor, models[1][name]), name


def test_a_simulated_detector_errs_as_much_as_asked_for() -> None:
    source = Source("synthetic", noise=8.0)
    for split in ("train", "test"):
        found, truth = source.load(split, "DET2D", 2000), source.load(split, "GT2D", 2000)
        seen = found.confidence > 0
        error = (found.keypoints - truth.keypoints).norm(dim=-1)[seen].mean()
        assert float(error) == pytest.approx(8.0, rel=0.1)


# ---- experiments ---------------------------------------------------------------------------------


def test_table2_on_two_seeds(tmp_path: Path, sources: Sources) -> None:
    schedule = replace(SCHEDULE, seeds=(0, 1))
    runner = small_runner(tmp_path, sources, schedule)
    bench = Bench(runner, schedule)
    experiment = EXPERIMENTS["table2"]
    runner.run(each for job in experiment.jobs for each in bench.seeds(job))
    table = experiment.table(bench)
    assert [row[:2] for row in table.rows] == [
        (features, kind)
        for kind in ("GT2D", "DET2D")
        for features in ("init2d", "proj2d", "concat", "residual")
    ]
    for row in table.rows:
        before, after, gain = row[2:5]
        assert len(before.values) == 2
        assert gain.values == pytest.approx(
            [b - a for b, a in zip(before.values, after.values, strict=True)]
        )


def test_the_papers_numbers_stand_beside_ours(tmp_path: Path, sources: Sources) -> None:
    runner = small_runner(tmp_path, sources)
    bench = Bench(runner, SCHEDULE, printed=frozenset({"GT2D"}))
    experiment = EXPERIMENTS["table2"]
    runner.run(each for job in experiment.jobs for each in bench.seeds(job))
    table = experiment.table(bench)
    assert table.columns[-2:] == ["paper: lifter", "paper: ERD"]
    assert table.rows[3][:2] == ("residual", "GT2D") and table.rows[3][-2:] == (37.5, 33.9)
    assert table.rows[7][:2] == ("residual", "DET2D") and table.rows[7][-2:] == (None, None)


def test_beyond_the_paper(tmp_path: Path, sources: Sources) -> None:
    """Every row is of its own model, or of what that model was told."""
    runner = small_runner(tmp_path, sources)
    experiment = EXPERIMENTS["beyond"]
    pinhole = Bench(runner, SCHEDULE)
    jobs = pinhole.jobs(experiment)
    assert not any(job.confidence_weights for job in jobs), "there are no confidences"
    assert {job.input for job in jobs} == {"GT2D", "DET2D"}, "there are other kinds of 2D"
    runner.run(jobs)
    table = experiment.table(pinhole)
    limited = f"residual limit {RECIPES['best']['residual_limit']:g} px"
    methods = ["the paper's", "ReLU blocks", "residual+pose", limited]
    assert [row[:3] for row in table.rows] == [
        (kind, root, method)
        for kind in ("GT2D", "DET2D")
        for root in ("given", "solved")
        for method in (*methods, "known size")
    ]
    for row in table.rows:
        *errors, change = row[3:]
        assert len(errors) == 3 and all(error.mean > 0 for error in errors)
        assert (change is None) == (row[2] == "the paper's")
    first, told = table.rows[0], table.rows[len(methods)]
    assert told[-1].mean == pytest.approx(100 * (told[-2].mean / first[-2].mean - 1))
    assert told[3].mean != first[3].mean, "the lifter's poses have another size"
    again = small_runner(tmp_path, sources)
    again.run(jobs)
    assert again.with_known_size(JOB) == runner.with_known_size(JOB)


def test_kinds_of_2d() -> None:
    """Synthetic cameras have lenses, the simulated detector has confidences."""
    source = Source("synthetic")
    assert source.kinds() == {"GT2D", "DET2D", "DET2D, no confidences", "lens", "lens ignored"}
    exact, lens, ignored = (
        source.load("test", kind, 500) for kind in ("GT2D", "lens", "lens ignored")
    )
    assert torch.equal(lens.keypoints, ignored.keypoints)
    assert ignored.camera.model == "pinhole" and lens.camera.model == "h36m"
    assert 0.01 < float((lens.keypoints - exact.keypoints).norm(dim=-1).mean()) < 10
    found, bare = (source.load("test", kind, 500) for kind in ("DET2D", "DET2D, no confidences"))
    assert bare.confidence is None and torch.equal(bare.keypoints, found.keypoints)


def test_a_pose_file_without_a_lens(tmp_path: Path) -> None:
    load_dataset("synthetic", "all", stride=50).save(tmp_path / "poses.safetensors")
    kinds = Source(str(tmp_path / "poses.safetensors")).kinds()
    assert kinds == {"GT2D", "DET2D", "DET2D, no confidences"}
