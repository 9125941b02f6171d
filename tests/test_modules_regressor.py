"""The regressor against the oracle's equations, its size, its modes."""

from __future__ import annotations

import pytest
import torch
from erd_models import load_stage
from precision import assert_exact
from problems import make_network
from torch import nn

from erd_cuda import ERD, ResidualRegressor


@pytest.mark.parametrize("block", ["linear", "relu"])
def test_eval_is_the_papers_network(block: str) -> None:
    stage = make_network(17, 1, 48, block).stages[0]
    regressor = ResidualRegressor(34, width=48, block=block).double()
    load_stage(regressor, stage)
    features = torch.randn(20, 34, dtype=torch.float64)
    got = regressor.eval()(features).detach()
    assert_exact(got, stage(features.numpy(), block))


@pytest.mark.parametrize("block", ["linear", "relu"])
def test_number_of_parameters(block: str) -> None:
    regressor = ResidualRegressor(34, block=block)
    assert sum(p.numel() for p in regressor.parameters()) == 154_163
    assert sum(p.numel() for p in ERD(block=block).parameters()) == 616_652


def test_dropout_sits_after_every_hidden_layer_in_train_mode_only() -> None:
    regressor = ResidualRegressor(34, width=64, dropout=0.5)
    calls = []
    regressor.dropout.register_forward_hook(lambda module, inputs, out: calls.append(out.shape))
    features = torch.randn(8, 34)
    regressor(features)
    assert calls == [(8, 64)] * 3
    assert not torch.equal(regressor(features), regressor(features))
    regressor.eval()
    assert torch.equal(regressor(features), regressor(features))


def test_train_mode_takes_batch_statistics() -> None:
    regressor = ResidualRegressor(34, width=64, dropout=0.0)
    regressor(torch.randn(8, 34) + 5)
    assert regressor.norm.running_mean is not None
    assert regressor.norm.running_mean.abs().max() > 0.01


@pytest.mark.parametrize("batch", [(), (0,), (3,), (2, 3), (2, 0, 3)], ids=str)
def test_any_batch_shape(batch: tuple[int, ...]) -> None:
    regressor = ResidualRegressor(10, num_joints=5, width=8).eval()
    features = torch.randn(*batch, 10)
    got = regressor(features)
    assert got.shape == (*batch, 15)
    one_by_one = [regressor(f) for f in features.reshape(-1, 10)]
    if one_by_one:
        torch.testing.assert_close(got.reshape(-1, 15), torch.stack(one_by_one))


def test_every_parameter_is_trained() -> None:
    regressor = ResidualRegressor(34, width=16)
    regressor(torch.randn(8, 34)).square().sum().backward()
    for name, parameter in regressor.named_parameters():
        assert parameter.grad is not None, name
    assert regressor.output.weight.grad is not None
    assert regressor.output.weight.grad.abs().sum() > 0
    assert isinstance(regressor.hidden, nn.ModuleList)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_features": 0}, "num_features is 0, expected an integer of at least 1"),
        ({"num_joints": 1.5}, "num_joints is 1.5, expected an integer"),
        ({"width": -1}, "width is -1"),
        ({"dropout": 1.0}, "dropout is 1.0, expected a number from 0 to below 1"),
        ({"dropout": "no"}, "dropout is 'no'"),
        ({"block": "residual"}, "block is 'residual', expected one of 'linear', 'relu'"),
    ],
    ids=str,
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResidualRegressor(**{"num_features": 34, **options})


def test_wrong_number_of_features() -> None:
    with pytest.raises(ValueError, match=r"features has shape \(5, 32\), expected \(..., 34\)"):
        ResidualRegressor(34)(torch.zeros(5, 32))
