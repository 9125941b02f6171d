"""ERD's forward passes: fused, through the layers, and the oracle's, for every configuration."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from erd_models import expected_stages, inputs_of, make_erd, make_lifter, through_stages
from precision import assert_exact, relative_error
from torch import Tensor

from erd_cuda import ERD, Skeleton
from erd_cuda.benchmarks.problems import (
    CAMERA_MODELS,
    FEATURES,
    ROOT_MODES,
    make_network,
    make_problem,
)
from erd_cuda.modules.missing import place_missing_joints

CONFIGURATIONS = list(itertools.product(("linear", "relu"), FEATURES, (None, 21), ROOT_MODES))


@pytest.mark.parametrize(("block", "features", "components", "root"), CONFIGURATIONS)
def test_fused_and_layers_are_the_oracle(
    block: str, features: str, components: int | None, root: str
) -> None:
    """Float64, every stage's increment."""
    network = make_network(17, 3, 40, block, features, components)
    problem = make_problem((6,))
    erd, inputs = make_erd(network, root), inputs_of(problem, root, with_confidence=True)
    with torch.no_grad():
        fused = erd(**inputs, return_stages=True)
        layers = through_stages(erd, inputs)
    assert torch.equal(fused[0], inputs["pose"])
    expected = expected_stages(problem, network, root, with_confidence=True) - problem.pose
    assert_exact(fused[1:] - inputs["pose"], expected, 1e-11)
    assert_exact(layers - inputs["pose"], expected[-1], 1e-11)
    assert relative_error(fused[-1] - inputs["pose"], (layers - inputs["pose"]).numpy()) <= 1e-12
    assert torch.equal(erd(**inputs), fused[-1])


@pytest.mark.parametrize("model", CAMERA_MODELS)
def test_every_camera_model(model: str) -> None:
    network, problem = make_network(17, 2, 24), make_problem((6,), model=model)
    erd, inputs = make_erd(network), inputs_of(problem)
    expected = expected_stages(problem, network)[-1]
    assert_exact(erd(**inputs), expected)
    assert_exact(through_stages(erd, inputs).detach(), expected)


@pytest.mark.parametrize(
    ("block", "features", "root"),
    [
        ("linear", "residual", "given"),
        ("linear", "residual", "solve"),
        ("linear", "concat", "given"),
        ("relu", "residual", "given"),
        ("relu", "proj2d", "solve_each_stage"),
        ("linear", "residual+pose", "given"),
        ("relu", "residual+pose", "solve"),
    ],
)
def test_float32_is_as_precise_as_the_layers(block: str, features: str, root: str) -> None:
    """The increment's error against float64: at most twice that of torch's own layers."""
    problem = make_problem((300,)).rounded(torch.float32)
    erd = make_erd(make_network(block=block, features=features), root, torch.float32)
    inputs = inputs_of(problem, root, torch.float32)
    with torch.no_grad():
        fused = erd(**inputs) - inputs["pose"]
        layers = through_stages(erd, inputs) - inputs["pose"]
        # The float32 model's own weights, exactly: what both would give without rounding.
        exact = through_stages(erd.double(), inputs_of(problem, root)) - problem.tensor("pose")
    truth = exact.numpy()
    assert relative_error(fused, truth) <= 2 * relative_error(layers, truth)


@pytest.mark.parametrize("root", ROOT_MODES)
def test_train_mode_is_the_layers_with_batch_statistics(root: str) -> None:
    """And running them moves BatchNorm's statistics, which eval mode then uses."""
    problem, network = make_problem((8,)), make_network(17, 2, 24)
    erd, inputs = make_erd(network, root), inputs_of(problem, root, with_confidence=True)
    before = erd(**inputs)
    erd.train()
    stages = erd(**inputs, return_stages=True)
    assert stages.shape == (3, 8, 17, 3)
    torch.testing.assert_close(stages[-1], through_stages(erd, inputs))
    assert not torch.allclose(stages[-1], before)
    erd.eval()
    after = erd(**inputs)
    torch.testing.assert_close(after, through_stages(erd, inputs))
    assert not torch.allclose(after, before)


def test_train_mode_trains_everything() -> None:
    erd = ERD(make_lifter(), stages=2, width=16)
    problem = make_problem((8,))
    inputs = inputs_of(problem, dtype=torch.float32) | {"pose": None}
    erd(**inputs).square().mean().backward()
    for name, parameter in erd.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("root", ROOT_MODES)
