"""PoseDataset and its pose file: indexing, selecting, merging, hashing, saving, damage."""

from __future__ import annotations

import copy
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import data_helpers as files
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from erd_cuda import Camera
from erd_cuda.data import PoseDataset, h36m17, load_dataset, read_poses, write_poses


@pytest.fixture
def small(tmp_path: Path) -> PoseDataset:
    files.mocap_folder(tmp_path)
    return load_dataset(tmp_path, "all", keypoints="distorted")


def with_confidence(data: PoseDataset) -> PoseDataset:
    return replace(data, confidence=torch.rand(data.pose.shape[:2]))


def assert_same(one: PoseDataset, other: PoseDataset) -> None:
    assert one.metadata() == other.metadata()
    assert one.tensors().keys() == other.tensors().keys()
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, other.tensors()[name]), name
        assert tensor.dtype == other.tensors()[name].dtype, name


def test_indexing(small: PoseDataset) -> None:
    data = with_confidence(small)
    assert len(data) == 4 * (4 + 3 + 6 + 5)
    mask = data.view == 2
    for index, rows in (
        (3, [3]),
        (-1, [len(data) - 1]),
        (slice(2, 9, 3), [2, 5, 8]),
        ([4, 0], [4, 0]),
        (torch.tensor([7, 7]), [7, 7]),
        (torch.tensor(7), [7]),
        (mask, mask.nonzero()[:, 0].tolist()),
        (mask.tolist(), mask.nonzero()[:, 0].tolist()),
        ([], []),
    ):
        part = data[index]
        assert len(part) == len(rows)
        for name, tensor in part.tensors().items():
            assert torch.equal(tensor, data.tensors()[name][rows]), name
        assert part.takes == data.takes and part.camera.model == data.camera.model


@pytest.mark.parametrize("index", [72, -73])
def test_index_out_of_range(small: PoseDataset, index: int) -> None:
    with pytest.raises(IndexError, match=f"index {index} is out of range for 72 samples"):
        small[index]


def test_mask_of_the_wrong_length(small: PoseDataset) -> None:
    with pytest.raises(ValueError, match=r"a mask must have shape \(72,\), got \(3,\)"):
        small[torch.tensor([True, False, True])]


def test_select_keeps_used_names(small: PoseDataset) -> None:
    part = small.select(subjects=["C", "A"], actions=["Jump", "Run"])
    assert (part.subjects, part.actions) == (["A", "C"], ["Run", "Jump"])
    assert part.takes == ["A/Run 1", "C/Jump 1"]
    assert [part.takes[index] for index in part.take.unique()] == part.takes
    expected = small[(small.take == 1) | (small.take == 3)]
    assert torch.equal(part.pose, expected.pose)
    assert part.subject.tolist() == [0] * 12 + [1] * 20
    assert len(small.select(takes=["A/Run 1"], subjects=["B"])) == 0
    assert_same(small.select(), small)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"subjects": ["Z"]}, ValueError, "subjects: 'Z' is not in small, which has A, B, C"),
        ({"actions": ["Walk 1"]}, ValueError, "actions: 'Walk 1' is not in small"),
        ({"takes": ["Walk 1"]}, ValueError, "takes: 'Walk 1' is not in small, which has A/Walk 1"),
        ({"takes": "A/Walk 1"}, TypeError, "takes: expected a list of names, got the single"),
    ],
)
def test_select_names_what_it_does_not_know(
    small: PoseDataset, arguments: dict[str, Any], kind: type, message: str
) -> None:
    with pytest.raises(kind, match=message):
        small.select(**arguments)


def test_sequence(small: PoseDataset) -> None:
    part = small.sequence("B/Walk 1", view=3)
    assert part.frame.tolist() == list(range(6)) and part.view.tolist() == [3] * 6
    with pytest.raises(ValueError, match=r"take 'B/Walk 1' has the views \[0, 1, 2, 3\], not 4"):
        small.sequence("B/Walk 1", view=4)


def test_concat_merges_names(small: PoseDataset) -> None:
    parts = [small.select(subjects=[name]) for name in ("C", "A", "B")]
    merged = PoseDataset.concat(parts)
    assert merged.subjects == ["C", "A", "B"] and merged.actions == ["Jump", "Walk", "Run"]
    assert merged.splits == small.splits
    for name in ("A", "B", "C"):
        assert_same(merged.select(subjects=[name]), small.select(subjects=[name]))
    again = PoseDataset.concat([small[:30], small[30:]])
    assert_same(again, small)


def test_concat_fills_in_confidence(small: PoseDataset) -> None:
    first = with_confidence(small[:5])
    merged = PoseDataset.concat([first, small[5:9]])
    assert merged.confidence is not None and first.confidence is not None
    assert torch.equal(merged.confidence[:5], first.confidence)
    assert (merged.confidence[5:] == 1).all()


