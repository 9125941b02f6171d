"""DetectorNoise: how large, where, how often, how confident, and the same for every part."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from small_training import held_out_set

from erd_cuda.data import DetectorNoise, PoseDataset, load_dataset
from erd_cuda.data.noise import joint_widths
from erd_cuda.data.skeleton import coco17, humaneva15


@cache
def many() -> PoseDataset:
    """Some 17,000 poses: outliers are so rare and far off that their mean needs many joints."""
    return load_dataset("synthetic", "train", stride=4)


@cache
def noisy() -> PoseDataset:
    return DetectorNoise().apply(many(), seed=3)


def errors(data: PoseDataset, truth: PoseDataset) -> torch.Tensor:
    """Distances (N, J) in px; NaN for missing joints."""
    assert data.confidence is not None
    distance = (data.keypoints - truth.keypoints).double().norm(dim=-1)
    return torch.where(data.confidence > 0, distance, torch.nan)


def rank_correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    ranks = [each.argsort().argsort().double() for each in (one, other)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


@pytest.mark.parametrize(
    "noise",
    [
        DetectorNoise(),
        DetectorNoise(15.0),
        DetectorNoise(3.0, outliers=0, swaps=0, missing=0),
        DetectorNoise(10.0, outliers=0.0, swaps=0.1),
        DetectorNoise(40.0, outliers=0.2, swaps=0.2, missing=0.3),
    ],
)
def test_mean_error(noise: DetectorNoise) -> None:
    mean = float(errors(noise.apply(many()), many()).nanmean())
    assert mean == pytest.approx(noise.mean_error, rel=0.015)


def test_shares_of_missing_joints_and_outliers() -> None:
    noise = DetectorNoise(outliers=0.1, swaps=0.0, missing=0.05)
    data = many()
    error = errors(noise.apply(data, scale=1e-7), data)
    missing = error.isnan()
    assert float(missing.double().mean()) == pytest.approx(0.05, rel=0.03)
    outlier = error > 0.1
    assert float(outlier[~missing].double().mean()) == pytest.approx(0.1, rel=0.03)
    # Any joint, in the first half as in the second, is as likely as any other.
    for part in (outlier[: len(data) // 2], outlier[len(data) // 2 :]):
        shares = part.double().mean(dim=0) / 0.095
        assert float(shares.min()) > 0.85 and float(shares.max()) < 1.15
    # Outliers fill the person's box, and none is outside.
    low, high = data.keypoints.amin(dim=1, keepdim=True), data.keypoints.amax(dim=1, keepdim=True)
    place = ((noise.apply(data, scale=1e-7).keypoints - low) / (high - low))[outlier]
    assert float(place.min()) > -1e-3 and float(place.max()) < 1 + 1e-3
    counts = torch.histc(place[:, 1].double(), bins=5, min=0, max=1) / len(place)
    torch.testing.assert_close(counts, torch.full_like(counts, 0.2), rtol=0.05, atol=0)


def test_swapped_joints_lie_at_the_other_side() -> None:
    data = many()
    noise = DetectorNoise(outliers=0.0, swaps=0.2, missing=0.0)
    found = noise.apply(data, scale=1e-7)
    left, right = list(data.skeleton.left), list(data.skeleton.right)
    mirrored = data.keypoints.clone()
    mirrored[:, left], mirrored[:, right] = data.keypoints[:, right], data.keypoints[:, left]
    moved = (found.keypoints - data.keypoints).norm(dim=-1) > 1.0
    away = (found.keypoints - mirrored).norm(dim=-1) > 1e-2
    assert not (moved & away).any()
    apart = (mirrored - data.keypoints).norm(dim=-1) > 1.0
    assert torch.equal(moved[:, left] & apart[:, left], moved[:, right] & apart[:, right])
    assert float(moved[apart].double().mean()) == pytest.approx(0.2, rel=0.05)
    unswapped = replace(noise, swaps=0.0).apply(data, scale=1e-7)
    assert found.confidence is not None and unswapped.confidence is not None
    assert torch.equal(found.confidence, unswapped.confidence)


def test_confidence_falls_with_the_error() -> None:
    data, error = noisy(), errors(noisy(), many())
    assert data.confidence is not None
    assert torch.equal(data.confidence == 0, error.isnan())
    seen = ~error.isnan()
    assert -0.75 < rank_correlation(data.confidence[seen], error[seen]) < -0.5
    # Not only because wrists are worse than hips: for each joint alone.
    for joint in range(17):
        chosen = seen[:, joint]
        assert rank_correlation(data.confidence[chosen, joint], error[chosen, joint]) < -0.4
    assert float(data.confidence.max()) <= 1.0
    assert 0.85 < float(data.confidence[seen].median()) < 0.98
    far = seen & (error > 60)
    assert float(data.confidence[far].median()) < 0.3
    assert far.sum() > 1000


def test_the_limbs_ends_are_found_worst() -> None:
    data = many()
    noise = DetectorNoise(outliers=0.0, swaps=0.0, missing=0.0)
    mean = dict(zip(data.skeleton.joints, errors(noise.apply(data), data).mean(dim=0), strict=True))
    assert mean["LHip"] < mean["RShoulder"] < mean["LKnee"] < mean["RElbow"]
    assert mean["RElbow"] < mean["LFoot"] < mean["LWrist"]
    assert float(mean["RWrist"] / mean["Hip"]) == pytest.approx(1.6 / 0.7, rel=0.03)


def test_every_layout_has_its_joints_widths() -> None:
    for skeleton, knee in ((humaneva15, "LKnee"), (coco17, "RKnee")):
        widths = dict(zip(skeleton.joints, joint_widths(skeleton).tolist(), strict=True))
        assert widths[knee] == 1.0 and widths["LWrist"] == widths["RWrist"] == 1.6
        assert widths["LAnkle"] == 1.4
    assert joint_widths(humaneva15)[humaneva15.index("Pelvis")] == 0.7


def test_errors_grow_with_the_person() -> None:
    data, noise = held_out_set(), DetectorNoise(swaps=0.1)
    twice = replace(data, keypoints=2.0 * data.keypoints)
    small, large = (noise.apply(each, scale=0.01) for each in (data, twice))
    torch.testing.assert_close(large.keypoints, 2.0 * small.keypoints, rtol=1e-5, atol=1e-3)
    assert small.confidence is not None and large.confidence is not None
    seen = small.confidence > 0
    torch.testing.assert_close(large.confidence[seen], small.confidence[seen])
    few = replace(noise, swaps=0.01)
    assert few.calibrated(twice) < 0.5 * few.calibrated(data)


def assert_equal(one: PoseDataset, other: PoseDataset) -> None:
    assert one.content_hash() == other.content_hash()


def test_the_same_seed_gives_the_same_noise_to_every_part() -> None:
    data, noise = held_out_set(), DetectorNoise()
    scale = noise.calibrated(data)
    whole = noise.apply(data, seed=7)
    assert_equal(whole, noise.apply(data, seed=7, scale=scale))
    for part in (slice(0, 7), slice(3, None, 5), [300, 4, 4, 17], range(479, -1, -1)):
        index: Any = list(part) if isinstance(part, range) else part
        assert_equal(noise.apply(data[index], seed=7, scale=scale), whole[index])
    chosen = {"actions": ["Walking"], "subjects": ["Test2"]}
    part = noise.apply(data.select(**chosen), seed=7, scale=scale)
    assert torch.equal(part.keypoints, whole.select(**chosen).keypoints)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert_equal(noise.apply(data, seed=7), whole)
    finally:
        torch.set_num_threads(threads)


def test_noise_differs_between_seeds_frames_views_and_takes() -> None:
    data, noise = held_out_set(), DetectorNoise(outliers=0.0, swaps=0.0, missing=0.0)
    shift = noise.apply(data, seed=1).keypoints - data.keypoints
    other = noise.apply(data, seed=2).keypoints - data.keypoints
    flat = torch.cat([shift, other]).reshape(2 * len(data), -1).double()
    correlation = torch.corrcoef(flat).abs() - torch.eye(2 * len(data))
    # 34 numbers a sample: independent ones never come near.
    assert float(correlation.max()) < 0.9
    before = torch.random.get_rng_state()
    noise.apply(data)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_noise_level_stretches_the_same_noise() -> None:
    data = held_out_set()
    shifts = [
        DetectorNoise(px, outliers=0.0, swaps=0.0).apply(data).keypoints - data.keypoints
        for px in (4.0, 8.0)
    ]
    seen = DetectorNoise(4.0).apply(data).confidence
    assert seen is not None
    torch.testing.assert_close(2 * shifts[0][seen > 0], shifts[1][seen > 0], rtol=1e-3, atol=1e-3)


def test_the_input_stays_as_it_is() -> None:
    data = held_out_set()
    before = data.content_hash()
    found = DetectorNoise(5.0).apply(data)
    assert data.content_hash() == before and data.confidence is None
    assert found.keypoint_source == "pinhole+5px"
    same = replace(
        found,
        keypoints=data.keypoints,
        confidence=None,
        keypoint_source=data.keypoint_source,
    )
    assert same.content_hash() == before


def test_missing_joints_lie_where_readers_put_them() -> None:
    data = held_out_set()
    found = DetectorNoise(missing=0.2).apply(data)
    assert found.confidence is not None
    row = int((found.confidence == 0).any(dim=1).nonzero()[0])
    missing = found.confidence[row] == 0
    mean = found.keypoints[row, ~missing].mean(dim=0)
    torch.testing.assert_close(found.keypoints[row, missing], mean.expand(int(missing.sum()), 2))
    lost = DetectorNoise(outliers=0.0, swaps=0.0, missing=0.98).apply(data)
    assert lost.confidence is not None and lost.keypoints.isfinite().all()
    row = int((lost.confidence == 0).all(dim=1).nonzero()[0])
    assert torch.equal(lost.keypoints[row], data.camera.intrinsics[row, 2:].expand(17, 2))


def test_a_person_seen_as_one_point() -> None:
    data = held_out_set()[:4]
    point = replace(data, keypoints=torch.full_like(data.keypoints, 500.0))
    found = DetectorNoise(0.7).apply(point)
    assert found.keypoints.isfinite().all()
    assert np.isfinite(DetectorNoise(0.7).calibrated(point))


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"mean_error": 0}, ValueError, "mean_error: expected a positive number of px, got 0"),
        ({"mean_error": float("nan")}, ValueError, "mean_error: expected a positive .* got nan"),
        ({"mean_error": "6.7"}, TypeError, "mean_error: expected a number, got str"),
        ({"outliers": -0.1}, ValueError, r"outliers: expected a share in \[0, 1\), got -0.1"),
        ({"missing": 1}, ValueError, r"missing: expected a share in \[0, 1\), got 1"),
        ({"swaps": True}, TypeError, "swaps: expected a number, got bool"),
        ({"outliers": 0.6, "missing": 0.6}, ValueError, "expected at most 1 together, got 1.205"),
    ],
)
def test_wrong_parameters(arguments: dict[str, Any], kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        DetectorNoise(**arguments)


def test_wrong_data_and_arguments() -> None:
    data, noise = held_out_set(), DetectorNoise()
    with pytest.raises(ValueError, match=r"synthetic \(pinhole\+6.7px\) has confidences"):
        noise.apply(noise.apply(data))
    with pytest.raises(ValueError, match="synthetic holds no samples to add noise to"):
        noise.apply(data[:0])
    with pytest.raises(ValueError, match=r"outliers and swaps alone make .* so 1 px needs fewer"):
        DetectorNoise(1.0, outliers=0.1).apply(data)
    with pytest.raises(ValueError, match="scale: expected a positive number, got -1"):
        noise.apply(data, scale=-1)
    with pytest.raises(TypeError, match="seed: expected an integer, got float"):
        noise.apply(data, seed=1.5)  # type: ignore[arg-type]
    keypoints = data.keypoints.clone()
    keypoints[3, 2] = torch.nan
    with pytest.raises(ValueError, match="synthetic has 2D keypoints that are not finite"):
        noise.apply(replace(data, keypoints=keypoints))