def test_gradients_are_those_of_the_layers(features: str, root: str) -> None:
    problem = make_problem((5,))
    erd = make_erd(make_network(17, 2, 24, features=features), root)
    results = []
    for run in (lambda inputs: erd(**inputs), lambda inputs: through_stages(erd, inputs)):
        inputs = inputs_of(problem, root, with_confidence=True)
        wanted = {k: v.requires_grad_() for k, v in inputs.items() if v is not None}
        out = run(inputs)
        weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
        gradients = torch.autograd.grad((out * weight).sum(), [*wanted.values()], allow_unused=True)
        results.append(
            {
                name: torch.zeros_like(value) if gradient is None else gradient
                for (name, value), gradient in zip(wanted.items(), gradients, strict=True)
            }
        )
    fused, layers = results
    assert fused["pose"].any()
    for name in fused:
        torch.testing.assert_close(fused[name], layers[name], rtol=1e-9, atol=1e-9)


def test_gradient_reaches_the_lifter_and_not_the_stages() -> None:
    """In eval mode the packed weights take none, as ERD says."""
    erd = make_erd(make_network(17, 2, 24), dtype=torch.float32, lifter=make_lifter())
    inputs = inputs_of(make_problem((5,)), dtype=torch.float32) | {"pose": None}
    erd(**inputs).square().mean().backward()
    assert all(p.grad is not None for p in erd.lifter.parameters())
    assert all(p.grad is None for p in erd.regressors.parameters())


# ---- lifters -------------------------------------------------------------------------------------


def test_the_lifter_gives_the_initial_pose() -> None:
    lifter = make_lifter()
    erd = make_erd(make_network(17, 2, 24), dtype=torch.float32, lifter=lifter)
    inputs = inputs_of(make_problem((5,)), dtype=torch.float32)
    lifted = erd(**inputs | {"pose": None}, return_stages=True)
    assert torch.equal(lifted[0], lifter(inputs["keypoints"]))
    assert torch.equal(lifted[-1], erd(**inputs | {"pose": lifted[0]}))
    assert not torch.equal(lifted[-1], erd(**inputs))


@pytest.mark.parametrize("module", [False, True], ids=["function", "module"])
def test_any_callable_lifts(module: bool) -> None:
    def function(keypoints: Tensor) -> Tensor:
        return torch.nn.functional.pad(keypoints - keypoints[..., :1, :], (0, 1)) * 3

    class Foreign(torch.nn.Module):
        def forward(self, keypoints: Tensor) -> Tensor:
            return function(keypoints)

    erd = make_erd(make_network(17, 2, 24), lifter=Foreign() if module else function)
    inputs = inputs_of(make_problem((2, 3)))
    pose = function(inputs["keypoints"])
    assert torch.equal(erd(**inputs | {"pose": None}), erd(**inputs | {"pose": pose}))


def test_a_lifters_wrong_answer() -> None:
    inputs = inputs_of(make_problem((5,))) | {"pose": None}
    erd = make_erd(make_network(17, 2, 24), lifter=lambda keypoints: keypoints)
    expected = r"the lifter returned \(5, 17, 2\), expected a pose of shape \(5, 17, 3\)"
    with pytest.raises(ValueError, match=expected):
        erd(**inputs)
    erd.lifter = lambda keypoints: [keypoints]
    with pytest.raises(ValueError, match="the lifter returned list, expected a pose"):
        erd(**inputs)


def test_a_lifter_in_16_bits_is_raised() -> None:
    erd = make_erd(
        make_network(17, 2, 24),
        dtype=torch.float32,
        lifter=lambda keypoints: torch.zeros(*keypoints.shape[:-1], 3, dtype=torch.bfloat16),
    )
    inputs = inputs_of(make_problem((5,)), dtype=torch.float32)
    zero = torch.zeros_like(inputs["pose"])
    assert torch.equal(erd(**inputs | {"pose": None}), erd(**inputs | {"pose": zero}))


def test_missing_joints_enter_the_lifter_where_the_person_is() -> None:
    seen = []

    def lifter(keypoints: Tensor) -> Tensor:
        seen.append(keypoints)
        return torch.zeros(*keypoints.shape[:-1], 3, dtype=keypoints.dtype)

    erd = make_erd(make_network(17, 2, 24), lifter=lifter)
    inputs = inputs_of(make_problem((5,)), with_confidence=True) | {"pose": None}
    missing = inputs["confidence"] <= 0
    inputs["keypoints"] = inputs["keypoints"].masked_fill(missing[..., None], float("nan"))
    assert missing.any() and torch.isfinite(erd(**inputs)).all()
    assert torch.equal(
        seen[0], place_missing_joints(inputs["keypoints"], inputs["confidence"], erd.mean2d)
    )
    assert torch.equal(seen[0][~missing], inputs["keypoints"][~missing])


