"""Folding and collapsing against the oracle's own folding, and the packed weights' checks."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from erd_models import expected_stages, inputs_of, make_erd, through_stages
from precision import assert_exact, relative_error

import erd_cuda
from erd_cuda import ResidualRegressor
from erd_cuda._fragments_wgmma import fits_wgmma
from erd_cuda.benchmarks import oracle
from erd_cuda.benchmarks.problems import FEATURES, make_network, make_problem, pack


@pytest.mark.parametrize(
    ("block", "features", "components"),
    list(itertools.product(("linear", "relu"), FEATURES, (None, 21))),
)
def test_float64_folding_is_exact(block: str, features: str, components: int | None) -> None:
    network = make_network(17, 3, 40, block, features, components)
    packed = make_erd(network).packed()
    expected = oracle.fold(network)
    assert (packed.block, packed.features) == (block, features)
    for field in dataclasses.fields(expected):
        values = getattr(expected, field.name)
        if values is None:
            assert getattr(packed, field.name) is None
        else:
            assert_exact(getattr(packed, field.name), values)
    assert_exact(packed.mean2d, network.mean2d, 0)


def test_shapes_and_properties() -> None:
    packed = make_erd(make_network(16, 3, 40, "relu", "concat", 21)).packed()
    assert (packed.stages, packed.width, packed.num_features, packed.num_joints) == (3, 40, 64, 16)
    assert packed.w_hidden is not None
    assert packed.w_hidden.shape == (3, 2, 40, 40)


def test_collapse_leaves_a_seventh_of_the_products() -> None:
    packed = erd_cuda.ERD(stages=1).packed()
    assert packed.w_hidden is None
    assert packed.w_in.numel() + packed.w_out.numel() == 21_760


def test_folding_rounds_once() -> None:
    """float32 parameters are folded in float64: float32 packed weights are its rounding."""
    erd = make_erd(make_network(components=20), dtype=torch.float32)
    packed, exact = erd.packed(), erd.packed(dtype=torch.float64)
    assert packed.w_in.dtype == torch.float32
    for name in ("w_in", "b_in", "w_out", "b_out"):
        assert torch.equal(getattr(packed, name), getattr(exact, name).float())


@pytest.mark.parametrize("block", ["linear", "relu"])
def test_packed_float32_is_the_unpacked_network(block: str) -> None:
    """Fused and folded against plain layers, both in float32 and each 1e-6 of the increment away
    from float64.
    """
    problem = make_problem((300,)).rounded(torch.float32)
    erd = make_erd(make_network(block=block), dtype=torch.float32)
    inputs = inputs_of(problem, dtype=torch.float32)
    with torch.no_grad():
        layers = (through_stages(erd, inputs) - inputs["pose"]).double().numpy()
        assert relative_error(erd(**inputs) - inputs["pose"], layers) <= 2e-6


@pytest.mark.parametrize("features", FEATURES)
def test_a_coordinate_that_never_varied_is_divided_by_one(features: str) -> None:
    network = make_network(17, 2, 24, features=features)
    std2d = network.std2d.copy()
    std2d[3] = 0.0
    erd = make_erd(dataclasses.replace(network, std2d=std2d))
    std2d[3] = 1.0
    unit = pack(dataclasses.replace(network, std2d=std2d))
    assert_exact(erd.packed().w_in, unit.w_in.numpy())
    problem = make_problem((5,))
    inputs = inputs_of(problem)
    expected = expected_stages(problem, dataclasses.replace(network, std2d=std2d))[-1]
    assert_exact(erd(**inputs), expected)
    assert_exact(through_stages(erd, inputs).detach(), expected)


@pytest.mark.parametrize("components", [None, 21])
def test_a_root_joint_that_never_moves_is_divided_by_one(components: int | None) -> None:
    network = make_network(17, 2, 24, "linear", "residual+pose", components)
    assert network.std3d is not None and network.mean3d is not None
    std3d, mean3d = network.std3d.copy(), network.mean3d.copy()
    mean3d[0], std3d[0] = 0.0, 0.0
    erd = make_erd(dataclasses.replace(network, mean3d=mean3d, std3d=std3d))
    std3d[0] = 1.0
    unit = dataclasses.replace(network, mean3d=mean3d, std3d=std3d)
    packed = erd.packed()
    assert_exact(packed.w_in, pack(unit).w_in.numpy())
    assert_exact(packed.b_in, pack(unit).b_in.numpy())
    problem = make_problem((5,))
    expected = expected_stages(problem, unit)[-1]
    inputs = inputs_of(problem)
    assert_exact(erd(**inputs), expected)
    assert_exact(through_stages(erd, inputs).detach(), expected)


@pytest.mark.parametrize(
    ("block", "features", "served"),
    [
        ("linear", "residual", True),
        ("linear", "proj2d", True),
        ("linear", "concat", False),
        ("linear", "residual+pose", False),
        ("relu", "concat", True),
        ("relu", "residual+pose", True),
    ],
)
def test_which_kinds_of_features_tensor_cores_serve(
    block: str, features: str, served: bool
) -> None:
    network = make_network(17, 2, 32, block, features)
    packed = make_erd(network, dtype=torch.float32).packed()
    assert (packed.for_tensor_cores("split") is not None) == served
    assert fits_wgmma("linear", features, 17, 32, "fp16") == (features in ("residual", "proj2d"))


def test_packed_weights_do_not_share_memory_with_the_model() -> None:
    erd = make_erd(make_network(17, 2, 24))
    packed = erd.packed()
    before = {name: v.clone() for name, v in vars(packed).items() if isinstance(v, torch.Tensor)}
    with torch.no_grad():
        for value in erd.state_dict().values():
            value.zero_()
    for name, value in before.items():
        assert torch.equal(getattr(packed, name), value)
        assert not getattr(packed, name).requires_grad


def test_to_converts_every_tensor() -> None:
    packed = make_erd(make_network(17, 2, 24, "relu")).packed()
    moved = packed.to(torch.float32)
    tensors = [v for v in vars(moved).values() if isinstance(v, torch.Tensor)]
    assert len(tensors) == 7
    assert all(value.dtype == torch.float32 for value in tensors)
    assert packed.w_in.dtype == torch.float64
    assert moved.to("meta").w_in.device.type == "meta"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block": "conv"}, "block is 'conv', expected one of 'linear', 'relu'"),
        ({"features": "image"}, "features is 'image', expected one of 'residual'"),
        ({"w_in": torch.zeros(2, 34)}, r"w_in has shape \(2, 34\), expected \(K, H, F\)"),
        ({"mean2d": torch.zeros(17, 3)}, r"mean2d has shape \(17, 3\), expected \(J, 2\)"),
        ({"features": "concat"}, r"w_in has shape \(2, 24, 34\), expected \(2, 24, 68\)"),
        ({"features": "residual+pose"}, r"w_in has shape \(2, 24, 34\), expected \(2, 24, 85\)"),
        ({"b_in": torch.zeros(24)}, r"b_in has shape \(24,\), expected \(2, 24\)"),
        (
            {"w_out": torch.zeros(2, 48, 24)},
            r"w_out has shape \(2, 48, 24\), expected \(2, 51, 24\)",
        ),
        ({"b_out": torch.zeros(2, 48)}, r"b_out has shape \(2, 48\), expected \(2, 51\)"),
        ({"block": "relu"}, r"w_hidden has shape None, expected \(2, 2, 24, 24\)"),
        ({"b_hidden": torch.zeros(2, 2, 24)}, r"b_hidden has shape \(2, 2, 24\), expected None"),
    ],
    ids=str,
)
def test_parts_that_do_not_fit(change: dict[str, object], message: str) -> None:
    packed = pack(make_network(17, 2, 24))
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(packed, **change)


def test_what_cannot_be_folded_is_refused() -> None:
    """Rather than left out."""
    erd = make_erd(make_network(17, 3, 24))
    erd.regressors[1] = ResidualRegressor(34, width=24, block="relu").double()
    message = r"regressors\[1\] has block 'relu', expected 'linear' like regressors\[0\]"
    with pytest.raises(ValueError, match=message):
        erd.packed()
    erd.regressors[1] = torch.nn.Identity()
    with pytest.raises(TypeError, match=r"regressors\[1\] is a Identity, expected a Residual"):
        erd.packed()
    erd.regressors = erd.regressors[:1]
    erd.regressors[0].hidden[1] = torch.nn.Identity()
    with pytest.raises(TypeError, match="regressor is a Identity, expected a plain Linear"):
        erd(**inputs_of(make_problem((5,))))


class Doubled(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2.0 * super().forward(x)


def test_a_layer_that_computes_something_else_is_refused() -> None:
    erd = make_erd(make_network(17, 2, 24))
    plain = erd.regressors[0].hidden[0]
    erd.regressors[0].hidden[0] = Doubled(24, 24).double()
    with pytest.raises(TypeError, match="is a Doubled, expected a plain Linear"):
        erd.packed()
    erd.regressors[0].hidden[0] = plain
    handle = plain.register_forward_hook(lambda *_: None)
    with pytest.raises(TypeError, match="is a Linear with hooks, expected a plain Linear"):
        erd.packed()
    handle.remove()
    erd.regressors[0].norm = torch.nn.BatchNorm1d(24, affine=False).double()
    with pytest.raises(TypeError, match="no running statistics or no weight"):
        erd.packed()
    erd.regressors[0].norm = torch.nn.Identity()
    with pytest.raises(TypeError, match="is a Identity, expected a plain BatchNorm1d"):
        erd.packed()


def test_a_model_without_stages_cannot_be_packed() -> None:
    erd = make_erd(make_network(17, 2, 24))
    packed = erd.packed()
    empty = {name: getattr(packed, name)[:0] for name in ("w_in", "b_in", "w_out", "b_out")}
    with pytest.raises(ValueError, match="at least one stage"):
        dataclasses.replace(packed, **empty)


@pytest.mark.parametrize("precision", ["split", "fp16", "bf16"])
@pytest.mark.parametrize("block", ["linear", "relu"])
def test_weights_for_tensor_cores_follow_changes_in_place(block: str, precision: str) -> None:
    packed = make_erd(make_network(17, 2, 32, block), dtype=torch.float32).packed()
    names = ["w_in", "b_in", "w_out", "b_out"] + ["w_hidden", "b_hidden"] * (block == "relu")
    for name in names:
        before = packed.for_tensor_cores(precision)
        assert packed.for_tensor_cores(precision) is before
        getattr(packed, name).mul_(1.25)
        after = packed.for_tensor_cores(precision)
        fresh = dataclasses.replace(packed).for_tensor_cores(precision)
        assert before is not None and after is not None and fresh is not None
        assert torch.equal(after.weights, fresh.weights)
        assert torch.equal(after.biases, fresh.biases)
        assert after.feature_scale == fresh.feature_scale
        changed = not torch.equal(after.weights, before.weights)
        changed |= not torch.equal(after.biases, before.biases)
        assert changed, name


def test_weights_made_in_inference_mode_are_arranged_too() -> None:
    with torch.inference_mode():
        packed = make_erd(make_network(17, 2, 32), dtype=torch.float32).packed()
        assert packed.w_in.is_inference()
        first = packed.for_tensor_cores("split")
    assert first is not None and packed.for_tensor_cores("split") is first


def test_an_unknown_arrangement() -> None:
    packed = make_erd(make_network(17, 2, 32), dtype=torch.float32).packed()
    with pytest.raises(ValueError, match="precision is 'auto', expected one of 'split', 'fp16'"):
        packed.for_tensor_cores("auto")


def test_parametrised_layers_fold_as_they_compute() -> None:
    erd, inputs = make_erd(make_network(17, 2, 24)), inputs_of(make_problem((5,)))
    torch.nn.utils.parametrizations.weight_norm(erd.regressors[0].hidden[0])
    with torch.no_grad():
        for parameter in erd.regressors[0].hidden[0].parameters():
            parameter.mul_(1.5)
    torch.testing.assert_close(erd(**inputs), through_stages(erd, inputs))


def test_many_stages_of_one_network_are_each_folded() -> None:
    """Stage k's weights lie at index k."""
    erd = make_erd(make_network(17, 3, 24))
    packed = erd.packed()
    for k, stage in enumerate(erd.regressors):
        alone = erd_cuda.ERD(stages=1, width=24).double()
        alone.regressors[0] = stage
        alone.mean2d, alone.std2d = erd.mean2d, erd.std2d
        assert torch.equal(packed.w_out[k], alone.packed().w_out[0])
        assert torch.equal(packed.w_in[k], alone.packed().w_in[0])
    assert not np.allclose(packed.w_in[0], packed.w_in[1])