def test_concat_refuses_what_does_not_fit(small: PoseDataset, tmp_path: Path) -> None:
    pinhole = load_dataset(tmp_path, "all")
    sixteen = load_dataset(tmp_path, "all", keypoints="distorted", joints=16)
    with pytest.raises(ValueError, match="at least one PoseDataset, got none"):
        PoseDataset.concat([])
    with pytest.raises(ValueError, match="differ in their camera model: h36m and pinhole"):
        PoseDataset.concat([small, pinhole])
    with pytest.raises(ValueError, match="differ in their skeleton"):
        PoseDataset.concat([small, sixteen])
    with pytest.raises(ValueError, match="differ in their keypoint source: distorted and gt"):
        PoseDataset.concat([small, replace(small, keypoint_source="gt")])


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"keypoints": torch.zeros(72, 16, 2)}, ValueError, r"keypoints: expected shape \(72, 17"),
        ({"root": torch.zeros(72, 2)}, ValueError, r"root: expected shape \(72, 3\), got \(72, 2"),
        ({"confidence": torch.zeros(72)}, ValueError, r"confidence: expected shape \(72, 17\)"),
        (
            {"pose": torch.zeros(72, 17, 3).double()},
            TypeError,
            "pose: expected dtype torch.float32",
        ),
        (
            {"view": torch.zeros(72)},
            TypeError,
            "view: expected dtype torch.int8, got torch.float32",
        ),
        ({"frame": [0] * 72}, TypeError, "frame: expected a tensor, got list"),
        ({"camera": Camera(torch.ones(4))}, ValueError, r"camera: expected batch shape \(72,\)"),
        ({"takes": ["A/Walk 1"]}, ValueError, "take: indices must be from 0 to 0, the names given"),
    ],
)
def test_tensors_must_fit(
    small: PoseDataset, change: dict[str, Any], kind: type, message: str
) -> None:
    with pytest.raises(kind, match=message):
        replace(small, **change)


def test_hash_depends_on_content_only(small: PoseDataset, tmp_path: Path) -> None:
    base = small.content_hash()
    assert base == load_dataset(tmp_path, "all", keypoints="distorted").content_hash()
    assert replace(small, name="other").content_hash() == base
    assert small[torch.arange(len(small))].content_hash() == base
    for name in small.tensors():
        other = copy.deepcopy(small)
        other.tensors()[name].view(-1)[-1] += 1
        assert other.content_hash() != base, name
    changed = [
        replace(small, subjects=["A", "B", "D"]),
        replace(small, fps=31.0),
        replace(small, skeleton=replace(h36m17, name="x")),
        with_confidence(small),
        small[:-1],
    ]
    hashes = {each.content_hash() for each in changed}
    assert len(hashes) == len(changed) and base not in hashes


@pytest.mark.parametrize("scored", [False, True])
def test_save_and_load(small: PoseDataset, scored: bool, tmp_path: Path) -> None:
    data = with_confidence(small) if scored else small
    path = tmp_path / "poses.safetensors"
    data.save(path)
    assert_same(PoseDataset.load(path), data)
    # A part shares memory with the whole, of which only the part may be written.
    data[10:20].save(path)
    assert_same(PoseDataset.load(path), data[10:20])
    assert path.stat().st_size < 20_000
    data[:0].save(path)
    assert len(PoseDataset.load(path)) == 0
    left_over = {each.name for each in tmp_path.iterdir() if "poses" in each.name}
    assert left_over == {"poses.safetensors"}


def test_the_same_poses_give_the_same_bytes(small: PoseDataset, tmp_path: Path) -> None:
    for name in ("a", "b"):
        small.save(tmp_path / f"{name}.safetensors")
    one, other = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("a", "b"))
    assert one == other


def test_saving_to_wrong_places(small: PoseDataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.safetensors, got 'poses\.npz'"):
        small.save(tmp_path / "poses.npz")
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        small.save(tmp_path / "nowhere" / "poses.safetensors")


def test_a_failed_save_leaves_the_old_file(small: PoseDataset, tmp_path: Path) -> None:
    path = tmp_path / "poses.safetensors"
    small.save(path)
    before = path.read_bytes()
    broken = copy.copy(small)
    broken.frame = "no tensor"  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        write_poses(path, broken)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir() if "poses" in each.name] == [path.name]


def test_truncated_pose_files_are_refused_at_every_length(
    small: PoseDataset, tmp_path: Path
) -> None:
    whole, part = tmp_path / "whole.safetensors", tmp_path / "part.safetensors"
    small.save(whole)
    data = whole.read_bytes()
    for length in [0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1]:
        part.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"part\.safetensors is truncated, or not a safetens"):
            read_poses(part)