# ---- shapes, dtypes, errors ----------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fused", "train"])
@pytest.mark.parametrize("batch", [(), (0,), (1,), (2, 3), (2, 0, 3)], ids=str)
def test_any_batch_shape(batch: tuple[int, ...], mode: str) -> None:
    erd = make_erd(make_network(17, 2, 24))
    inputs = inputs_of(make_problem(batch))
    if mode == "train":
        # BatchNorm has no statistics of one pose or none; the layers' shapes are what is asked.
        erd.training = True
    assert erd(**inputs).shape == (*batch, 17, 3)
    assert erd(**inputs, return_stages=True).shape == (3, *batch, 17, 3)


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("root", ROOT_MODES)
def test_batch_axes_broadcast_in_both_paths(features: str, root: str) -> None:
    erd = make_erd(make_network(17, 2, 24, features=features), root)
    wide = inputs_of(make_problem((3, 1)), root, with_confidence=True)
    other = inputs_of(make_problem((1, 5), seed=1), root)
    inputs = wide | {"keypoints": other["keypoints"], "camera": other["camera"][0, 0]}
    fused = erd(**inputs, return_stages=True)
    assert fused.shape == (3, 3, 5, 17, 3)
    last = through_stages(erd, inputs)
    torch.testing.assert_close(last, fused[-1])
    erd.training = True
    torch.testing.assert_close(erd(**inputs, return_stages=True), fused)


@pytest.mark.parametrize("features", ["residual", "residual+pose"])
@pytest.mark.parametrize("joints", [1, 15, 128])
def test_any_number_of_joints(joints: int, features: str) -> None:
    network = make_network(joints, 2, 24, features=features)
    problem = make_problem((5,), joints)
    assert_exact(make_erd(network)(**inputs_of(problem)), expected_stages(problem, network)[-1])


def test_fit_normalization_standardises_the_features() -> None:
    erd = ERD(features="init2d", stages=1, width=8).double()
    problem = make_problem((500,))
    inputs = inputs_of(problem)
    erd.fit_normalization(inputs["keypoints"])
    z = erd.features_of(inputs["keypoints"], inputs["pose"], inputs["root"], inputs["camera"])
    torch.testing.assert_close(z.mean(0), torch.zeros(34, dtype=z.dtype), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(34, dtype=z.dtype))


def test_fit_normalization_fits_the_pca() -> None:
    erd = ERD(features="concat", pca=10, stages=1, width=8).double()
    inputs = inputs_of(make_problem((2, 250)))
    erd.fit_normalization(inputs["keypoints"])
    arguments = (inputs[name] for name in ("keypoints", "pose", "root", "camera"))
    z = erd.features_of(*arguments).flatten(0, 1)
    assert z.shape == (500, 20)
    covariance = torch.cov(z[:, :10].T)
    off_diagonal = covariance - covariance.diagonal().diag()
    assert off_diagonal.abs().max() < 1e-6 * covariance.max()
    assert (covariance.diagonal().diff() <= 0).all()


def test_fit_normalization_standardises_the_pose() -> None:
    """A root joint that is always 0 stays 0; the PCA reduces the residual alone."""
    erd = ERD(features="residual+pose", pca=10, stages=1, width=8).double()
    inputs = inputs_of(make_problem((2, 250)))
    erd.fit_normalization(inputs["keypoints"], inputs["pose"])
    arguments = (inputs[name] for name in ("keypoints", "pose", "root", "camera"))
    z = erd.features_of(*arguments).flatten(0, 1)
    assert z.shape == (500, 10 + 51)
    plain = ERD(pca=10, stages=1, width=8).double()
    plain.fit_normalization(inputs["keypoints"])
    arguments = (inputs[name] for name in ("keypoints", "pose", "root", "camera"))
    torch.testing.assert_close(z[:, :10], plain.features_of(*arguments).flatten(0, 1))
    of_pose = z[:, 10:]
    assert (of_pose[:, :3] == 0).all()
    zeros, ones = torch.zeros(51, dtype=z.dtype), torch.ones(48, dtype=z.dtype)
    torch.testing.assert_close(of_pose.mean(0), zeros, rtol=0, atol=1e-5)
    torch.testing.assert_close(of_pose[:, 3:].std(0, correction=0), ones)


def test_poses_are_asked_for_where_they_are_seen() -> None:
    keypoints = torch.rand(50, 17, 2)
    erd = ERD(features="residual+pose", stages=1, width=8)
    with pytest.raises(ValueError, match=r"pose is missing, expected the training poses .* in mm"):
        erd.fit_normalization(keypoints)
    with pytest.raises(ValueError, match=r"pose has shape \(50, 17, 2\), expected"):
        erd.fit_normalization(keypoints, keypoints)
    with pytest.raises(ValueError, match="pose holds NaN or infinity"):
        erd.fit_normalization(keypoints, torch.full((50, 17, 3), float("nan")))
    assert erd.mean3d is not None and not erd.mean3d.any() and not erd.mean2d.any()
    plain = ERD(stages=1, width=8)
    plain.fit_normalization(keypoints, torch.rand(50, 17, 3))
    assert plain.mean3d is None and not any(name.endswith("3d") for name in plain.state_dict())


