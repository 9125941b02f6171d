"""A lifter as predictions in a file: matched to the samples, checked, trained on, evaluated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_training import held_out_set, run, small_config, train_set, trained_model
from torch import Tensor

from erd_cuda.cli import main
from erd_cuda.data import PoseDataset, load_dataset, with_predictions
from erd_cuda.evaluation import evaluate
from erd_cuda.modules import ERD


def predicted(dataset: PoseDataset) -> Tensor:
    """What the lifter of `trained_model` says."""
    with torch.no_grad():
        return trained_model().lift(dataset.keypoints)


def prediction_file(path: Path, dataset: PoseDataset, poses: Tensor | None = None) -> Path:
    """In each of the layouts that there are, by the name of the file."""
    poses = predicted(dataset) if poses is None else poses
    if path.name == "poses.safetensors":
        replace(dataset, pose=poses).save(path)
    elif path.suffix == ".safetensors":
        save_file({"pose": poses, "root": dataset.root}, path)
    else:
        np.savez(path, pose=poses.numpy(), root=dataset.root.numpy())
    return path


FILES = ("poses.safetensors", "refined.safetensors", "refined.npz")


@pytest.mark.parametrize("name", FILES)
def test_every_layout_is_read(name: str, tmp_path: Path) -> None:
    data = held_out_set()
    path = prediction_file(tmp_path / name, data)
    matched = with_predictions(data, path)
    assert matched.initial is not None and torch.equal(matched.initial, predicted(data))
    assert data.initial is None
    assert torch.equal(matched.pose, data.pose)
    from_tensor = with_predictions(data, predicted(data).double())
    assert from_tensor.initial is not None and from_tensor.initial.dtype == torch.float32
    assert from_tensor.content_hash() == matched.content_hash() != data.content_hash()


def test_a_pose_file_is_matched_by_take_view_and_frame(tmp_path: Path) -> None:
    data = held_out_set()
    both = PoseDataset.concat([train_set(), data])
    shuffled = both[torch.randperm(len(both))]
    path = prediction_file(tmp_path / "poses.safetensors", shuffled, predicted(shuffled))
    some = data[::3]
    matched = with_predictions(some, path)
    assert matched.initial is not None
    torch.testing.assert_close(matched.initial, predicted(some))


def test_erd_cuda_refine_writes_what_is_read(tmp_path: Path) -> None:
    data = held_out_set()
    data.save(tmp_path / "data.safetensors")
    trained_model().save(tmp_path / "model.safetensors")
    refine = ["refine", str(tmp_path / "data.safetensors"), "--model"]
    refine += [str(tmp_path / "model.safetensors"), "--root", "given", "-o"]
    erd, poses = trained_model(), []
    with torch.no_grad():
        expected = erd(data.keypoints, data.camera, data.root)
    for name in FILES[1:]:
        assert main([*refine, str(tmp_path / name)]) == 0
        initial = with_predictions(data, tmp_path / name).initial
        assert initial is not None
        poses.append(initial)
        torch.testing.assert_close(initial, expected)
    # A pose file with predictions is refined from them.
    with_predictions(data, poses[0]).save(tmp_path / "data.safetensors")
    assert main([*refine, str(tmp_path / "again.npz")]) == 0
    with torch.no_grad():
        twice = erd(data.keypoints, data.camera, data.root, pose=poses[0])
    again = with_predictions(data, tmp_path / "again.npz").initial
    assert again is not None
    torch.testing.assert_close(again, twice)


def test_predictions_stay_with_their_samples(tmp_path: Path) -> None:
    data = with_predictions(held_out_set(), predicted(held_out_set()))
    assert data.initial is not None
    index = torch.randperm(len(data))[:50]
    for part, rows in (
        (data[index], index),
        (data[7], [7]),
        (data.to("cpu")[10:20], range(10, 20)),
    ):
        assert part.initial is not None
        assert torch.equal(part.initial, data.initial[list(rows)])
    data.save(tmp_path / "data.safetensors")
    loaded = PoseDataset.load(tmp_path / "data.safetensors")
    assert loaded.initial is not None and torch.equal(loaded.initial, data.initial)
    assert loaded.content_hash() == data.content_hash()
    halves = PoseDataset.concat([data[:100], data[100:]])
    assert halves.initial is not None and torch.equal(halves.initial, data.initial)
    with pytest.raises(ValueError, match="must both have initial poses, or neither"):
        PoseDataset.concat([data[:100], held_out_set()[100:]])
    with pytest.raises(ValueError, match=r"initial: expected shape \(480, 17, 3\)"):
        replace(data, initial=data.initial[:5])


def test_wrong_predictions_get_one_sentence(tmp_path: Path) -> None:
    data, poses = held_out_set(), predicted(held_out_set())
    path = tmp_path / "refined.npz"

    def refused(message: str, changed: Tensor) -> None:
        prediction_file(path, data, changed)
        with pytest.raises(ValueError, match=message):
            with_predictions(data, path)

    refused(r"refined.npz: expected .* shape \(480, 17, 3\) .* got \(479, 17, 3\)", poses[1:])
    refused(r"expected .* shape \(480, 17, 3\) .* got \(480, 16, 3\)", poses[:, 1:])
    refused(r"within 0\.\d+ of the root, .* within \d+ mm; expected .* in mm", poses / 1000)
    refused("expected root-relative poses in mm", poses / 10)
    refused("expected root-relative poses in mm", poses + data.root[:, None])
    broken = poses.clone()
    broken[[3, 7], 2] = float("nan")
    refused(r"2 of 480 poses are NaN or infinite \(the first is number 3\)", broken)
    with pytest.raises(ValueError, match=r"predictions: expected floating point .* torch\.int64"):
        with_predictions(data, poses.long())

    np.savez(path, poses=poses.numpy())
    with pytest.raises(ValueError, match="has no array pose; it holds poses"):
        with_predictions(data, path)
    np.savez(path, pose=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="Python objects"):
        with_predictions(data, path)
    path.write_bytes(b"PK no archive")
    with pytest.raises(ValueError, match=r"not a readable \.npz"):
        with_predictions(data, path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        with_predictions(data, tmp_path / "none.npz")
    other = tmp_path / "poses.csv"
    other.touch()
    with pytest.raises(ValueError, match=r"must be an \.npz or \.safetensors file"):
        with_predictions(data, other)


def test_wrong_pose_files_get_one_sentence(tmp_path: Path) -> None:
    data, path = held_out_set(), tmp_path / "poses.safetensors"
    prediction_file(path, data[:-1], predicted(data)[:-1])
    last = data[-1]
    missing = rf"no prediction for frame {int(last.frame)} of '{last.takes[int(last.take)]}', view"
    with pytest.raises(ValueError, match=missing):
        with_predictions(data, path)
    twice = PoseDataset.concat([data, data[:1]])
    prediction_file(path, twice, predicted(twice))
    with pytest.raises(ValueError, match="two predictions for the same take"):
        with_predictions(data, path)
    names = tuple(name.lower() for name in data.skeleton.joints)
    replace(data, skeleton=replace(data.skeleton, joints=names)).save(path)
    with pytest.raises(ValueError, match=r"has the joints hip, .* but those of .* are Hip, "):
        with_predictions(data, path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="truncated"):
        with_predictions(data, path)
    save_file({"poses": data.pose}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="has no array pose; it holds poses"):
        with_predictions(data, tmp_path / "other.safetensors")


def test_stages_on_predictions_are_those_on_the_lifter_that_made_them(tmp_path: Path) -> None:
    lifter: Any = trained_model().lifter
    data = with_predictions(train_set(), predicted(train_set()))
    test = with_predictions(held_out_set(), predicted(held_out_set()))
    on_lifter = run(tmp_path / "lifter", lifter=lifter, held_out=held_out_set())
    on_poses = run(tmp_path / "poses", dataset=data, held_out=test)
    assert on_poses.lifter is None
    for name, value in on_poses.state_dict().items():
        torch.testing.assert_close(value, on_lifter.state_dict()[name], rtol=1e-4, atol=1e-4)
    assert len(on_poses.notes["training"]["given_poses"]) == 64
    assert not any(key.startswith("lifter") for key in on_poses.notes["training"])
    loaded = ERD.from_pretrained(tmp_path / "poses" / "model.safetensors")
    for root in ("given", "solve"):
        tables = [evaluate(loaded, test), evaluate(on_lifter, held_out_set())]
        torch.testing.assert_close(
            tables[0].values[root]["MPJPE"], tables[1].values[root]["MPJPE"], rtol=1e-3, atol=0.05
        )
    # A given lifter stays with the model though the stages begin with other poses.
    both = run(tmp_path / "both", dataset=data, lifter=lifter)
    assert both.lifter is lifter
    for name, value in on_poses.state_dict().items():
        assert torch.equal(value, both.state_dict()[name])
    with pytest.raises(ValueError, match="other training data"):
        run(tmp_path / "poses", resume=True)
    for pair, who in (((data, held_out_set()), "dataset"), ((train_set(), test), "held_out")):
        with pytest.raises(ValueError, match=f"of dataset and held_out only {who} has initial"):
            run(tmp_path / "mixed", dataset=pair[0], held_out=pair[1])
    with pytest.raises(ValueError, match="give the dataset a lifter's predictions"):
        evaluate(loaded, held_out_set())


def test_the_command_line_takes_predictions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = PoseDataset.concat([train_set(), held_out_set()])
    both.save(tmp_path / "data.safetensors")
    labelled = str(prediction_file(tmp_path / "poses.safetensors", both))
    small = ["--stages", "2", "--width", "32", "--stage-epochs", "2", "--batch-size", "100"]
    train = ["train", "--data", str(tmp_path / "data.safetensors"), *small, "--seed", "5"]
    assert main([*train, "-o", str(tmp_path / "run"), "--predictions", labelled,
                 "--eval-every", "2"]) == 0  # fmt: skip
    assert capsys.readouterr().err.count("held out") == 2
    data = load_dataset(tmp_path / "data.safetensors", "train")
    expected = run(tmp_path / "library", dataset=with_predictions(data, labelled))
    model = tmp_path / "run" / "model.safetensors"
    for name, value in ERD.from_pretrained(model).state_dict().items():
        assert torch.equal(value, expected.state_dict()[name])
    unlabelled = str(prediction_file(tmp_path / "train.npz", data))
    test = load_dataset(tmp_path / "data.safetensors", "test")
    of_test = str(prediction_file(tmp_path / "test.npz", test))
    assert main([*train, "-o", str(tmp_path / "again"), "--predictions", unlabelled,
                 "--eval-every", "2", "--test-predictions", of_test, "--quiet"]) == 0  # fmt: skip
    again = tmp_path / "again" / "model.safetensors"
    assert again.read_bytes() == model.read_bytes()
    capsys.readouterr()

    evaluation = ["evaluate", str(model), "--data", str(tmp_path / "data.safetensors")]
    assert main([*evaluation, "--predictions", of_test]) == 0
    table = evaluate(expected, with_predictions(test, of_test), model_name="model.safetensors")
    assert capsys.readouterr().out == table.text()

    wrong = {
        (*evaluation,): "no lifter, so it cannot be evaluated",
        (*evaluation, "--predictions", unlabelled): "expected floating point poses of shape",
        (*train, "--predictions", of_test): "expected floating point poses of shape",
        (*train, "--predictions", labelled, "--lifter", "lcn"): "exclude each other",
        (*train, "--test-predictions", of_test): "needs --predictions and --eval-every",
    }
    for command, sentence in wrong.items():
        where = ["-o", str(tmp_path / "wrong")] if command[0] == "train" else []
        assert main([*command, *where]) == 2
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1


def test_a_lifter_is_not_left_untrained_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_predictions(train_set(), predicted(train_set())).save(tmp_path / "data.safetensors")
    command = ["train", "--data", str(tmp_path / "data.safetensors"), "-o", str(tmp_path / "run")]
    assert main([*command, "--lifter", "semgcn"]) == 2
    assert "so --lifter semgcn would not be trained" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_config_of_predictions_is_the_runs_own(tmp_path: Path) -> None:
    """Principal components of the stages go with any lifter that was not trained here."""
    data = with_predictions(train_set(), predicted(train_set()))
    erd = run(tmp_path, small_config(pca=20, stages=1), dataset=data)
    assert erd.pca is not None
