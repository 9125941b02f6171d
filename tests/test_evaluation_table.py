"""Evaluation tables: numbers against plain loops, and what text, CSV and JSON say about them."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest
import torch
from small_training import held_out_set, trained_model

from erd_cuda import RootStatus, solve_root
from erd_cuda.data import PoseDataset, coco17
from erd_cuda.evaluation import (
    EvaluationTable,
    evaluate,
    mpjpe,
    n_mpjpe,
    p_mpjpe,
    staged_poses,
    without_drifted_takes,
)
from erd_cuda.modules import ERD

METRICS = ("MPJPE", "P-MPJPE", "N-MPJPE")


def uneven() -> PoseDataset:
    """Actions of unequal lengths, so that the two kinds of mean differ."""
    data = held_out_set()
    return data[torch.arange(len(data)) % (data.action.long() + 1) == 0]


def stages_of(erd: ERD, data: PoseDataset, root: object) -> torch.Tensor:
    with torch.no_grad():
        return erd(data.keypoints, data.camera, root, data.confidence, return_stages=True)


@pytest.mark.parametrize("mode", ["given", "solve", "solve_each_stage"])
@pytest.mark.parametrize("chunk", [1_000_000, 50])
def test_rows_are_the_means_of_the_actions_poses(mode: str, chunk: int) -> None:
    erd, data = trained_model(), uneven()
    table = evaluate(erd, data, roots=(mode,), chunk=chunk)
    stages = stages_of(erd, data, data.root if mode == "given" else mode)
    assert table.actions == sorted(set(data.actions))
    assert table.stages == 3 and table.samples == len(data) == sum(table.counts)
    for metric, function in (("MPJPE", mpjpe), ("P-MPJPE", p_mpjpe), ("N-MPJPE", n_mpjpe)):
        means = []
        for row, name in enumerate(table.actions):
            chosen = data.action == data.actions.index(name)
            assert table.counts[row] == int(chosen.sum())
            error = [function(pose[chosen], data.pose[chosen]).double().mean() for pose in stages]
            means.append(torch.stack(error))
            torch.testing.assert_close(
                table.values[mode][metric][row], means[-1], rtol=1e-4, atol=0
            )
        expected = torch.stack(means).mean(dim=0)
        torch.testing.assert_close(table.mean(mode, metric), expected, rtol=1e-4, atol=0)
        everything = torch.stack([function(pose, data.pose).double().mean() for pose in stages])
        torch.testing.assert_close(
            table.mean_over_poses(mode, metric), everything, rtol=1e-4, atol=0
        )
        assert (everything - expected).abs().min() > 0.01
        assert table.ratio(mode, metric) == pytest.approx(float(expected[-1] / expected[0]), 1e-4)


@pytest.mark.parametrize(
    ("trained", "evaluated"),
    [
        ("given", ["given", "solve"]),
        ("solve", ["given", "solve"]),
        ("solve_each_stage", ["given", "solve_each_stage"]),
    ],
)
def test_given_and_solved_roots_are_both_evaluated(trained: str, evaluated: list[str]) -> None:
    table = evaluate(trained_model(root=trained), held_out_set())
    assert list(table.values) == evaluated
    assert table.unsolved == {evaluated[1]: 0}
    given, solved = (table.mean(mode) for mode in evaluated)
    assert given[0] == solved[0], "the lifter knows nothing of roots"
    assert (given[1:] != solved[1:]).all()


def test_poses_without_a_root_are_counted_and_keep_the_lifters_pose() -> None:
    erd, data = trained_model(), held_out_set()[:40]
    confidence = torch.ones(40, 17)
    confidence[[3, 8, 20]] = 0
    data = replace(data, confidence=confidence)
    assert evaluate(erd, data).unsolved == {"solve": 3}
    ((_, result),) = staged_poses(erd, data.keypoints, data.camera, "solve", confidence)
    assert (result.status[[3, 8, 20]] == RootStatus.TOO_FEW_JOINTS).all()
    assert (result.status != 0).sum() == 3
    assert torch.equal(result.stages[-1, [3, 8, 20]], result.stages[0, [3, 8, 20]])


def test_root_errors_are_distances_of_the_solved_roots() -> None:
    erd, data = trained_model(), uneven()
    table = evaluate(erd, data, chunk=100, roots=("given", "solve", "solve_each_stage"))
    assert "root error" not in table.values["given"]
    stages = stages_of(erd, data, "solve")
    centred = stages[0].clone()
    centred[:, 0] = 0
    once = (solve_root(data.keypoints, centred, data.camera) - data.root).norm(dim=-1)
    again = [
        (solve_root(data.keypoints, pose, data.camera) - data.root).norm(dim=-1)
        for pose in stages_of(erd, data, "solve_each_stage")
    ]
    for row, name in enumerate(table.actions):
        chosen = data.action == data.actions.index(name)
        expected = once[chosen].double().mean().expand(4)
        torch.testing.assert_close(
            table.values["solve"]["root error"][row], expected, rtol=1e-4, atol=0
        )
        expected = torch.stack([each[chosen].double().mean() for each in again])
        found = table.values["solve_each_stage"]["root error"][row]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
        assert expected.unique().numel() == 4
    assert "root error" in table.summary()


def test_roots_that_cannot_be_solved_have_no_error() -> None:
    erd, data = trained_model(), held_out_set()[:40]
    confidence = torch.ones(40, 17)
    confidence[[3, 8, 20]] = 0
    kept = [row for row in range(40) if row not in (3, 8, 20)]
    for mode in ("solve", "solve_each_stage"):
        some = evaluate(erd, replace(data, confidence=confidence), roots=(mode,))
        expected = evaluate(erd, data[kept], roots=(mode,)).values[mode]["root error"]
        found = some.values[mode]["root error"]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
    blind = replace(data, confidence=torch.zeros(40, 17))
    assert evaluate(erd, blind, roots=("solve",)).mean("solve", "root error").isnan().all()


def test_staged_poses_report_the_root_they_used() -> None:
    erd, data = trained_model(), held_out_set()[:64]
    results = {
        mode: next(staged_poses(erd, data.keypoints, data.camera, root))[1]
        for mode, root in (
            ("given", data.root),
            ("solve", "solve"),
            ("solve_each_stage", "solve_each_stage"),
        )
    }
    for mode, result in results.items():
        assert torch.equal(
            result.stages, stages_of(erd, data, data.root if mode == "given" else mode)
        )
        assert not result.stages.requires_grad and not result.status.any()
    assert torch.equal(results["given"].root, data.root)
    # Solving once takes the root joint as 0 even where the initial pose has it elsewhere.
    shifted = data.pose.clone()
    shifted[:, 0] = 40
    ((_, result),) = staged_poses(erd, data.keypoints, data.camera, "solve", pose=shifted)
    assert torch.equal(result.root, solve_root(data.keypoints, data.pose, data.camera))
    assert not torch.equal(result.root, solve_root(data.keypoints, shifted, data.camera))
    last = results["solve_each_stage"].stages[-1]
    assert torch.equal(
        results["solve_each_stage"].root, solve_root(data.keypoints, last, data.camera)
    )


def test_initial_poses_take_the_lifters_place_and_cameras_may_be_shared() -> None:
    erd, data = trained_model(), held_out_set()[:30]
    shared = data.camera[0]
    parts = [*staged_poses(erd, data.keypoints, shared, data.root, None, data.pose, chunk=7)]
    assert [part.stop - part.start for part, _ in parts] == [7, 7, 7, 7, 2]
    stages = torch.cat([result.stages for _, result in parts], dim=1)
    assert torch.equal(stages[0], data.pose)
    with torch.no_grad():
        expected = erd(data.keypoints, shared, data.root, pose=data.pose)
    torch.testing.assert_close(stages[-1], expected)


def test_per_subject_rows_are_humanevas() -> None:
    erd, data = trained_model(), held_out_set()
    table = evaluate(erd, data, roots=("given",), per_subject=True)
    assert len(table.actions) == 2 * len(data.actions)
    row = table.actions.index("Test2 Walking")
    walking = data.select(subjects=["Test2"], actions=["Walking"])
    error = mpjpe(stages_of(erd, walking, walking.root)[-1], walking.pose).double().mean()
    assert float(table.values["given"]["MPJPE"][row, -1]) == pytest.approx(float(error), 1e-4)
    assert table.counts[row] == len(walking)


def test_human36ms_drifted_takes_can_be_left_out() -> None:
    data = held_out_set()
    assert without_drifted_takes(data) is None
    names = list(data.takes)
    first, second = data.take.unique()[:2].tolist()
    names[first], names[second] = "S9/Greeting", "S9/Waiting 1"
    kept = without_drifted_takes(replace(data, takes=names))
    assert kept is not None
    assert sorted(set(data.take.tolist()) - set(kept.take.tolist())) == [first, second]
    assert without_drifted_takes(replace(data, takes=names)[data.take == first]) is None


@pytest.fixture(scope="module")
def table() -> EvaluationTable:
    return evaluate(trained_model(), uneven(), model_name="small")


def test_text_has_a_block_per_metric_and_root_and_a_summary(table: EvaluationTable) -> None:
    lines = table.text().splitlines()
    assert lines[0].startswith(f"small on synthetic: {table.samples:,} poses, 12 actions")
    assert "the stages were trained with root given" in lines
    for mode, title in (("given", "root given"), ("solve", "root solved once")):
        for metric in table.values[mode]:
            start = lines.index(f"{metric}, {title}")
            assert lines[start + 1].split() == [
                "action", "poses", "lifter", "stage", "1", "stage", "2", "stage", "3",
            ]  # fmt: skip
            values = table.values[mode][metric]
            for row, name in enumerate(table.actions):
                expected = [name, str(table.counts[row]), *(f"{v:.1f}" for v in values[row])]
                assert lines[start + 2 + row].split() == expected
            mean = [f"{v:.1f}" for v in table.mean(mode, metric)]
            assert lines[start + 14].split()[-4:] == mean
            assert lines[start + 14].startswith("mean over actions ")
            assert lines[start + 15].startswith("mean over poses ")
            summary = [line for line in lines if line.startswith(metric) and title in line]
            assert summary[-1].split()[-5:] == [*mean, f"{table.ratio(mode, metric):.3f}"]


def test_csv_has_every_number(table: EvaluationTable) -> None:
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert len(rows) == (3 + 4) * 14
    assert {row["metric"] for row in rows if row["root"] == "solve"} == {*METRICS, "root error"}
    for row in rows:
        numbers = [float(row[column]) for column in ("lifter", "stage_1", "stage_2", "stage_3")]
        if row["action"] == "mean over actions":
            expected = table.mean(row["root"], row["metric"])
        elif row["action"] == "mean over poses":
            expected = table.mean_over_poses(row["root"], row["metric"])
        else:
            index = table.actions.index(row["action"])
            expected = table.values[row["root"]][row["metric"]][index]
            assert int(row["poses"]) == table.counts[index]
        assert numbers == pytest.approx(expected.tolist(), abs=6e-5)


def test_json_has_every_number_and_nan_becomes_null(table: EvaluationTable) -> None:
    content = json.loads(table.to_json())
    assert content["columns"] == ["lifter", "stage 1", "stage 2", "stage 3"]
    assert content["samples"] == table.samples and content["unsolved_roots"] == {"solve": 0}
    assert content["trained_root"] == "given"
    assert [(r["root"], r["metric"]) for r in content["results"]] == [
        *(("given", metric) for metric in METRICS),
        *(("solve", metric) for metric in (*METRICS, "root error")),
    ]
    for result in content["results"]:
        values = table.values[result["root"]][result["metric"]]
        assert result["per_action"] == dict(zip(table.actions, values.tolist(), strict=True))
        assert result["mean_over_actions"] == table.mean(result["root"], result["metric"]).tolist()
    broken = torch.tensor([[1.0, float("nan")]], dtype=torch.float64)
    odd = EvaluationTable("m", "d", ["A"], [2], {"given": {"MPJPE": broken}})
    assert json.loads(odd.to_json())["results"][0]["per_action"] == {"A": [1.0, None]}


def test_what_cannot_be_evaluated_gets_one_sentence() -> None:
    erd, data = trained_model(), held_out_set()
    with pytest.raises(ValueError, match="holds no poses"):
        evaluate(erd, data[:0])
    with pytest.raises(ValueError, match=r"root mode must be one of given, .*, got 'true'"):
        evaluate(erd, data, roots=("true",))
    with pytest.raises(ValueError, match="the model has no lifter"):
        evaluate(ERD(None, stages=1, skeleton=data.skeleton), data)
    with pytest.raises(ValueError, match=r"the model has 16 joints but the dataset .* has 17"):
        evaluate(ERD(lambda x: x, num_joints=16, stages=1), data)
    with pytest.raises(ValueError, match=r"the model's joints are Nose, .* but those of .* Hip, "):
        evaluate(ERD(lambda x: x, stages=1, skeleton=coco17), data)


def test_columns_of_a_model_that_diverges_do_not_touch() -> None:
    table = evaluate(trained_model(), uneven(), model_name="small")
    errors = table.values["given"]["MPJPE"]
    errors[:, -2:] = torch.tensor([46965717.4, 1e12], dtype=errors.dtype)
    for text in (table.summary(), table.text()):
        assert "   4.7e+07   1.0e+12" in text
