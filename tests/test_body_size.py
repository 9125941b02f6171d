"""A person's known size: how it is measured, and what a model and the commands do with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_training import held_out_set, trained_model

import erd_cuda
from erd_cuda import ERD, Skeleton, bone_length
from erd_cuda.body_size import scaled_to
from erd_cuda.cli import main
from erd_cuda.evaluation import evaluate

# A square of side 3 and a diagonal from its corner.
BENT = Skeleton("bent", ("a", "b", "c", "d"), (-1, 0, 1, 0), (), ())
POSE = torch.tensor([[0.0, 0, 0], [3, 0, 0], [3, 4, 0], [0, 0, -5]], dtype=torch.float64)


def call(erd: ERD, count: int = 20, **options: Any) -> torch.Tensor:
    data = held_out_set()[:count]
    with torch.no_grad():
        return erd(data.keypoints, data.camera, return_stages=True, **options)


def test_length_is_the_sum_over_bones() -> None:
    assert bone_length(POSE, BENT) == 3 + 4 + 5
    both = torch.stack((POSE, 2 * POSE + 7))
    assert bone_length(both, BENT).tolist() == [12, 24]


def test_scaled_about_the_root() -> None:
    poses = torch.stack((POSE, POSE, POSE, torch.zeros_like(POSE)))
    scaled = scaled_to(poses, torch.tensor([6.0, 0.0, -1.0, 6.0], dtype=torch.float64), BENT)
    assert torch.equal(scaled[0], POSE / 2)
    # Unknown sizes, and a pose that has none.
    assert torch.equal(scaled[1:], poses[1:])


def test_gradients_reach_pose_and_length() -> None:
    pose = POSE.clone().requires_grad_()
    length = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p, s: scaled_to(p, s, BENT), (pose, length))
    nowhere = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    scaled_to(nowhere, length, BENT).sum().backward()
    assert nowhere.grad is not None and nowhere.grad.isfinite().all()


def test_a_model_starts_from_the_scaled_pose() -> None:
    erd = trained_model()
    data = held_out_set()[:20]
    length = data.person_size()
    assert erd.skeleton is not None
    told = call(erd, root=data.root, bone_length=length)
    torch.testing.assert_close(bone_length(told[0], erd.skeleton), length)
    untold = call(erd, root=data.root)
    torch.testing.assert_close(told, call(erd, root=data.root, pose=told[0]))
    assert torch.equal(call(erd, root=data.root, bone_length=torch.zeros(20)), untold)
    one = call(erd, root=data.root, bone_length=4000.0)
    torch.testing.assert_close(bone_length(one[0], erd.skeleton), torch.full((20,), 4000.0))


def test_a_solved_root_moves_with_the_size() -> None:
    """The same picture: twice the person at twice the distance."""
    erd = trained_model(root="solve")
    data = held_out_set()[:20]
    assert erd.skeleton is not None
    roots = []
    for factor in (1.0, 2.0):
        pose = erd.scaled(erd.lift(data.keypoints), factor * data.person_size())
        roots.append(erd.resolve_root(data.keypoints, pose, data.camera))
    torch.testing.assert_close(roots[1], 2 * roots[0], rtol=1e-4, atol=1.0)


def test_train_mode_too() -> None:
    erd = trained_model().train()
    data = held_out_set()[:20]
    stages = erd(
        data.keypoints,
        data.camera,
        data.root,
        return_stages=True,
        bone_length=data.person_size(),
    )
    assert erd.skeleton is not None
    torch.testing.assert_close(bone_length(stages[0], erd.skeleton), data.person_size())


def test_person_size_is_the_mean_over_a_subject() -> None:
    data = held_out_set()
    size, own = data.person_size(), bone_length(data.pose, data.skeleton)
    for subject in data.subject.unique():
        rows = data.subject == subject
        assert len(size[rows].unique()) == 1
        torch.testing.assert_close(size[rows][0], own[rows].mean())


def test_evaluation_tells_the_model() -> None:
    """The lifter's column changes to that of poses of the true size."""
    erd, data = trained_model(), held_out_set()
    told = evaluate(erd, data, roots=("given",), known_size=True)
    initial = erd.scaled(erd.lift(data.keypoints).detach(), data.person_size())
    expected = evaluate(erd, replace(data, initial=initial), roots=("given",))
    torch.testing.assert_close(told.values["given"]["MPJPE"], expected.values["given"]["MPJPE"])


@pytest.mark.parametrize("length", ["one", "each"])
def test_refine_command(length: str, tmp_path: Path) -> None:
    trained_model().save(tmp_path / "model.safetensors")
    data = held_out_set()[:20]
    size = 4000.0 * torch.ones(20) if length == "one" else data.person_size()
    arrays = {
        "keypoints": data.keypoints.numpy(),
        "camera": data.camera.intrinsics.numpy(),
        "root": data.root.numpy(),
        "bone_length": np.float32(4000.0) if length == "one" else size.numpy(),
    }
    np.savez(tmp_path / "in.npz", **arrays)
    command = ["refine", str(tmp_path / "in.npz"), "-o", str(tmp_path / "out.npz")]
    assert main([*command, "--model", str(tmp_path / "model.safetensors"), "--stages"]) == 0
    with np.load(tmp_path / "out.npz") as out:
        stages = torch.from_numpy(out["stages"])
    torch.testing.assert_close(bone_length(stages[0], data.skeleton), size)
    torch.testing.assert_close(
        stages, call(trained_model(), root=data.root, bone_length=size), rtol=1e-5, atol=1e-3
    )


@pytest.mark.parametrize(
    ("value", "error", "sentence"),
    [
        (torch.ones(3), ValueError, r"bone_length has shape \(3,\).* batch \(20,\)"),
        (torch.ones(20, dtype=torch.int64), TypeError, "bone_length is torch.int64"),
        ("tall", TypeError, "bone_length is str"),
        (True, TypeError, "bone_length is bool"),
    ],
)
def test_wrong_lengths(value: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        call(trained_model(), root=held_out_set().root[:20], bone_length=value)


def test_a_model_without_a_skeleton_has_no_bones(tmp_path: Path) -> None:
    erd = ERD(stages=1, width=8).eval()
    data = held_out_set()[:20]
    with pytest.raises(ValueError, match="this model has no skeleton"):
        call(erd, root=data.root, pose=data.pose, bone_length=4000.0)
    with pytest.raises(ValueError, match=r"pose has shape \(4, 3\), expected \(\.\.\., 17, 3\)"):
        erd_cuda.bone_length(POSE, data.skeleton)