@pytest.mark.parametrize("training", [False, True])
def test_an_unknown_precision_is_refused_in_either_mode(training: bool) -> None:
    erd, inputs = make_erd(make_network(17, 2, 24)), inputs_of(make_problem((5,)))
    with pytest.raises(ValueError, match="precision is 'half', expected one of 'auto', 'fp32'"):
        erd.train(training)(**inputs, precision="half")


def test_train_mode_computes_the_same_whatever_the_precision() -> None:
    inputs = inputs_of(make_problem((5,)))
    outputs = [
        make_erd(make_network(17, 2, 24)).train()(**inputs, precision=precision)
        for precision in ("auto", "fp16")
    ]
    assert torch.equal(*outputs)


def test_autocast_runs_the_stages_in_the_models_precision() -> None:
    erd = make_erd(make_network(17, 2, 24), dtype=torch.float32)
    inputs = inputs_of(make_problem((5,)), dtype=torch.float32)
    expected = erd(**inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(erd(**inputs), expected)
        half = erd(**inputs | {"keypoints": inputs["keypoints"].bfloat16()})
        assert half.dtype == torch.float32
        erd.lifter = make_lifter()
        assert erd(**inputs | {"pose": None}).dtype == torch.float32
        erd.train()
        assert erd(**inputs | {"pose": None}).dtype == torch.float32


def test_vmap_and_func_grad() -> None:
    erd = make_erd(make_network(17, 2, 24), "solve")
    inputs = inputs_of(make_problem((5,)), "solve")

    def error(keypoints: Tensor, pose: Tensor, camera: Tensor) -> Tensor:
        return erd(keypoints, camera, pose=pose).square().sum()

    arguments = (inputs["keypoints"], inputs["pose"], inputs["camera"])
    per_sample = torch.vmap(torch.func.grad(error, argnums=1))(*arguments)
    together = torch.func.grad(error, argnums=1)(*arguments)
    torch.testing.assert_close(per_sample, together)


def test_wrong_calls() -> None:
    erd = make_erd(make_network(17, 2, 24))
    inputs = inputs_of(make_problem((5,)))
    keypoints, pose = inputs["keypoints"], inputs["pose"]
    mistakes: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"root": None}, ValueError, "root is missing, .* built with root='given'"),
        ({"root": "given"}, ValueError, "root is missing"),
        ({"root": "guess"}, ValueError, "root is 'guess', expected one of 'given', 'solve'"),
        ({"root": (0, 0, 5000)}, TypeError, "root is a tuple, expected a tensor"),
        ({"pose": None}, ValueError, "pose is missing, .* this model has no lifter"),
        (
            {"keypoints": keypoints[:, 1:]},
            ValueError,
            r"keypoints has shape \(5, 16, 2\), expected \(..., 17, 2\)",
        ),
        ({"keypoints": keypoints.float()}, TypeError, "keypoints is torch.float32, expected"),
        ({"keypoints": keypoints.long()}, TypeError, "keypoints is torch.int64"),
        ({"keypoints": keypoints.tolist()}, TypeError, "keypoints is a list, expected a tensor"),
        (
            {"pose": pose[:, :16]},
            ValueError,
            r"pose has shape \(5, 16, 3\), expected \(..., 17, 3\)",
        ),
        ({"camera": torch.zeros(3)}, ValueError, "camera has shape"),
    ]
    for mode in (False, True):
        erd.train(mode)
        for change, error, message in mistakes:
            with pytest.raises(error, match=message):
                erd(**inputs | change)
    with pytest.raises(IndexError, match="k is 2, expected a stage from 0 to 1"):
        erd.stage(2, keypoints, pose, inputs["root"], inputs["camera"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"stages": 0}, ValueError, "stages is 0, expected an integer of at least 1"),
        ({"num_joints": "17"}, ValueError, "num_joints is '17', expected an integer"),
        ({"block": "mlp"}, ValueError, "block is 'mlp', expected one of 'linear', 'relu'"),
        ({"features": "rgb"}, ValueError, "features is 'rgb', expected one of 'residual'"),
        ({"root": "svd"}, ValueError, "root is 'svd', expected one of 'given'"),
        ({"pca": 35}, ValueError, "components is 35, expected at most 34"),
        ({"dropout": -0.1}, ValueError, "dropout is -0.1, expected a number"),
        ({"lifter": "martinez"}, TypeError, "lifter is a str, expected a module, a callable"),
        (
            {"skeleton": Skeleton("two", ("a", "b"), (-1, 0), (), ())},
            ValueError,
            "skeleton 'two' has 2 joints, expected num_joints = 17",
        ),
    ],
    ids=str,
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ERD(**options)
