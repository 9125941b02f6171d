"""``erd-cuda refine``: files in, files out, and a sentence for every file that is wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_training import held_out_set, trained_model

from erd_cuda import ERD, RootStatus
from erd_cuda.cli import main
from erd_cuda.data import coco17

COUNT = 30


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    trained_model().save(path)
    return str(path)


def arrays(**changes: Any) -> dict[str, Any]:
    """The first poses of the small test set as plain arrays; a change to None leaves one out."""
    data = held_out_set()[:COUNT]
    values: dict[str, Any] = {
        "keypoints": data.keypoints.numpy(),
        "camera": data.camera.intrinsics.numpy(),
        "root": data.root.numpy(),
        **changes,
    }
    return {name: value for name, value in values.items() if value is not None}


def refine(folder: Path, model: str, contents: dict[str, Any], *options: str) -> dict[str, Any]:
    np.savez(folder / "in.npz", **contents)
    out = folder / "out.npz"
    command = ["refine", str(folder / "in.npz"), "-o", str(out), "--model", model, *options]
    assert main(command) == 0
    with np.load(out, allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def expected(root: Any, **options: Any) -> torch.Tensor:
    data = held_out_set()[:COUNT]
    with torch.no_grad():
        return trained_model()(data.keypoints, data.camera, root, return_stages=True, **options)


def test_npz_in_npz_out(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = refine(tmp_path, model, arrays(), "--stages", "--batch-size", "7")
    stages = expected(held_out_set().root[:COUNT])
    torch.testing.assert_close(out["stages"], stages, atol=1e-3, rtol=1e-5)
    assert torch.equal(out["pose"], out["stages"][-1])
    assert torch.equal(out["root"], held_out_set().root[:COUNT])
    assert out["status"].dtype == torch.int32 and not out["status"].any()
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{tmp_path / 'out.npz'}: 30 poses in ")
    assert "root given" in captured.out and captured.err == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npz", "out.npz"]


def test_a_model_trained_with_solved_roots_solves_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained_model(root="solve").save(tmp_path / "solving.safetensors")
    out = refine(tmp_path, str(tmp_path / "solving.safetensors"), arrays(root=None))
    captured = capsys.readouterr()
    assert "root solve" in captured.out and captured.err == ""
    assert sorted(out) == ["pose", "root", "status"]
    torch.testing.assert_close(out["pose"], expected("solve")[-1], atol=1e-3, rtol=1e-5)
    truth = held_out_set().root[:COUNT]
    assert (out["root"] - truth).norm(dim=-1).median() < 0.2 * truth.norm(dim=-1).median()


def test_a_root_that_is_not_used_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained_model(root="solve").save(tmp_path / "solving.safetensors")
    refine(tmp_path, str(tmp_path / "solving.safetensors"), arrays())
    assert "in.npz holds a root, which is not used: it is solved" in capsys.readouterr().err
    refine(tmp_path, str(tmp_path / "solving.safetensors"), arrays(), "--root", "given")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("mode", ["solve", "solve_each_stage"])
def test_the_root_mode_can_be_chosen_at_a_risk(
    tmp_path: Path, model: str, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = refine(tmp_path, model, arrays(root=None), "--root", mode)
    assert "trained with given roots; with solved ones" in capsys.readouterr().err
    torch.testing.assert_close(out["pose"], expected(mode)[-1], atol=1e-3, rtol=1e-5)


def test_initial_poses_and_one_camera(tmp_path: Path, model: str) -> None:
    data = held_out_set()[:COUNT]
    camera = np.array([1145.0, 1144.0, 512.0, 515.0])
    out = refine(tmp_path, model, arrays(pose=data.pose.numpy(), camera=camera), "--stages")
    assert torch.equal(out["stages"][0], data.pose)
    with torch.no_grad():
        pose = trained_model()(
            data.keypoints, torch.from_numpy(camera).float(), data.root, pose=data.pose
        )
    torch.testing.assert_close(out["pose"], pose, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("third_channel", [True, False])
def test_missing_joints_may_be_nan(
    tmp_path: Path, model: str, third_channel: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    keypoints = held_out_set().keypoints[:COUNT].clone()
    confidence = torch.ones(COUNT, 17)
    confidence[4, 3] = confidence[9, :16] = 0
    keypoints[4, 3] = float("nan")
    if third_channel:
        contents = arrays(keypoints=torch.cat([keypoints, confidence[..., None]], -1).numpy())
    else:
        contents = arrays(keypoints=keypoints.numpy(), confidence=confidence.numpy())
    out = refine(tmp_path, model, contents, "--root", "solve", "--stages")
    assert out["pose"].isfinite().all()
    assert out["status"].nonzero().tolist() == [[9]]
    assert out["status"][9] == RootStatus.TOO_FEW_JOINTS
    assert torch.equal(out["stages"][-1, 9], out["stages"][0, 9])
    assert "1 roots not solvable" in capsys.readouterr().out
    torch.testing.assert_close(
        out["pose"], expected("solve", confidence=confidence)[-1], atol=1e-3, rtol=1e-5
    )


def test_pose_files_and_safetensors_output(tmp_path: Path, model: str) -> None:
    data = held_out_set()[:COUNT]
    # The truth in the file must not leak into the result.
    replace(data, pose=torch.full_like(data.pose, 1e4)).save(tmp_path / "in.safetensors")
    out = tmp_path / "out.safetensors"
    command = ["refine", str(tmp_path / "in.safetensors"), "-o", str(out), "--model", model]
    assert main([*command, "--stages"]) == 0
    result = load_file(out)
    torch.testing.assert_close(result["stages"], expected(data.root), atol=1e-3, rtol=1e-5)
    assert torch.equal(result["root"], data.root)


def test_precision_reaches_the_stages(tmp_path: Path, model: str) -> None:
    automatic = refine(tmp_path, model, arrays())["pose"]
    assert torch.equal(refine(tmp_path, model, arrays(), "--precision", "fp32")["pose"], automatic)
    rounded = refine(tmp_path, model, arrays(), "--precision", "bf16", "--stages")["stages"]
    largest = (rounded[-1] - automatic).norm(dim=-1).max()
    assert 1e-3 < largest < 10.0
    data = held_out_set().root[:COUNT]
    assert torch.equal(rounded, expected(data, precision="bf16"))


def test_fp16_without_a_gpu_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source in ("none.npz", "none.parquet"):
        command = ["refine", source, "-o", "out", "--model", "nobody", "--precision", "fp16"]
        assert main([*command, "--workers", "2"]) == 2
        assert capsys.readouterr().err == (
            "erd-cuda: precision is 'fp16', which needs a GPU, but device is 'cpu': expected "
            "'auto', 'fp32' or 'bf16'\n"
        )


def metres(name: str) -> Any:
    return {name: getattr(held_out_set(), name)[:COUNT].numpy() / 1000}


def of_keypoints(change: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
    return {"keypoints": change(held_out_set().keypoints[:COUNT].numpy())}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (of_keypoints(lambda px: px / 500 - 1), "{} all lie between -2 and 2: are they normalised"),
        (of_keypoints(lambda px: px * 20), "standard deviations from those that the model was tr"),
        (metres("root"), "half of the roots in {} are nearer than"),
        ({"root": -held_out_set().root[:COUNT].numpy()}, "the roots in {} lie behind the camera"),
        (metres("pose"), "half of the joints of the poses in {} lie within 0."),
        ({"bone_length": np.float32(4.1)}, "bone_length in {} has the median 4.1 mm: is it in"),
        ({"bone_length": np.float32(0.0)}, None),
        (of_keypoints(lambda px: px + 200), None),
        ({"pose": held_out_set().pose[:COUNT].numpy()}, None),
    ],
)
def test_wrong_units_are_warned_of(
    tmp_path: Path,
    model: str,
    changes: dict[str, Any],
    sentence: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    refine(tmp_path, model, arrays(**changes))
    error = capsys.readouterr().err
    if sentence is None:
        assert error == ""
    else:
        assert error.startswith("erd-cuda: ") and error.count("\n") == 1
        assert sentence.format(tmp_path / "in.npz") in error, error


def test_missing_joints_and_unused_roots_have_no_units(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What stands in a missing joint's place is not looked at."""
    keypoints = held_out_set().keypoints[:COUNT].numpy().copy()
    confidence = np.ones((COUNT, 17), np.float32)
    confidence[:, :9] = 0
    keypoints[:, :9] = 1e6
    refine(tmp_path, model, arrays(keypoints=keypoints, confidence=confidence))
    assert capsys.readouterr().err == ""
    keypoints = keypoints / 500 - 1
    keypoints[:, :9] = np.nan
    refine(tmp_path, model, arrays(keypoints=keypoints, confidence=confidence))
    assert "are they normalised" in capsys.readouterr().err
    refine(tmp_path, model, arrays(confidence=np.zeros_like(confidence)))
    assert capsys.readouterr().err == ""
    refine(tmp_path, model, arrays(**metres("root")), "--root", "solve")
    assert "metres" not in capsys.readouterr().err


