"""Whole training runs: reproducible, greedy, resumable to the bit, and better with every stage."""

from __future__ import annotations

import csv
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import held_out_set, run, small_config, train_set

from erd_cuda.data import PoseDataset
from erd_cuda.evaluation import evaluate
from erd_cuda.modules import ERD
from erd_cuda.training import TrainingInterrupted, trainer
from erd_cuda.training.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from erd_cuda.training.loop import train_epoch


def model_bytes(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


def log_of(out: Path) -> list[dict[str, str]]:
    with open(out / "log.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def interrupt_in_epoch(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Ctrl-C in the middle of the epoch of that number, counted over all phases from 1."""
    calls = 0

    def interrupted(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls < number:
            return train_epoch(*args)
        steps = 0

        def press(*_: Any) -> None:
            nonlocal steps
            steps += 1
            if steps == 4:
                raise KeyboardInterrupt

        return train_epoch(*args[:4], press)

    monkeypatch.setattr(trainer, "train_epoch", interrupted)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    run(out)
    return out


def test_equal_seeds_give_equal_bytes_and_others_do_not(
    uninterrupted: Path, tmp_path: Path
) -> None:
    torch.manual_seed(77)
    before = torch.get_rng_state()
    run(tmp_path / "same")
    assert torch.equal(torch.get_rng_state(), before), "the caller's random state has changed"
    assert model_bytes(tmp_path / "same") == model_bytes(uninterrupted)
    run(tmp_path / "other", small_config(seed=6))
    assert model_bytes(tmp_path / "other") != model_bytes(uninterrupted)


@pytest.mark.parametrize("number", range(1, 7))
def test_a_resumed_run_ends_with_the_same_bytes(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    interrupt_in_epoch(monkeypatch, number)
    with pytest.raises(TrainingInterrupted) as interruption:
        run(tmp_path)
    monkeypatch.undo()
    phase = ("lifter", "stage 1", "stage 2")[(number - 1) // 2]
    assert f"in epoch {(number - 1) % 2 + 1} of 2 of {phase}" in str(interruption.value)
    assert f"{number - 1} finished epochs are kept" in str(interruption.value)
    assert interruption.value.resumable == (number > 1)
    assert not (tmp_path / "model.safetensors").exists()
    if number == 1:
        with pytest.raises(FileNotFoundError, match="no checkpoint to resume from"):
            run(tmp_path, resume=True)
        return
    torch.manual_seed(number)  # whatever the process drew before must not matter
    run(tmp_path, resume=True)
    assert model_bytes(tmp_path) == model_bytes(uninterrupted)
    assert log_of(tmp_path) == log_of(uninterrupted)


@pytest.mark.parametrize(
    "changes",
    [
        {"root": "solve"},
        {"root": "solve_each_stage", "block": "relu"},
        {"features": "concat", "pca": 10},
        {"features": "residual+pose", "pca": 10},
        {"features": "residual+pose", "root": "solve"},
    ],
)
def test_other_methods_train_and_resume_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    config = small_config(**changes)
    trained = run(tmp_path / "whole", config)
    interrupt_in_epoch(monkeypatch, 6)
    with pytest.raises(TrainingInterrupted):
        run(tmp_path / "parts", config)
    monkeypatch.undo()
    run(tmp_path / "parts", config, resume=True)
    assert model_bytes(tmp_path / "parts") == model_bytes(tmp_path / "whole")
    loaded = ERD.from_pretrained(tmp_path / "whole" / "model.safetensors")
    assert {name: loaded.config()[name] for name in changes} == changes
    data = held_out_set()
    with torch.no_grad():
        poses = [erd(data.keypoints, data.camera, data.root) for erd in (trained, loaded)]
    assert torch.equal(*poses)


def test_resuming_a_finished_run_writes_the_same_model_again(
    uninterrupted: Path, tmp_path: Path
) -> None:
    run(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    run(tmp_path, resume=True)
    assert model_bytes(tmp_path) == model_bytes(uninterrupted)


def test_training_is_greedy(tmp_path: Path) -> None:
    """A later stage changes nothing before it."""
    one = run(tmp_path / "one", small_config(stages=1)).state_dict()
    two = run(tmp_path / "two", small_config(stages=2)).state_dict()
    assert any(name.startswith("regressors.1.") for name in two)
    for name, value in one.items():
        assert torch.equal(two[name], value), f"{name} depends on later stages"


def test_held_out_poses_are_shown_and_change_nothing(uninterrupted: Path, tmp_path: Path) -> None:
    erd = run(tmp_path, held_out=held_out_set(), eval_every=2)
    assert model_bytes(tmp_path) == model_bytes(uninterrupted)
    shown = [row["held_out_mpjpe"] for row in log_of(tmp_path)]
    assert shown[0] == shown[2] == shown[4] == ""
    table = evaluate(erd, held_out_set(), roots=("given",))
    expected = table.mean_over_poses("given").tolist()
    assert [float(shown[i]) for i in (1, 3, 5)] == pytest.approx(expected, abs=0.01)


def test_the_run_leaves_its_notes(uninterrupted: Path) -> None:
    erd = ERD.from_pretrained(uninterrupted / "model.safetensors")
    assert erd.notes["training"] == small_config().to_dict()
    assert erd.notes["data"]["content_hash"] == train_set().content_hash()
    assert erd.notes["data"]["poses"] == len(train_set())
    assert erd.notes["data"]["subjects"] == train_set().subjects
    assert erd.skeleton == train_set().skeleton
    assert list(erd.notes["final_epochs"]) == ["lifter", "stage 1", "stage 2"]
    rows = log_of(uninterrupted)
    assert [(row["phase"], row["epoch"]) for row in rows] == [
        (phase, epoch) for phase in ("lifter", "stage 1", "stage 2") for epoch in ("1", "2")
    ]
    assert [float(row["lr"]) for row in rows] == pytest.approx([1e-3, 0.96e-3] + [1e-3] * 4)


def test_a_given_lifter_is_kept_as_it_is(uninterrupted: Path, tmp_path: Path) -> None:
    def given() -> Any:
        return ERD.from_pretrained(uninterrupted / "model.safetensors").lifter

    before = given().state_dict()
    erd = run(tmp_path, small_config(stages=1), lifter=given())
    assert isinstance(erd.lifter, torch.nn.Module)
    for name, value in erd.lifter.state_dict().items():
        assert torch.equal(value, before[name])
    assert [row["phase"] for row in log_of(tmp_path)] == ["stage 1"] * 2
    assert erd.notes["training"]["stages"] == 1
    assert len(erd.notes["training"]["given_lifter"]) == 64
    assert "lifter_epochs" not in erd.notes["training"]
    run(tmp_path, small_config(stages=1), lifter=given(), resume=True)
    other = given()
    other.output.bias.data += 1
    with pytest.raises(ValueError, match="another given lifter"):
        run(tmp_path, small_config(stages=1), lifter=other, resume=True)
    other.num_joints = 16
    with pytest.raises(ValueError, match="given lifter has 16 joints but the dataset has 17"):
        run(tmp_path / "wrong", lifter=other)


def test_stages_improve_people_never_seen(tmp_path: Path) -> None:
    """The whole method on the procedural motion, on a schedule of seconds."""
    config = small_config(
        lifter_width=128, width=128, lifter_epochs=20, stage_epochs=10, lifter_lr_decay=0.9
    )
    erd = run(tmp_path, config)
    table = evaluate(erd, held_out_set())
    lifter, first, second = table.mean("given").tolist()
    assert second < first < lifter
    assert table.ratio("given") < 0.85
    assert table.ratio("solve") < 0.97


@pytest.mark.parametrize(
    ("changes", "options", "sentence"),
    [
        ({"width": 33, "seed": 9}, {}, r"width \(32 there, 33 here\), seed \(5 there, 9 here\)"),
        ({}, {"dataset": train_set()[::2]}, "other training data"),
        ({}, {"resume": False}, "already holds a training run"),
    ],
)
def test_another_runs_checkpoint_is_refused(
    uninterrupted: Path, changes: dict[str, Any], options: dict[str, Any], sentence: str
) -> None:
    before = (uninterrupted / "checkpoint.pt").read_bytes()
    with pytest.raises((ValueError, FileExistsError), match=sentence):
        run(uninterrupted, small_config(**changes), **{"resume": True, **options})
    assert (uninterrupted / "checkpoint.pt").read_bytes() == before


class _Code:
    """Unpickling this would make a directory."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def test_damaged_and_foreign_checkpoints_get_one_sentence(
    uninterrupted: Path, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pt"
    whole = (uninterrupted / "checkpoint.pt").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is not a readable training checkpoint"):
        run(tmp_path, resume=True)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="is not a readable training checkpoint"):
        run(tmp_path, resume=True)
    torch.save({"erd_cuda_checkpoint": 1, "config": _Code(tmp_path / "ran")}, path)
    with pytest.raises(ValueError, match="is not a readable training checkpoint"):
        run(tmp_path, resume=True)
    assert not (tmp_path / "ran").exists()
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="is not a training checkpoint of erd_cuda"):
        run(tmp_path, resume=True)
    torch.save({"erd_cuda_checkpoint": 99}, path)
    with pytest.raises(ValueError, match="has checkpoint format 99, this version reads format 1"):
        run(tmp_path, resume=True)
    torch.save({"erd_cuda_checkpoint": 1, "config": {}}, path)
    with pytest.raises(ValueError, match="lacks or adds entries"):
        run(tmp_path, resume=True)


def test_a_crash_while_writing_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, writes = torch.save, 0

    def full_disk(content: Any, path: Path) -> None:
        nonlocal writes
        writes += 1
        if writes < 3:
            return save(content, path)
        Path(path).write_bytes(b"half of a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path)
    checkpoint = load_checkpoint(tmp_path / "checkpoint.pt")
    assert (checkpoint.phase, checkpoint.epoch) == (0, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint.pt",
        "config.json",
        "log.csv",
    ]


def with_nan(field: str) -> PoseDataset:
    values = getattr(train_set(), field).clone()
    values[[5, 9]] = float("nan")
    return replace(train_set(), **{field: values})


@pytest.mark.parametrize("field", ["keypoints", "pose", "root"])
def test_training_data_with_nan_are_refused(tmp_path: Path, field: str) -> None:
    with pytest.raises(ValueError, match=rf"{field} of .* NaN .* 2 of 1152 poses .* number 5"):
        run(tmp_path / "run", dataset=with_nan(field))
    assert not (tmp_path / "run").exists()


def test_a_single_pose_is_no_training_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"at least two poses, .* holds 1"):
        run(tmp_path, dataset=train_set()[:1])


def test_stages_need_roots_that_can_be_solved(tmp_path: Path) -> None:
    blind = replace(train_set(), confidence=torch.zeros(len(train_set()), 17))
    with pytest.raises(ValueError, match=r"stage 1 has fewer than two .* whose root can be solved"):
        run(tmp_path, small_config(root="solve"), dataset=blind)


def test_progress_off_a_terminal_is_a_line_per_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, small_config(stages=1), progress=True, held_out=held_out_set(), eval_every=2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("lifter epoch 1/2: loss ") and "held out" not in lines[0]
    assert lines[3].startswith("stage 1 epoch 2/2: loss ") and ", held out " in lines[3]
    assert all(" mm, " in line and line.endswith(" s") for line in lines)


def test_progress_on_a_terminal_is_a_bar_with_loss_and_mpjpe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    run(tmp_path, small_config(stages=1), progress=True)
    text = capsys.readouterr().err
    assert "lifter epoch 1/2: " in text and "stage 1 epoch 1/2: " in text
    assert "loss " in text and "MPJPE " in text and "24/24" in text


def test_tensorboard_has_every_epoch_once_even_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board, saves = tmp_path / "board", 0

    def pressed_while_saving(path: Path, checkpoint: Checkpoint) -> None:
        nonlocal saves
        saves += 1
        if saves == 4:
            raise KeyboardInterrupt
        save_checkpoint(path, checkpoint)

    monkeypatch.setattr(trainer, "save_checkpoint", pressed_while_saving)
    with pytest.raises(TrainingInterrupted):
        run(tmp_path / "run", tensorboard=board, held_out=held_out_set())
    monkeypatch.undo()
    run(tmp_path / "run", tensorboard=board, held_out=held_out_set(), resume=True)
    events = EventAccumulator(str(board))
    events.Reload()
    log = log_of(tmp_path / "run")
    for name in ("loss", "mpjpe", "held_out_mpjpe", "lr"):
        for first, phase in ((0, "lifter"), (2, "stage 1"), (4, "stage 2")):
            scalars = events.Scalars(f"{phase}/{name}")
            assert [scalar.step for scalar in scalars] == [first, first + 1]
            expected = [float(row[name]) for row in log[first : first + 2]]
            assert [scalar.value for scalar in scalars] == pytest.approx(expected, rel=1e-5)


def test_tensorboard_missing_is_said_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        run(tmp_path, tensorboard=tmp_path / "board")
    assert not (tmp_path / "checkpoint.pt").exists()


def test_every_phase_has_random_numbers_of_its_own() -> None:
    """torch's CPU generator looks at 32 bits of a seed only."""
    from erd_cuda.training.preparation import stream_seed

    orders = set()
    for seed in (0, 1):
        for index in range(10):
            generator = torch.Generator().manual_seed(stream_seed(seed, index))
            orders.add(tuple(torch.randperm(1000, generator=generator)[:4].tolist()))
    assert len(orders) == 20


class PlainLifter(torch.nn.Module):
    """A lifter of the user's own: nothing but the call is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(34, 51)
        torch.nn.init.normal_(
            self.layer.weight, std=0.01, generator=torch.Generator().manual_seed(0)
        )
        torch.nn.init.zeros_(self.layer.bias)

    def forward(self, keypoints: torch.Tensor) -> torch.Tensor:
        return 100.0 * self.layer((keypoints.flatten(-2) - 500.0) / 100.0).unflatten(-1, (17, 3))


def test_stages_of_a_lifter_of_ones_own(tmp_path: Path) -> None:
    lifter = PlainLifter()
    before = {name: value.clone() for name, value in lifter.state_dict().items()}
    data = train_set()
    erd = trainer.train(small_config(), data, tmp_path, lifter=lifter, progress=False)
    assert erd.lifter is lifter
    for name, value in lifter.state_dict().items():
        assert torch.equal(value, before[name]), "the lifter was trained, too"
    with torch.no_grad():
        stages = erd(data.keypoints, data.camera, data.root, return_stages=True)
        lifted = lifter(data.keypoints)
    errors = (stages - data.pose).norm(dim=-1).mean(dim=(1, 2))
    assert errors[-1] < errors[0]
    saved = ERD.from_pretrained(tmp_path / "model.safetensors")
    assert saved.lifter is None
    with torch.no_grad():
        again = saved(data.keypoints, data.camera, data.root, pose=lifted)
    torch.testing.assert_close(again, stages[-1])
