"""Missing joints as a lifter sees them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from small_training import held_out_set, run, train_set, trained_model

from erd_cuda.data import DetectorNoise
from erd_cuda.modules import Lifter
from erd_cuda.modules.missing import mean_of_seen, place_missing_joints

MEAN = torch.tensor([[100.0, 200.0], [110.0, 260.0], [90.0, 320.0]], dtype=torch.float64)


def test_they_stay_with_the_person() -> None:
    keypoints = MEAN + torch.tensor([30.0, -20.0], dtype=torch.float64)
    keypoints[0] += 4.0
    keypoints[2] = torch.nan
    confidence = torch.tensor([0.9, 0.2, 0.0], dtype=torch.float64)
    expected = keypoints.clone()
    expected[2] = MEAN[2] + torch.tensor([32.0, -18.0], dtype=torch.float64)
    torch.testing.assert_close(place_missing_joints(keypoints, confidence, MEAN), expected)


def test_nothing_missing_changes_nothing() -> None:
    assert torch.equal(place_missing_joints(MEAN + 1.5, torch.ones(3), MEAN), MEAN + 1.5)


def test_nobody_there_is_the_mean_of_all() -> None:
    nowhere = torch.full_like(MEAN, torch.nan)
    assert torch.equal(place_missing_joints(nowhere, torch.zeros(2, 3), MEAN), MEAN.expand(2, 3, 2))


def test_gradients_ignore_missing_joints() -> None:
    keypoints = (MEAN + 5.0).requires_grad_()
    confidence = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: place_missing_joints(x, confidence, MEAN), (keypoints,)
    )
    (gradient,) = torch.autograd.grad(
        place_missing_joints(keypoints, confidence, MEAN)[2].sum(), keypoints
    )
    assert gradient.tolist() == [[0.5, 0.5], [0.5, 0.5], [0.0, 0.0]]


def test_lifters_are_trained_and_run_on_the_same(tmp_path: Path) -> None:
    """Whatever stands in for a missing joint: a lifter sees it beside the person."""
    data = DetectorNoise(8.0, missing=0.2).apply(train_set())
    assert data.confidence is not None
    missing = (data.confidence <= 0)[..., None]
    erd = run(tmp_path / "one", dataset=data)
    elsewhere = replace(data, keypoints=torch.where(missing, 0.0, data.keypoints))
    same = run(tmp_path / "other", dataset=elsewhere)
    assert same.state_dict().keys() == erd.state_dict().keys()
    for name, value in erd.state_dict().items():
        assert torch.equal(same.state_dict()[name], value), name

    seen = place_missing_joints(data.keypoints, data.confidence, erd.mean2d)
    assert erd.lifter is not None
    torch.testing.assert_close(erd.lift(data.keypoints, data.confidence), erd.lifter(seen))
    broken = data.keypoints.masked_fill(missing, torch.nan)
    assert torch.equal(erd.lift(broken, data.confidence), erd.lift(data.keypoints, data.confidence))


def test_statistics_are_of_joints_that_were_seen(tmp_path: Path) -> None:
    exact = train_set()
    confidence = torch.ones(len(exact), exact.num_joints)
    confidence[::2, 5] = 0.0
    keypoints = exact.keypoints.masked_fill((confidence <= 0)[..., None], 0.0)
    erd = run(tmp_path, dataset=replace(exact, keypoints=keypoints, confidence=confidence))
    assert isinstance(erd.lifter, Lifter)
    assert (erd.mean2d[5] - exact.keypoints[1::2, 5].mean(0)).norm() < 20.0
    assert (erd.std2d[5] - exact.keypoints[1::2, 5].std(0)).norm() < 20.0
    torch.testing.assert_close(erd.lifter.mean2d, erd.mean2d)


def test_the_mean_of_a_joint_that_nobody_has() -> None:
    keypoints = torch.tensor([[[1.0, 2.0], [5.0, 6.0]], [[3.0, 4.0], [7.0, 8.0]]])
    confidence = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert mean_of_seen(keypoints, confidence).tolist() == [[1.0, 2.0], [6.0, 7.0]]


def test_a_person_elsewhere_is_lifted_with_gaps_nearly_as_without() -> None:
    """Filling at the picture's middle would put the joint hundreds of pixels away."""
    erd, data = trained_model(), held_out_set()[:50]
    assert data.confidence is None
    confidence = torch.ones(50, data.num_joints)
    confidence[:, 3] = 0.0
    whole = erd.lift(data.keypoints)
    shifted = data.keypoints + 200.0
    with_gap = erd.lift(shifted, confidence) - erd.lift(shifted)
    assert with_gap.norm(dim=-1).mean() < (erd.lift(shifted) - whole).norm(dim=-1).mean()