def test_no_poses_give_no_poses(tmp_path: Path, model: str) -> None:
    contents = {name: value[:0] for name, value in arrays().items()}
    out = refine(tmp_path, model, contents, "--stages")
    assert out["pose"].shape == (0, 17, 3) and out["stages"].shape == (4, 0, 17, 3)


def nan_at(sample: int, joint: int) -> Any:
    keypoints = held_out_set().keypoints[:COUNT].clone()
    keypoints[sample, joint, 1] = float("nan")
    return keypoints.numpy()


@pytest.mark.parametrize(
    ("contents", "sentence"),
    [
        ({"keypoints": None}, "has no array keypoints; it holds camera, root"),
        ({"camera": None}, "has no array camera; it holds keypoints, root"),
        ({"keypoints": np.zeros((30, 16, 2))}, "has 16 joints but the model has 17"),
        ({"keypoints": np.zeros((30, 34))}, "shape (N, J, 2) or (N, J, 3), got (30, 34)"),
        ({"camera": np.ones((29, 4))}, "camera in {} must have the shape (4,) or (30, 4), got (29"),
        ({"root": np.zeros((30, 1, 3))}, "root in {} must have the shape (30, 3), got (30, 1, 3)"),
        ({"pose": np.zeros((30, 17, 2))}, "pose in {} must have the shape (30, 17, 3), got (30"),
        ({"confidence": np.ones(30)}, "confidence in {} must have the shape (30, 17), got (30,)"),
        (
            {"keypoints": np.ones((30, 17, 3)), "confidence": np.ones((30, 17))},
            "has confidences twice",
        ),
        (
            {"keypoints": nan_at(11, 6)},
            "NaN or infinity at sample 11, joint 6 (1 such joints in all); give missing joints",
        ),
        ({"camera": np.array([1e3, np.inf, 0, 0])}, "camera in {} holds NaN or infinity"),
        ({"root": np.full((30, 3), np.nan)}, "root in {} holds NaN or infinity"),
        ({"pose": np.full((30, 17, 3), np.nan)}, "pose in {} holds NaN or infinity"),
        ({"keypoints": np.array([["a", "b"]])}, "must hold real numbers, got dtype <U1"),
        ({"keypoints": np.array([None, 1])}, "holds Python objects (a pickle), which are not read"),
    ],
)
def test_wrong_arrays_get_one_sentence(
    tmp_path: Path,
    model: str,
    contents: dict[str, Any],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "in.npz"
    np.savez(path, **arrays(**contents))
    assert main(["refine", str(path), "-o", str(tmp_path / "out.npz"), "--model", model]) == 2
    error = capsys.readouterr().err
    assert error.startswith("erd-cuda: ") and error.count("\n") == 1
    assert sentence.format(path) in error
    assert not (tmp_path / "out.npz").exists()


class _Code:
    """Unpickling this would make a directory."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def test_code_in_an_npz_does_not_run(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bomb = np.empty((), dtype=object)
    bomb[()] = _Code(tmp_path / "ran")
    np.savez(tmp_path / "in.npz", keypoints=bomb, camera=np.ones(4))
    command = ["refine", str(tmp_path / "in.npz"), "-o", str(tmp_path / "o.npz"), "--model", model]
    assert main(command) == 2
    assert "holds Python objects" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_wrong_files_get_one_sentence(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "whole.npz", **arrays())
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "other.json").write_text("{}")
    data = held_out_set()[:COUNT]
    replace(data, skeleton=coco17).save(tmp_path / "coco.safetensors")
    data.save(tmp_path / "poses.safetensors")
    poses = (tmp_path / "poses.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(poses[: len(poses) // 2])
    for name, output, options, sentence in (
        ("none.npz", "o.npz", [], "there is no file"),
        ("half.npz", "o.npz", [], "is not a readable .npz file"),
        ("other.json", "o.npz", [], "must be a pose file (.safetensors) or an .npz"),
        ("coco.safetensors", "o.npz", [], "has the joints Nose, "),
        ("half.safetensors", "o.npz", [], "is truncated"),
        ("whole.npz", "o.json", [], "must end in .npz or .safetensors, got 'o.json'"),
        ("whole.npz", "no/o.npz", [], "there is no directory"),
    ):
        command = ["refine", str(tmp_path / name), "-o", str(tmp_path / output), "--model", model]
        assert main([*command, *options]) == 2, name
        error = capsys.readouterr().err
        assert error.startswith("erd-cuda: ") and error.count("\n") == 1
        assert sentence in error, error


def test_given_roots_must_be_given(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "in.npz", **arrays(root=None))
    command = ["refine", str(tmp_path / "in.npz"), "-o", str(tmp_path / "o.npz"), "--model", model]
    assert main(command) == 2
    assert "holds no root and the model was trained with given ones" in capsys.readouterr().err
    assert main([*command, "--root", "given"]) == 2
    assert "holds no root, so --root given is impossible" in capsys.readouterr().err


def test_a_model_without_lifter_needs_initial_poses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ERD(None, stages=1, width=8).eval().save(tmp_path / "bare.safetensors")
    bare = str(tmp_path / "bare.safetensors")
    np.savez(tmp_path / "in.npz", **arrays())
    command = ["refine", str(tmp_path / "in.npz"), "-o", str(tmp_path / "o.npz"), "--model", bare]
    assert main(command) == 2
    assert "the model has no lifter, so" in capsys.readouterr().err
    poses = held_out_set().pose[:COUNT].numpy()
    assert refine(tmp_path, bare, arrays(pose=poses))["pose"].shape == (COUNT, 17, 3)
