"""The lifter against NumPy, its normalisation, its size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from erd_models import make_lifter, scramble
from precision import assert_exact

from erd_cuda import MartinezLifter


def numpy_lifter(lifter: MartinezLifter, keypoints: np.ndarray) -> np.ndarray:
    state = {name: value.double().numpy() for name, value in lifter.state_dict().items()}

    def layer(h: np.ndarray, name: str) -> np.ndarray:
        h = h @ state[f"{name}.0.weight"].T + state[f"{name}.0.bias"]
        deviation = np.sqrt(state[f"{name}.1.running_var"] + 1e-5)
        h = (h - state[f"{name}.1.running_mean"]) / deviation
        return np.maximum(h * state[f"{name}.1.weight"] + state[f"{name}.1.bias"], 0)

    z = (keypoints - state["mean2d"]) / state["std2d"]
    z = z.reshape(len(z), -1)
    if lifter.pca is not None:
        z = (z - state["pca.mean"]) @ state["pca.basis"].T
    h = layer(z, "input")
    for block in range(lifter.num_blocks):
        h = h + layer(layer(h, f"blocks.{block}.layers.0"), f"blocks.{block}.layers.1")
    out = h @ state["output.weight"].T + state["output.bias"]
    return state["mean3d"] + state["std3d"] * out.reshape(len(z), -1, 3)


@pytest.mark.parametrize("pca", [None, 20])
def test_eval_is_the_network_of_the_paper(pca: int | None) -> None:
    lifter = make_lifter(pca=pca).double()
    scramble(lifter)
    keypoints = 500 + 100 * torch.randn(10, 17, 2, dtype=torch.float64)
    expected = numpy_lifter(lifter, keypoints.numpy())
    assert_exact(lifter(keypoints).detach(), expected)
    assert np.abs(expected).max() > 50


def test_number_of_parameters() -> None:
    """4.3 million, as method.md and Martinez et al. say."""
    layers = 34 * 1024 + 4 * 1024 * 1024 + 5 * 1024  # weights and biases before the output
    batch_norms = 5 * 2 * 1024
    count = sum(p.numel() for p in MartinezLifter().parameters())
    assert count == layers + batch_norms + 1024 * 51 + 51
    assert round(count / 1e6, 1) == 4.3


def test_dropout_in_train_mode_only() -> None:
    lifter = make_lifter(dropout=0.5)
    keypoints = 500 + 100 * torch.randn(8, 17, 2)
    assert torch.equal(lifter(keypoints), lifter(keypoints))
    lifter.train()
    assert not torch.equal(lifter(keypoints), lifter(keypoints))


def test_the_root_joint_is_answered_exactly() -> None:
    lifter = make_lifter()
    assert lifter.std3d[0].tolist() == [0, 0, 0]
    pose = lifter(500 + 100 * torch.randn(8, 17, 2))
    assert torch.equal(pose[:, 0], torch.zeros(8, 3))
    assert pose[:, 1:].abs().min() > 0


def test_normalisation_is_mean_and_population_deviation() -> None:
    keypoints = 500 + 100 * torch.randn(70_000, 3, 2)
    pose = 1 + 300 * torch.randn(70_000, 3, 3)
    lifter = MartinezLifter(3, width=8)
    lifter.fit_normalization(keypoints, pose)
    exact = {"2d": keypoints.double().numpy(), "3d": pose.double().numpy()}
    for name, values in exact.items():
        np.testing.assert_allclose(getattr(lifter, f"mean{name}"), values.mean(0), rtol=1e-6)
        np.testing.assert_allclose(getattr(lifter, f"std{name}"), values.std(0), rtol=1e-6)
    z = lifter.normalized(keypoints)
    assert z.shape == (70_000, 6)
    np.testing.assert_allclose(z.std(0, correction=0), np.ones(6), rtol=1e-4)


def test_constant_up_to_rounding_counts_as_constant() -> None:
    """A root joint moved to 500 px and back in float32 is not exactly constant."""
    keypoints = 500 + 100 * torch.randn(1000, 3, 2)
    keypoints[:, 0] = 500 + 3e-5 * torch.randn(1000, 2)
    lifter = MartinezLifter(3, width=8)
    lifter.fit_normalization(keypoints, torch.randn(1000, 3, 3))
    assert lifter.std2d[0].tolist() == [0, 0]
    assert lifter.normalized(keypoints).abs().max() < 10


def test_regress_and_normalize_pose_are_each_others_scale() -> None:
    """What regress answers, in millimetres, normalises back to it (0 where nothing varies)."""
    lifter = make_lifter().double()
    keypoints = 500 + 100 * torch.randn(8, 17, 2, dtype=torch.float64)
    z = lifter.regress(lifter.normalized(keypoints))
    expected = z.clone()
    expected[:, :3] = 0
    torch.testing.assert_close(lifter.normalize_pose(lifter(keypoints)), expected)


@pytest.mark.parametrize("batch", [(), (0,), (3,), (2, 3), (2, 0, 3)], ids=str)
def test_any_batch_shape(batch: tuple[int, ...]) -> None:
    lifter = make_lifter(pca=9)
    keypoints = 500 + 100 * torch.randn(*batch, 17, 2)
    got = lifter(keypoints)
    assert got.shape == (*batch, 17, 3)
    flat = lifter(keypoints.reshape(-1, 17, 2)).reshape(got.shape)
    torch.testing.assert_close(got, flat)


def test_config_rebuilds_it() -> None:
    lifter = MartinezLifter(5, width=8, blocks=3, dropout=0.1, pca=7)
    twin = MartinezLifter(**lifter.config())
    twin.load_state_dict(lifter.state_dict())
    keypoints = torch.randn(4, 5, 2)
    assert torch.equal(twin.eval()(keypoints), lifter.eval()(keypoints))
    assert twin.input[3].p == 0.1


def test_what_cannot_be_fitted() -> None:
    lifter = MartinezLifter()
    keypoints, pose = torch.randn(4, 17, 2), torch.randn(4, 17, 3)
    with pytest.raises(
        ValueError, match=r"keypoints has shape \(4, 16, 2\), expected \(..., 17, 2\)"
    ):
        lifter.fit_normalization(keypoints[:, 1:], pose)
    with pytest.raises(ValueError, match=r"pose has shape \(4, 17, 2\), expected \(..., 17, 3\)"):
        lifter.fit_normalization(keypoints, keypoints)
    with pytest.raises(ValueError, match="keypoints holds no poses"):
        lifter.fit_normalization(keypoints[:0], pose[:0])
    keypoints[2, 3, 1] = float("nan")
    with pytest.raises(ValueError, match="keypoints holds NaN or infinity"):
        lifter.fit_normalization(keypoints, pose)
    assert torch.equal(lifter.mean2d, torch.zeros(17, 2))


def test_wrong_joint_count_and_type() -> None:
    lifter = make_lifter()
    with pytest.raises(
        ValueError, match=r"keypoints has shape \(4, 15, 2\), expected \(..., 17, 2\)"
    ):
        lifter(torch.zeros(4, 15, 2))
    with pytest.raises(TypeError, match=r"keypoints is torch\.int64, expected a floating point"):
        lifter(torch.zeros(4, 17, 2, dtype=torch.int64))
    with pytest.raises(TypeError, match="keypoints is a ndarray, expected a tensor"):
        lifter(np.zeros((4, 17, 2)))