def rewritten(path: Path, change: Any) -> None:
    """Write a pose file again with its header changed."""
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        tensors = {name: file.get_tensor(name).clone() for name in names}
        about = json.loads(file.metadata()["erd_cuda.poses"])
    about, tensors = change(about, tensors)
    save_file(tensors, path, metadata={"erd_cuda.poses": json.dumps(about)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda a, t: (a | {"version": 2}, t),
            "a pose file of version 2; this release of erd_cuda",
        ),
        (lambda a, t: ({}, t), "a pose file of version None"),
        (lambda a, t: ([], t), "a pose file of version None"),
        (lambda a, t: ({"version": 1}, t), "damaged pose file .KeyError: 'camera_model'"),
        (lambda a, t: (a | {"skeleton": 3}, t), "damaged pose file"),
        (lambda a, t: (a | {"camera_model": "fisheye"}, t), "damaged pose file .*fisheye"),
        (lambda a, t: (a | {"takes": []}, t), "damaged pose file .*take: indices"),
        (
            lambda a, t: (a, t | {"root": t["root"][:5]}),
            r"damaged pose file .*root: expected shape",
        ),
        (lambda a, t: (a, {"root": t["root"]}), "damaged pose file .KeyError: 'intrinsics'"),
    ],
)
def test_wrong_headers(small: PoseDataset, change: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "poses.safetensors"
    small.save(path)
    rewritten(path, lambda about, tensors: (about, tensors))
    assert_same(read_poses(path), small)
    rewritten(path, change)
    with pytest.raises(ValueError, match=message):
        read_poses(path)


def test_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(FileNotFoundError, match=r"x\.safetensors: there is no such file"):
        read_poses(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="is a safetensors file, but not a pose file of erd_cuda"):
        read_poses(path)
    for content in (b"plain text, no header", struct.pack("<Q", 2) + b"{", b"\x80\x04."):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.safetensors is truncated, or not a safetensors"):
            read_poses(path)


@pytest.mark.parametrize("split", ["train", "test", "all"])
def test_a_pose_file_stands_for_its_source(split: str, tmp_path: Path) -> None:
    files.mocap_folder(tmp_path)
    path = tmp_path / "poses.safetensors"
    load_dataset(tmp_path, "all").save(path)
    assert_same(load_dataset(path, split), load_dataset(tmp_path, split))
    if split == "train":
        chosen = {"subjects": ["A"], "actions": ["Walk", "Run 1"], "stride": 2}
        one, other = load_dataset(path, split, **chosen), load_dataset(tmp_path, split, **chosen)
        assert_same(one, other)
        # Every second of every second frame is every fourth.
        one.save(tmp_path / "half.safetensors")
        quarter = load_dataset(tmp_path / "half.safetensors", "train", stride=2)
        assert_same(quarter, load_dataset(tmp_path, split, **(chosen | {"stride": 4})))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test"}, "has no samples for split 'test'"),
        ({"keypoints": "gt"}, "holds 2D of the kind 'pinhole', not 'gt'"),
        ({"cameras": "x.json"}, "fixed in a pose file"),
        ({"joints": 16}, "fixed in a pose file"),
        ({"subjects": ["C"]}, "subjects: 'C' is not among the train subjects of .*: A, B"),
        ({"actions": ["Jump"]}, "actions: 'Jump' is not among the actions of .*: Walk, Run"),
    ],
)
def test_wrong_arguments_for_a_pose_file(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    files.mocap_folder(tmp_path)
    path = tmp_path / "poses.safetensors"
    load_dataset(tmp_path, "train").save(path)
    assert len(load_dataset(path, "train", keypoints="pinhole")) == 4 * 13
    with pytest.raises(ValueError, match=message):
        load_dataset(path, **({"split": "train"} | arguments))


def test_a_pose_file_without_splits(small: PoseDataset, tmp_path: Path) -> None:
    path = tmp_path / "poses.safetensors"
    replace(small, splits={}).save(path)
    assert len(load_dataset(path, "all")) == len(small)
    with pytest.raises(ValueError, match="does not say which subjects are for train; use split="):
        load_dataset(path, "train")


def test_takes_of_subjects_with_a_slash(tmp_path: Path) -> None:
    files.humaneva_folder(tmp_path)
    files.write_calibrations(tmp_path / "h")
    path = tmp_path / "poses.safetensors"
    load_dataset(tmp_path, "all", cameras=tmp_path / "h").save(path)
    data = load_dataset(path, "train", actions=["Walking"])
    assert data.takes == ["Train/S1/Walking 1 chunk0"]
